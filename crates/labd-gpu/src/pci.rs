//! PCI devices as the kernel shows them: addresses, where they are attached, which of them are GPUs. Pure over a root
//! path, `/` on a real machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Vendor, files};

/// PCI vendor id of NVIDIA, as in `vendor` of sysfs.
const NVIDIA: u64 = 0x10de;
/// PCI vendor id of AMD's (once ATI's) GPUs.
const AMD: u64 = 0x1002;

/// Class of a VGA controller (PCI's own list of class codes, as `linux/pci_ids.h` has it).
const VGA: u64 = 0x0300;
/// Class of an encryption controller, which the security processor of an AMD CPU is.
const ENCRYPTION: u64 = 0x1080;

/// PCI address as it is written everywhere in labd, such as `0000:41:00.0`, out of any of the ways in which drivers
/// write it: `PCI:0000:06:00` (NVIDIA's kernel lines), `00000000:41:00.0` (NVML), `0000:C1:00.0`, `18:00.0`. A domain
/// that is missing is 0, and so is a function: GPUs are function 0. `None` for everything else.
pub fn address(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("PCI:").or_else(|| text.strip_prefix("pci:")).unwrap_or(text);
    let (place, function) = match text.split_once('.') {
        Some((place, function)) => (place, number(function, 1, 7)?),
        None => (text, 0),
    };
    let mut parts = place.rsplit(':');
    let device = number(parts.next()?, 2, 0x1f)?;
    let bus = number(parts.next()?, 2, 0xff)?;
    let domain = parts.next().map_or(Some(0), |domain| number(domain, 8, u32::MAX))?;
    if parts.next().is_some() {
        return None;
    }
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
}

/// Hexadecimal number of at most `digits` digits and at most `most`; none shorter than a driver would write it.
fn number(text: &str, digits: usize, most: u32) -> Option<u32> {
    let right = (digits.min(2)..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    right.then(|| u32::from_str_radix(text, 16).ok())?.filter(|n| *n <= most)
}

/// Place where a device is attached: its NUMA node, and the CPUs near it in the kernel's list notation. Both absent
/// where the kernel does not know (a machine with one node says -1).
pub fn locality(root: &Path, pci: &str) -> (Option<u32>, Option<String>) {
    let dir = directory(root, pci);
    let node = files::text(&dir.join("numa_node")).and_then(|n| n.parse().ok());
    let cpus = files::text(&dir.join("local_cpulist"));
    (node, cpus)
}

/// Symbol of [`Reading::error`](crate::Reading::error) for a GPU in [`Power::Failed`].
pub const POWER_FAILED: &str = "runtime-status-error";

/// State of a device's power, by the kernel's runtime power management.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It is on, or the kernel does not say, or nothing may put it to sleep (`unsupported`).
    On,
    /// It sleeps, or is about to sleep or to wake. A question to its driver, and many of the driver's files, wake it.
    Asleep,
    /// It could not be put to sleep or woken (`error`). Every further try fails, so nothing can open it any more.
    Failed,
}

/// State of a device's power. The file is the kernel's own: reading it wakes nothing.
pub fn power(root: &Path, pci: &str) -> Power {
    match files::text(&directory(root, pci).join("power/runtime_status")).as_deref() {
        Some("suspended" | "suspending" | "resuming") => Power::Asleep,
        Some("error") => Power::Failed,
        _ => Power::On,
    }
}

/// Name of the slot that a device is in, as it is printed on the board or the chassis where the firmware says so.
pub fn slot(root: &Path, pci: &str) -> Option<String> {
    // The file names the device without its function: `0000:41:00`.
    let place = pci.split('.').next()?;
    fs::read_dir(root.join("sys/bus/pci/slots")).ok()?.flatten().find_map(|slot| {
        let address = files::text(&slot.path().join("address"))?;
        (address == place).then(|| slot.file_name().to_string_lossy().into_owned())
    })
}

/// GPU on the PCI bus, as the kernel shows it whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusGpu {
    /// Address, such as `0000:41:00.0`.
    pub address: String,
    /// Vendor.
    pub vendor: Vendor,
    /// Vendor's number of the model.
    pub model: u64,
    /// Whether it is a VGA controller, which a card that only shows a picture is too; Instincts and most of NVIDIA's cards
    /// for data centres are not.
    pub vga: bool,
    /// Kernel driver that has it.
    pub driver: Option<String>,
    /// Whether it is part of a CPU: its device also is that CPU's security processor.
    pub integrated: bool,
    /// Whether it is a share of another one, made for a virtual machine (SR-IOV).
    pub share: bool,
}

impl BusGpu {
    /// Whether it has no driver and should have one. Graphics of a CPU, and a VGA controller, which may be there for the
    /// picture alone, should where something says so (`wanted`); a share is a virtual machine's.
    pub fn lacks_driver(&self, wanted: bool) -> bool {
        self.driver.is_none() && !self.share && (wanted || !(self.integrated || self.vga))
    }
}

/// GPUs on the PCI bus, whether or not a driver runs them, by address: what there is before any vendor's library is
/// asked, and what is still there when a library says that a GPU is gone.
pub fn gpus(root: &Path) -> Vec<(String, Vendor)> {
    let mut found: Vec<_> = each_gpu(root).map(|(_, address, vendor, _)| (address, vendor)).collect();
    found.sort();
    found
}

/// GPUs on the PCI bus with what tells which of them should compute, by address.
pub fn bus(root: &Path) -> Vec<BusGpu> {
    let mut found: Vec<BusGpu> = each_gpu(root)
        .map(|(dir, address, vendor, class)| BusGpu {
            vendor,
            model: files::number(&dir.join("device")).unwrap_or(0),
            vga: class >> 8 == VGA,
            driver: fs::read_link(dir.join("driver"))
                .ok()
                .and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned())),
            integrated: vendor == Vendor::Amd && integrated(root, &address),
            share: dir.join("physfn").exists(),
            address,
        })
        .collect();
    found.sort_by(|a, b| a.address.cmp(&b.address));
    found
}

/// Directory, address, vendor and class of each GPU on the bus.
fn each_gpu(root: &Path) -> impl Iterator<Item = (PathBuf, String, Vendor, u64)> {
    let entries = fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let dir = entry.path();
        let class = files::number(&dir.join("class"))?;
        // Display controllers (0x03), and processing accelerators (0x12), which is what Instincts are.
        if !matches!(class >> 16, 0x03 | 0x12) {
            return None;
        }
        let vendor = match files::number(&dir.join("vendor"))? {
            NVIDIA => Vendor::Nvidia,
            AMD => Vendor::Amd,
            _ => return None,
        };
        let address = address(&entry.file_name().to_string_lossy())?;
        Some((dir, address, vendor, class))
    })
}

/// Whether a GPU is part of a CPU, which shows without its driver: since Ryzen, AMD's processors have graphics, sound and
/// their security processor as functions of one device.
fn integrated(root: &Path, address: &str) -> bool {
    let Some((device, _)) = address.split_once('.') else { return false };
    let class = |function: u8| files::number(&directory(root, &format!("{device}.{function}")).join("class"));
    (1..8).any(|function| class(function).is_some_and(|class| class >> 8 == ENCRYPTION))
}

/// Directory of a device in sysfs.
pub(crate) fn directory(root: &Path, pci: &str) -> std::path::PathBuf {
    root.join("sys/bus/pci/devices").join(pci)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_in_one_way() {
        for (text, want) in [
            ("PCI:0000:06:00", Some("0000:06:00.0")),
            ("PCI:0000:06:00.0", Some("0000:06:00.0")),
            ("0000:06:00.0", Some("0000:06:00.0")),
            ("00000000:C1:00.0", Some("0000:c1:00.0")),
            ("PCI:0009:01:00", Some("0009:01:00.0")),
            ("10000:01:00.1", Some("10000:01:00.1")),
            ("18:00.0", Some("0000:18:00.0")),
            ("0000:05:1f.7", Some("0000:05:1f.7")),
            ("0000:05:20.0", None),
            ("0000:05:00.8", None),
            ("invalid-bdf.0", None),
            ("12:30:45:00", None),
            ("1:2", None),
            ("", None),
        ] {
            assert_eq!(address(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn the_bus_tells_a_cpus_graphics_and_a_share_from_a_gpu() {
        let root = tempfile::tempdir().expect("a directory");
        let device = |pci: &str, vendor: &str, class: &str| {
            let dir = directory(root.path(), pci);
            fs::create_dir_all(&dir).expect("a directory");
            for (name, text) in [("vendor", vendor), ("class", class), ("device", "0x164e")] {
                fs::write(dir.join(name), format!("{text}\n")).expect("a file");
            }
            dir
        };
        // A Ryzen's graphics, sound and security processor; a Radeon with a USB controller; an H100 and a share of it.
        device("0000:11:00.0", "0x1002", "0x030000");
        device("0000:11:00.1", "0x1002", "0x040300");
        device("0000:11:00.2", "0x1022", "0x108000");
        device("0000:03:00.0", "0x1002", "0x030000");
        device("0000:03:00.2", "0x1002", "0x0c0330");
        let h100 = device("0000:41:00.0", "0x10de", "0x030200");
        std::os::unix::fs::symlink("../../drivers/nvidia", h100.join("driver")).expect("a link");
        fs::create_dir(device("0000:41:00.4", "0x10de", "0x030200").join("physfn")).expect("a directory");
        let seen: Vec<_> =
            bus(root.path()).into_iter().map(|g| (g.address, g.vga, g.driver, g.integrated, g.share)).collect();
        assert_eq!(
            seen,
            [
                ("0000:03:00.0".to_owned(), true, None, false, false),
                ("0000:11:00.0".to_owned(), true, None, true, false),
                ("0000:41:00.0".to_owned(), false, Some("nvidia".to_owned()), false, false),
                ("0000:41:00.4".to_owned(), false, None, false, true),
            ]
        );
    }

    #[test]
    fn locality_is_what_the_kernel_knows() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = directory(root.path(), "0000:41:00.0");
        fs::create_dir_all(&dir).expect("a directory");
        assert_eq!(locality(root.path(), "0000:41:00.0"), (None, None));
        fs::write(dir.join("numa_node"), "-1\n").expect("a file");
        fs::write(dir.join("local_cpulist"), "\n").expect("a file");
        assert_eq!(locality(root.path(), "0000:41:00.0"), (None, None));
        fs::write(dir.join("numa_node"), "1\n").expect("a file");
        fs::write(dir.join("local_cpulist"), "32-63,96-127\n").expect("a file");
        assert_eq!(locality(root.path(), "0000:41:00.0"), (Some(1), Some("32-63,96-127".into())));
    }

    #[test]
    fn a_device_sleeps_only_where_the_kernel_says_so() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = directory(root.path(), "0000:41:00.0").join("power");
        assert_eq!(power(root.path(), "0000:41:00.0"), Power::On, "no such file");
        fs::create_dir_all(&dir).expect("a directory");
        for (status, want) in [
            ("active", Power::On),
            ("unsupported", Power::On),
            ("", Power::On),
            ("of a later kernel", Power::On),
            ("suspended", Power::Asleep),
            ("suspending", Power::Asleep),
            ("resuming", Power::Asleep),
            ("error", Power::Failed),
        ] {
            fs::write(dir.join("runtime_status"), format!("{status}\n")).expect("a file");
            assert_eq!(power(root.path(), "0000:41:00.0"), want, "{status}");
        }
    }

    #[test]
    fn gpus_are_found_without_any_driver_and_a_slot_by_its_address() {
        let root = tempfile::tempdir().expect("a directory");
        for (pci, vendor, class) in [
            ("0000:03:00.0", "0x1a03", "0x030000"),
            ("0000:c1:00.0", "0x1002", "0x120000"),
            ("0000:41:00.0", "0x10de", "0x030200"),
            ("0000:41:00.1", "0x10de", "0x040300"),
        ] {
            let dir = directory(root.path(), pci);
            fs::create_dir_all(&dir).expect("a directory");
            fs::write(dir.join("vendor"), format!("{vendor}\n")).expect("a file");
            fs::write(dir.join("class"), format!("{class}\n")).expect("a file");
        }
        let slot_dir = root.path().join("sys/bus/pci/slots/5-1");
        fs::create_dir_all(&slot_dir).expect("a directory");
        fs::write(slot_dir.join("address"), "0000:41:00\n").expect("a file");
        assert_eq!(
            gpus(root.path()),
            [("0000:41:00.0".to_owned(), Vendor::Nvidia), ("0000:c1:00.0".to_owned(), Vendor::Amd)]
        );
        assert_eq!(slot(root.path(), "0000:41:00.0").as_deref(), Some("5-1"));
        assert_eq!(slot(root.path(), "0000:c1:00.0"), None);
    }
}
