//! Lines of the kernel as people paste them: `dmesg` with its times, the journal, a record of `/dev/kmsg`. Pure.

use super::{Assembler, Record, first_address, instance};
use crate::gpus::{
    faults::{Fault, Scope},
    vendor,
};

/// Drivers of the ports that PCI devices are behind; until Linux 4.19 those for hot-plugging had a name of their own.
const PORT_DRIVERS: [&str; 2] = ["pcieport", "pciehp"];

/// One pasted line, and what it tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Line as it was given.
    pub line: String,
    /// Row of the fault; absent where the line tells of none, or ends in another one.
    pub fault: Option<&'static Fault>,
    /// PCI address that the message names, in this line or in one before.
    pub device: Option<String>,
    /// GPU instance of MIG that the message names.
    pub instance: Option<u32>,
    /// What is at that address.
    pub is: Is,
}

/// What is at the address that a line names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// GPU, as far as the line says.
    Gpu,
    /// Port of the machine: the fault is of the GPUs behind it.
    Port,
    /// Something else, such as a switch between GPUs or a disk.
    Other,
}

impl Explained {
    /// Address of the GPU.
    pub fn gpu(&self) -> Option<&str> {
        self.device.as_deref().filter(|_| self.is == Is::Gpu)
    }
}

/// What the device is that a line about a fault names. Of PCI errors, the driver before the address says so; a device whose
/// error its port received can be a GPU.
fn what_is(fault: &Fault, text: &str, device: Option<&str>) -> Is {
    let (driver, rest) = text.split_once(' ').unwrap_or_default();
    let own = rest.split_once(' ').and_then(|(own, _)| first_address(own));
    match fault.scope {
        Scope::Gpu => Is::Gpu,
        Scope::PciDevice if own.is_some() && own.as_deref() != device => Is::Gpu,
        Scope::PciDevice if PORT_DRIVERS.contains(&driver) => Is::Port,
        Scope::PciDevice if vendor::ALL.iter().any(|def| def.driver == driver) => Is::Gpu,
        Scope::Switch | Scope::PciDevice => Is::Other,
    }
}

/// What each line of a text tells of. Lines that belong to the one before (` DEVICE=...` of `/dev/kmsg`) are part of it.
pub fn explain(text: &str) -> Vec<Explained> {
    let mut assembler = Assembler::default();
    let mut lines = text.lines().peekable();
    let mut all = Vec::new();
    while let Some(line) = lines.next() {
        let mut whole = line.to_owned();
        if is_record(line) {
            while let Some(more) = lines.next_if(|l| l.starts_with(' ') && l.contains('=')) {
                whole.push('\n');
                whole.push_str(more);
            }
        }
        let told = record(&whole).and_then(|record| assembler.take(record));
        let is = told.as_ref().map_or(Is::Other, |(fault, device, text)| what_is(fault, text, device.as_deref()));
        let instance = told.as_ref().and_then(|(_, _, text)| instance(text));
        let (fault, device) = told.map_or((None, None), |(fault, device, _)| (Some(fault), device));
        all.push(Explained { line: line.to_owned(), fault, device, instance, is });
    }
    all
}

/// Whether a line begins as a record of `/dev/kmsg` does: `3,1187,155044078590,-;text`.
fn is_record(line: &str) -> bool {
    let Some((header, _)) = line.split_once(';') else { return false };
    let numbers = header.split(',').take(3);
    header.split(',').count() >= 4 && numbers.clone().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Record that a line stands for; `None` where it is one that a process wrote.
fn record(line: &str) -> Option<Record> {
    if is_record(line) {
        // Where somebody quoted it, so are its ends of lines. The kernel itself writes a backslash as `\x5c`.
        return Record::read(&line.replace("\\n ", "\n "));
    }
    let (mut text, mut usec, mut caller) = (line.trim(), 0, None);
    // The journal and syslog: `Nov 29 06:31:13 host kernel: text`.
    if let Some((_, after)) = text.split_once("kernel: ") {
        text = after.trim_start();
    }
    // `dmesg --decode`: `kern  :err   : [   12.345678] text`; `dmesg --raw`: `<3>[...`.
    if let Some(after) = text.strip_prefix("kern").and_then(|rest| rest.splitn(3, ':').nth(2)) {
        text = after.trim_start();
    }
    if let Some((level, after)) = text.strip_prefix('<').and_then(|rest| rest.split_once('>'))
        && level.bytes().all(|b| b.is_ascii_digit())
    {
        text = after.trim_start();
    }
    // Times, and who printed it: `[  T812]`.
    while let Some((inside, after)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let inside = inside.trim();
        if let Some(at) = time(inside) {
            usec = usec.max(at);
        } else if inside.strip_prefix(['T', 'C']).is_some_and(digits) {
            caller = Some(inside.to_owned());
        } else {
            break;
        }
        text = after.trim_start();
    }
    // `dmesg --time-format=iso`: `2026-11-29T06:31:13,123456+00:00 text`.
    if let Some((time, after)) = text.split_once(' ')
        && time.len() >= 19
        && time.as_bytes().get(10) == Some(&b'T')
        && time.starts_with(|c: char| c.is_ascii_digit())
    {
        text = after.trim_start();
    }
    Some(Record { usec, continues: false, caller, text: text.to_owned(), device: None })
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Time in one of the forms of `dmesg`, in microseconds since boot, 0 where it does not say so: `12.345678`, with `--show-delta`
/// `12.345678 <    0.000005>`, with `--ctime` `Sun Nov 29 06:31:13 2026`, with `--human` or `--reltime` `Nov29 06:31`, then
/// `+0.000005`. `None` for anything else in brackets.
fn time(inside: &str) -> Option<u64> {
    let absolute = inside.split_once('<').map_or(inside, |(before, _)| before.trim_end());
    let number = absolute.strip_prefix('+').unwrap_or(absolute);
    if let Some((seconds, fraction)) = number.split_once('.').filter(|(a, b)| digits(a) && digits(b)) {
        let micros = format!("{fraction:0<6}").get(..6).and_then(|f| f.parse().ok()).unwrap_or(0);
        let usec = seconds.parse::<u64>().ok().and_then(|s| s.checked_mul(1_000_000)?.checked_add(micros));
        return Some(usec.filter(|_| number == absolute).unwrap_or(0));
    }
    let words: Vec<&str> = absolute.split_whitespace().collect();
    let clock = |word: &str| word.len() >= 5 && word.split(':').all(|part| part.len() == 2 && digits(part));
    let is_date = match words[..] {
        [day, at] => clock(at) && day.len() == 5 && day.get(3..).is_some_and(digits),
        [_, _, _, at, year] => clock(at) && year.len() == 4 && digits(year),
        // `--show-delta --notime`: only the difference.
        [] => !inside.is_empty(),
        _ => false,
    };
    is_date.then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<(Option<&'static str>, Option<String>)> {
        explain(text).into_iter().map(|e| (e.fault.map(|f| f.code), e.gpu().map(str::to_owned))).collect()
    }

    #[test]
    fn every_form_in_which_a_line_is_pasted_is_read() {
        let line = "NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.";
        for text in [
            line.to_owned(),
            format!("[12345.678901] {line}"),
            format!("[    5.123456][  T812] {line}"),
            format!("[Sun Nov 29 06:31:13 2026] {line}"),
            format!("<3>[ 12.3] {line}"),
            format!("[12345.678901 <    0.000005>] {line}"),
            format!("[<    0.000005>] {line}"),
            format!("[Sun Nov 29 06:31:13 2026 <    0.000005>] {line}"),
            format!("[Nov29 06:31] {line}"),
            format!("[  +0.000005] {line}"),
            format!("kern  :err   : [  +0.000005] {line}"),
            format!("kern  :err   : [ 12.345678] {line}"),
            format!("Nov 29 06:31:13 gpu-box kernel: {line}"),
            format!("2026-11-29T06:31:13,123456+00:00 {line}"),
            format!("2026-11-29T06:31:13+0000 gpu-box kernel: [ 12.3] {line}"),
            format!("3,2503,9202,-;{line}"),
            format!("3,2503,9202,-,caller=T812;{line}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:05:00.0"),
            format!("3,2503,9202,-,caller=T812;{line}\\n SUBSYSTEM=pci\\n DEVICE=+pci:0000:05:00.0"),
        ] {
            assert_eq!(told(&text), [(Some("xid-79"), Some("0000:05:00.0".to_owned()))], "{text}");
            assert_eq!(record(&text).map(|r| r.text).as_deref(), Some(line), "{text}");
        }
    }

    #[test]
    fn a_message_of_several_lines_is_told_of_at_its_last_with_the_gpu_of_its_first() {
        let text = "[1.0] NVRM: The NVIDIA GPU 0000:18:00.0\n[1.0] NVRM: (PCI ID: 10de:2901) installed in this system has\n\
                    [1.0] NVRM: fallen off the bus and is not responding to commands.";
        let want = [(None, None), (None, None), (Some("xid-79"), Some("0000:18:00.0".to_owned()))];
        assert_eq!(told(text), want);
        // `dmesg --human`, and the lines of one record.
        let text = "[Nov29 06:31] NVRM: The NVIDIA GPU 0000:18:00.0\n\
                    [  +0.000002] NVRM: (PCI ID: 10de:2901) installed in this system has\n               \
                    NVRM: fallen off the bus and is not responding to commands.";
        assert_eq!(told(text), want);
    }

    #[test]
    fn what_stands_in_brackets_and_is_no_time_stays() {
        for text in
            ["[drm] GPU recovery disabled.", "[drm:a [b]] *ERROR* c", "[gfxhub] page fault", "[1] a", "[] a", "[a b] c"]
        {
            assert_eq!(record(text).map(|r| r.text).as_deref(), Some(text));
        }
        assert_eq!(record("[12.5 <0.1>] a").map(|r| r.usec), Some(12_500_000));
    }

    #[test]
    fn a_pci_error_names_a_gpu_only_where_its_driver_or_its_port_says_so() {
        let is = |text: &str| {
            let [explained] = &explain(text)[..] else { panic!("{text}") };
            (explained.fault.map_or("-", |f| f.code), explained.is, explained.gpu().map(str::to_owned))
        };
        let port = |text: &str| is(&format!("pcieport 0000:00:01.1: {text}"));
        assert_eq!(port("pciehp: Slot(0): Link Down"), ("pcie-down", Is::Port, None));
        assert_eq!(port("DPC: containment event, status:0x1f01 source:0x0000"), ("pcie-down", Is::Port, None));
        let fatal = "PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, (Receiver ID)";
        assert_eq!(port(fatal), ("pcie-fatal", Is::Port, None));
        let own = "AER: Uncorrected (Fatal) error received: 0000:00:01.1";
        assert_eq!(port(own), ("pcie-fatal", Is::Port, None), "its own error");
        let received = "AER: Uncorrectable (Fatal) error message received from 0000:03:00.0";
        assert_eq!(port(received), ("pcie-fatal", Is::Gpu, Some("0000:03:00.0".to_owned())));
        assert_eq!(
            is(&format!("nvidia 0000:3b:00.0: {fatal}")),
            ("pcie-fatal", Is::Gpu, Some("0000:3b:00.0".to_owned()))
        );
        let disk = "nvme 0000:02:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer";
        assert_eq!(is(disk), ("pcie-nonfatal", Is::Other, None));
        assert_eq!(is("pciehp 0000:00:01.1:pcie004: Slot(9): Link Down"), ("pcie-down", Is::Port, None), "Linux 4.19");
    }

    #[test]
    fn a_quoted_record_names_its_gpu() {
        let text = "4,2101,5678,-;NVRM: The NVIDIA GPU 0000:01:00.0\\n SUBSYSTEM=pci\\n DEVICE=+pci:0000:01:00.0\n\
                    4,2103,5680,-;NVRM: fallen off the bus and is not responding to commands.";
        assert_eq!(told(text), [(None, None), (Some("xid-79"), Some("0000:01:00.0".to_owned()))]);
        let device = "3,1,1,-;[drm:psp_hw_start [amdgpu]] *ERROR* PSP create ring failed!\\n DEVICE=+pci:0000:c7:00.0";
        assert_eq!(told(device), [(Some("amdgpu-init-failed"), Some("0000:c7:00.0".to_owned()))]);
    }

    #[test]
    fn what_is_unknown_or_not_the_kernels_is_none_and_a_switch_is_no_gpu() {
        assert_eq!(told("hello\n\n[drm] initialized"), [(None, None), (None, None), (None, None)]);
        assert_eq!(
            told("12,2601,9300,-;systemd[1]: NVRM: Xid (PCI:0000:05:00): 79, a user wrote this"),
            [(None, None)]
        );
        let switch = explain("nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal, Link 30 LTSSM Fault Up");
        assert_eq!((switch[0].gpu(), switch[0].device.as_deref()), (None, Some("0000:a9:00.0")));
    }

    #[test]
    fn a_gpu_without_its_firmware_is_not_broken() {
        let missing =
            "[3.0] amdgpu 0000:03:00.0: Direct firmware load for amdgpu/gc_11_0_0_pfp.bin failed with error -2";
        let failed = |gpu: &str, s: u32| format!("[{s}.0] amdgpu {gpu}: amdgpu: Fatal error during GPU init");
        let codes = |text: &str| told(text).into_iter().map(|(code, _)| code.unwrap_or("-")).collect::<Vec<_>>();
        let both = |second: &str| codes(&format!("{missing}\n{second}"));
        let excused = ["amdgpu-firmware", "amdgpu-no-firmware"];
        assert_eq!(both(&failed("0000:03:00.0", 4)), excused);
        assert_eq!(both("[4.0] [drm:psp_hw_init [amdgpu]] *ERROR* PSP firmware loading failed"), excused);
        assert_eq!(both("[4.0] amdgpu: probe of 0000:03:00.0 failed with error -19"), excused);
        let broken = ["amdgpu-firmware", "amdgpu-init-failed"];
        assert_eq!(both(&failed("0000:04:00.0", 4)), broken, "another GPU");
        assert_eq!(both(&failed("0000:03:00.0", 400)), broken, "another time");
        // A file that the driver does without, beside a card that is broken.
        for file in ["isp_4_1_0.bin", "gc_11_0_1_mes_2.bin", "raven_dmcu.bin"] {
            let text = format!("{}\n{}", missing.replace("gc_11_0_0_pfp.bin", file), failed("0000:03:00.0", 4));
            assert_eq!(codes(&text), broken, "{file}");
        }
        // A number says that it is something else: an old kernel does without this file.
        let [file, hardware, end] = [
            missing.replace("gc_11_0_0_pfp.bin", "vega20_ta.bin"),
            "[4.0] [drm:amdgpu_device_init [amdgpu]] *ERROR* hw_init of IP block <psp> failed -22".to_owned(),
            failed("0000:03:00.0", 4),
        ];
        assert_eq!(
            codes(&format!("{file}\n{hardware}\n{end}")),
            ["amdgpu-firmware", "amdgpu-init-failed", "amdgpu-init-failed"]
        );
        // Versions can end like the files that there are others for.
        let needed = missing.replace("gc_11_0_0_pfp.bin", "sdma_4_4_2.bin");
        let early = "[3.1] [drm:amdgpu_device_init [amdgpu]] *ERROR* early_init of IP block <sdma_v4_4_2> failed -19";
        assert_eq!(codes(&format!("{needed}\n{early}")), excused);
        let debian = "[3.0] amdgpu 0000:03:00.0: firmware: failed to load amdgpu/gc_11_0_0_pfp.bin (-2)";
        assert_eq!(codes(&format!("{debian}\n{}", failed("0000:03:00.0", 4))), excused);
    }
}
