//! The PCI bus compared with the inventory: GPUs that are in the machine, that should compute, and that no probe lists. A
//! first boot knows nothing else of a card that its driver could not start. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use labd_gpu::pci::BusGpu;

use super::vendor::{self, VendorDef};
use crate::{
    snapshot::{Notice, Severity},
    time::Timestamp,
};

/// Time between two looks at the bus, chosen: it changes when somebody works on the machine.
pub const EVERY: Duration = Duration::from_secs(10);
/// Time for which a GPU must not answer before that is said: drivers are loaded, and GPUs started, one after the other.
const PATIENCE: Duration = Duration::from_secs(30);
/// Drivers by which a device is given away as a whole, to a virtual machine.
const GIVEN_AWAY: [&str; 3] = ["vfio-pci", "pci-stub", "xen-pciback"];

/// Memory of the comparison: since when each GPU on the bus does not answer, by address.
#[derive(Debug, Default)]
pub struct BusCheck(BTreeMap<String, Timestamp>);

impl BusCheck {
    /// Takes a look: what is on the bus, the addresses of the GPUs that are listed, and which vendors' GPUs are counted now.
    /// Returns one notice for each vendor of which fewer answer than are there. `slot` names the place of an address.
    pub fn observe(
        &mut self,
        bus: &[BusGpu],
        listed: &BTreeSet<String>,
        counted: impl Fn(&VendorDef) -> bool,
        slot: impl Fn(&str) -> Option<String>,
        now: Timestamp,
    ) -> Vec<Notice> {
        let mut silent_now = BTreeSet::new();
        let mut notices = Vec::new();
        for def in vendor::ALL.into_iter().filter(|def| counted(def)) {
            let own: Vec<&BusGpu> = bus.iter().filter(|gpu| gpu.vendor == def.vendor).collect();
            let (answering, others): (Vec<&BusGpu>, Vec<&BusGpu>) =
                own.into_iter().partition(|gpu| listed.contains(&gpu.address));
            let silent: Vec<&str> = others
                .into_iter()
                .filter(|gpu| should_answer(gpu, def, &answering))
                .map(|gpu| gpu.address.as_str())
                .collect();
            silent_now.extend(silent.iter().map(|&address| address.to_owned()));
            let since = |address: &str| self.0.get(address).copied().unwrap_or(now);
            let lasting: Vec<&str> = silent.into_iter().filter(|a| now.since(since(a)) >= PATIENCE).collect();
            if !lasting.is_empty() {
                notices.push(notice(def, answering.len(), &lasting, &slot));
            }
        }
        self.0.retain(|address, _| silent_now.contains(address));
        for address in silent_now {
            self.0.entry(address).or_insert(now);
        }
        notices
    }
}

/// Number of a vendor's GPUs that should compute, as far as the bus tells: what its driver has, and what it should have.
pub fn computing(bus: &[BusGpu], def: &VendorDef) -> usize {
    let own = bus.iter().filter(|gpu| gpu.vendor == def.vendor);
    let (bound, others): (Vec<&BusGpu>, Vec<&BusGpu>) = own.partition(|gpu| gpu.driver.as_deref() == Some(def.driver));
    bound.len() + others.into_iter().filter(|gpu| should_answer(gpu, def, &bound)).count()
}

/// Whether a GPU that is not listed should be. `answering` are the listed ones of its vendor.
///
/// What another driver has shows a picture. A VGA controller without a driver, or with one that computes on others and not on
/// it, may be there for the picture alone, unless it is one more of a model that computes here, or its driver is there and
/// would have it all the same.
fn should_answer(gpu: &BusGpu, def: &VendorDef, answering: &[&BusGpu]) -> bool {
    if !may_be_the_labs(gpu) {
        return false;
    }
    let one_more = answering.iter().any(|other| other.model == gpu.model);
    match gpu.driver.as_deref() {
        Some(driver) => driver == def.driver && (one_more || !gpu.vga || def.computes_on_all),
        None => gpu.lacks_driver(one_more || (def.takes_all && !answering.is_empty())),
    }
}

/// Whether a GPU can be the lab's: graphics of a CPU, a share and what was given to a virtual machine cannot.
pub(super) fn may_be_the_labs(gpu: &BusGpu) -> bool {
    let given_away = gpu.driver.as_deref().is_some_and(|driver| GIVEN_AWAY.contains(&driver));
    !(gpu.integrated || gpu.share || given_away)
}

/// Whether two PCI addresses are those of the same card: partitions differ in the function.
pub(super) fn same_slot(a: &str, b: &str) -> bool {
    let card = |address: &str| address.split('.').next().unwrap_or_default().to_owned();
    card(a) == card(b)
}

fn notice(def: &VendorDef, answering: usize, silent: &[&str], slot: &impl Fn(&str) -> Option<String>) -> Notice {
    let place = |address: &&str| match slot(address) {
        Some(slot) => format!("{address} (slot {slot})"),
        None => (*address).to_owned(),
    };
    let (total, names) = (answering + silent.len(), silent.iter().map(place).collect::<Vec<_>>().join(", "));
    let (them, does, its) = if silent.len() == 1 { ("it", "does", "its") } else { ("them", "do", "their") };
    // Drivers print an address without its function.
    let pattern =
        silent.iter().map(|a| format!("-e {}", a.split('.').next().unwrap_or(a))).collect::<Vec<_>>().join(" ");
    let text = format!(
        "{total} on the PCI bus, {answering} {answer}: the {name} at {names} {does} not; read `dmesg | grep -i {pattern}`, then \
         switch the machine off and on again; if that does not bring {them} back, check {its} seat and power cables",
        answer = if answering == 1 { "answers" } else { "answer" },
        name = if silent.len() == 1 { def.name.to_owned() } else { format!("{}s", def.name) },
    );
    Notice { severity: Severity::Error, text }
}

#[cfg(test)]
mod tests {
    use labd_gpu::Vendor;

    use super::*;

    fn gpu(vendor: Vendor, bus: u8, driver: Option<&str>) -> BusGpu {
        BusGpu {
            address: format!("0000:{bus:02x}:00.0"),
            vendor,
            model: 0x2330,
            vga: false,
            driver: driver.map(str::to_owned),
            integrated: false,
            share: false,
        }
    }

    fn h100(bus: u8) -> BusGpu {
        gpu(Vendor::Nvidia, bus, Some("nvidia"))
    }

    /// Texts of the notices after as long as it takes, where these answer.
    fn said(bus: &[BusGpu], listed: &[&BusGpu]) -> Vec<String> {
        let listed = listed.iter().map(|gpu| gpu.address.clone()).collect();
        let at = |s: i64| Timestamp::from_millis(s * 1000);
        let mut check = BusCheck::default();
        let mut observe =
            |s| check.observe(bus, &listed, |_| true, |a| a.contains("c1").then(|| "5-1".to_owned()), at(s));
        assert_eq!(observe(0), []);
        assert_eq!(observe(29), [], "GPUs start one after the other");
        observe(30).into_iter().map(|n| n.text).collect()
    }

    #[test]
    fn eight_on_the_bus_and_seven_answer() {
        let all: Vec<BusGpu> = (0..8).map(|i| h100(0x41 + 0x10 * i)).collect();
        let listed: Vec<&BusGpu> = all.iter().collect();
        assert_eq!(said(&all, &listed), Vec::<String>::new());
        assert_eq!(
            said(&all, &listed[..7]),
            [
                "8 on the PCI bus, 7 answer: the NVIDIA GPU at 0000:b1:00.0 does not; read `dmesg | grep -i -e 0000:b1:00`, then \
              switch the machine off and on again; if that does not bring it back, check its seat and power cables"
            ]
        );
        let two = [h100(0x41), gpu(Vendor::Nvidia, 0xc1, None)];
        let text = said(&two, &[]).remove(0);
        assert!(
            text.starts_with("2 on the PCI bus, 0 answer: the NVIDIA GPUs at 0000:41:00.0, 0000:c1:00.0 (slot 5-1) do"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_the_labs_is_not_missed() {
        let (one, other) = (h100(0x41), |change: fn(&mut BusGpu)| {
            let mut gpu = gpu(Vendor::Nvidia, 0x42, None);
            gpu.model = 0x128b;
            change(&mut gpu);
            gpu
        });
        for (why, change) in [
            ("a display without a driver", (|g| g.vga = true) as fn(&mut BusGpu)),
            ("a display with a free driver", |g| g.driver = Some("nouveau".into())),
            ("a virtual machine's", |g| (g.model, g.driver) = (0x2330, Some("vfio-pci".into()))),
            ("a share", |g| (g.model, g.share) = (0x2330, true)),
            ("a Ryzen's", |g| (g.vendor, g.integrated) = (Vendor::Amd, true)),
            ("a Ryzen's with a driver", |g| {
                (g.vendor, g.integrated, g.driver) = (Vendor::Amd, true, Some("amdgpu".into()));
            }),
            ("an old Radeon", |g| (g.vendor, g.vga, g.driver) = (Vendor::Amd, true, Some("amdgpu".into()))),
        ] {
            assert_eq!(said(&[one.clone(), other(change)], &[&one]), Vec::<String>::new(), "{why}");
        }
        for (why, change) in [
            ("one more of the same", (|g| (g.vga, g.model) = (true, 0x2330)) as fn(&mut BusGpu)),
            ("made for computing", |_| ()),
            ("NVIDIA's driver computes on all it has", |g| (g.vga, g.driver) = (true, Some("nvidia".into()))),
        ] {
            assert_eq!(said(&[one.clone(), other(change)], &[&one]).len(), 1, "{why}");
        }
    }

    #[test]
    fn a_radeon_without_a_driver_beside_one_that_computes_did_not_start() {
        let instinct = gpu(Vendor::Amd, 0x41, Some("amdgpu"));
        let mut radeon = gpu(Vendor::Amd, 0x42, None);
        (radeon.vga, radeon.model) = (true, 0x744c);
        let text = said(&[instinct.clone(), radeon.clone()], &[&instinct]).concat();
        assert!(text.starts_with("2 on the PCI bus, 1 answers: the AMD GPU at 0000:42:00.0 does not"), "{text}");
        // Its driver is not loaded: it may be there for the picture.
        assert_eq!(said(&[h100(0x41), radeon.clone()], &[&h100(0x41)]), Vec::<String>::new());
        radeon.driver = Some("radeon".into());
        assert_eq!(said(&[instinct.clone(), radeon], &[&instinct]), Vec::<String>::new(), "an old one");
    }

    #[test]
    fn a_display_is_no_gpu_that_should_compute() {
        let mut display = gpu(Vendor::Nvidia, 0x03, None);
        (display.vga, display.model) = (true, 0x128b);
        let mut lost = gpu(Vendor::Nvidia, 0x42, None);
        lost.vga = true;
        let count = |bus: &[BusGpu]| computing(bus, vendor::of(Vendor::Nvidia).expect("a vendor"));
        assert_eq!((count(&[]), count(&[display.clone()]), count(&[display.clone(), h100(0x41)])), (0, 0, 1));
        assert_eq!(count(&[display, h100(0x41), lost]), 2, "one more of the same");
    }

    #[test]
    fn a_notice_goes_with_its_cause_and_begins_anew() {
        let all = [h100(0x41), h100(0x42)];
        let (both, one) = (all.iter().map(|g| g.address.clone()).collect(), BTreeSet::from([all[0].address.clone()]));
        let mut check = BusCheck::default();
        let mut observe = |listed: &BTreeSet<String>, counts: bool, s: i64| {
            check.observe(&all, listed, |_| counts, |_| None, Timestamp::from_millis(s * 1000)).len()
        };
        assert_eq!((observe(&one, true, 0), observe(&one, true, 60)), (0, 1));
        assert_eq!((observe(&both, true, 61), observe(&one, true, 62), observe(&one, true, 70)), (0, 0, 0));
        assert_eq!((observe(&one, true, 92), observe(&one, false, 93)), (1, 0), "its driver says what is wrong");
    }

    #[test]
    fn partitions_share_a_slot_of_the_bus() {
        assert!(same_slot("0000:41:00.0", "0000:41:00.1") && !same_slot("0000:41:00.0", "0000:42:00.0"));
    }
}
