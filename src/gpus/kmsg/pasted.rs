//! Lines of the kernel as people paste them: `dmesg` with its times, the journal, a record of `/dev/kmsg`. Pure.

use super::{Assembler, Record};
use crate::gpus::faults::Fault;

/// One pasted line, and what it tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Line as it was given.
    pub line: String,
    /// Row of the fault; absent where the line tells of none, or ends in another one.
    pub fault: Option<&'static Fault>,
    /// PCI address that the message names, in this line or in one before.
    pub device: Option<String>,
}

impl Explained {
    /// Address of the GPU: a switch between GPUs and a port of the machine are none.
    pub fn gpu(&self) -> Option<&str> {
        let fault = self.fault?;
        let other = fault.code.starts_with("nvswitch-") || fault.code == "pcie-down";
        self.device.as_deref().filter(|_| !other)
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
        let (fault, device) = told.map_or((None, None), |(fault, device, _)| (Some(fault), device));
        all.push(Explained { line: line.to_owned(), fault, device });
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
    // `[   12.345678]`, `[Sun Nov 29 06:31:13 2026]`, and who printed it: `[  T812]`.
    while let Some((inside, after)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let inside = inside.trim();
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if let Some((seconds, fraction)) = inside.split_once('.').filter(|(a, b)| digits(a) && digits(b)) {
            let micros = format!("{fraction:0<6}").get(..6).and_then(|f| f.parse().ok()).unwrap_or(0);
            usec = seconds.parse::<u64>().ok().and_then(|s| s.checked_mul(1_000_000)?.checked_add(micros)).unwrap_or(0);
        } else if inside.strip_prefix(['T', 'C']).is_some_and(digits) {
            caller = Some(inside.to_owned());
        } else if !(inside.contains(':')
            && inside.split(' ').next_back().is_some_and(|year| year.len() == 4 && digits(year)))
        {
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
        assert_eq!(told(text), [(None, None), (None, None), (Some("xid-79"), Some("0000:18:00.0".to_owned()))]);
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
            "[3.0] amdgpu 0000:03:00.0: amdgpu: Direct firmware load for amdgpu/gc_11_0_0_pfp.bin failed with error -2";
        let failed = |gpu: &str, s: u32| format!("[{s}.0] amdgpu {gpu}: amdgpu: Fatal error during GPU init");
        let codes = |text: &str| told(text).into_iter().map(|(code, _)| code.unwrap_or("-")).collect::<Vec<_>>();
        let both = |second: &str| codes(&format!("{missing}\n{second}"));
        assert_eq!(both(&failed("0000:03:00.0", 4)), ["amdgpu-firmware", "amdgpu-firmware"]);
        assert_eq!(
            both("[4.0] [drm:psp_hw_init [amdgpu]] *ERROR* PSP firmware loading failed"),
            ["amdgpu-firmware"; 2]
        );
        assert_eq!(both(&failed("0000:04:00.0", 4)), ["amdgpu-firmware", "amdgpu-init-failed"], "another GPU");
        assert_eq!(both(&failed("0000:03:00.0", 400)), ["amdgpu-firmware", "amdgpu-init-failed"], "another time");
    }
}
