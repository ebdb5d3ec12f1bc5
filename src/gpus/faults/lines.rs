//! Lines of the kernel of which more than a pattern must be read: numbers of NVIDIA's driver with what decides beside them,
//! AMD's counts of errors, files of firmware, and lines that look like a fault and tell of none. Pure.

use super::{Detail, Sign, is_in};

/// Step in which amdgpu's counts of errors grow from reads of a GPU that sleeps, in its lines as in its files: each of its
/// registers answers with 16 ones. 16 of them at once were posted of an R9700 (a gfx1201: 1048560 "uncorrectable hardware
/// errors").
pub(in crate::gpus) const ALL_ONES: u64 = 0xffff;

/// Lines that tell of no fault, though a pattern of the table fits them.
const QUIET: [&str; 6] = [
    // A port that was reset or that recovered by itself; since Linux 6.16 also after a reset of the bus.
    "pciehp: *ink Down/Up ignored",
    // Until Linux 4.18: the slot is being switched off or on already.
    "pciehp*ink Down event ignored",
    "pciehp*ink Down event queued",
    // A display at a dock: the GPU computes. At boot the driver gives up, and says so in another line.
    "late_init of IP block <dm> failed",
    // Somebody gave the GPU to a virtual machine.
    "NVRM: *is already bound to vfio-pci",
    // Beside the count of bad pages: that it may be exceeded.
    "GPU will be initialized due to bad_page_threshold",
];

/// Files of AMD's firmware that a driver does without, or has another file for: the camera's, those of virtual functions,
/// those of a newer layout. Newer kernels do not complain of them. What is missing else keeps a GPU from starting, but for
/// `vega20_ta.bin` and its like on old kernels.
const OPTIONAL_FIRMWARE: [&str; 10] = [
    "amdgpu/isp_",
    "_cap.bin",
    "_dmcu.bin",
    "_uni_mes.bin",
    "_mes_2.bin",
    "_pfp_2.bin",
    "_me_2.bin",
    "_ce_2.bin",
    "_mec_2.bin",
    "_mec2_2.bin",
];

/// Whether a line says that a file of AMD's firmware is missing that the driver cannot do without.
pub(in crate::gpus) fn is_needed_firmware(line: &str) -> bool {
    let missing = ["Direct firmware load for amdgpu/*failed", "firmware: failed to load amdgpu/"];
    missing.iter().any(|pattern| is_in(pattern, line)) && !OPTIONAL_FIRMWARE.iter().any(|part| line.contains(part))
}

/// What was read of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Sign of a fault.
    Sign(Sign<'static>),
    /// Line that looks like a fault and is none.
    NoFault,
    /// Line of which patterns say what it is.
    Other,
}

/// Sign that a line is.
pub(super) fn read(line: &str) -> Read {
    match xid(line) {
        Some((number, text)) => Read::Sign(of_xid(number, text)),
        None if QUIET.iter().any(|pattern| is_in(pattern, line)) => Read::NoFault,
        None => ras(line).unwrap_or(Read::Other),
    }
}

/// Xid of a line such as `NVRM: Xid (PCI:0000:06:00): 79, GPU has fallen off the bus.`, and what follows it.
fn xid(line: &str) -> Option<(u32, &str)> {
    let (_, rest) = line.split_once("NVRM: Xid (")?;
    let (_, text) = rest.split_once("): ")?;
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

fn of_xid(number: u32, text: &str) -> Sign<'static> {
    let detail = match number {
        74 => nvlink(text),
        94 => text.contains("RST: Yes").then_some(Detail::NeedsReset),
        144..=150 => nvlink5(number, text),
        // The words for the numbers differ between drivers (`Node Reboot Required`, since 610 `OS Reboot`).
        154 => {
            return hexadecimal(text.rsplit_once(" to ").map_or("", |(_, to)| to))
                .map_or(Sign::Xid(154), Sign::Recovery);
        }
        _ => None,
    };
    detail.map_or(Sign::Xid(number), |detail| Sign::XidWith(number, detail))
}

/// Detail of an Xid 74 by its registers, by `WORKFLOW_NVLINK_ERR` of NVIDIA's catalog: `NVLink: fatal error detected on
/// link 14(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)`. The first, third, fourth and fifth register say something. `None`
/// where a bit wants a hand, or none is set that the catalog knows.
fn nvlink(text: &str) -> Option<Detail> {
    /// Bits that may be ignored, or that tell of a threshold after which operation continues.
    const IGNORED: [u32; 4] = [bits(&[0, 23, 30]), 0, 0, bits(&[20, 23, 26, 29])];
    /// Bits that follow from another error.
    const SECONDARY: [u32; 4] = [bits(&[1, 20]), 0, bits(&[16, 17]), 0];
    /// Bits that mean the hardware only when they come again on the same link.
    const PASSING: [u32; 4] =
        [bits(&[4, 5, 27, 29]), bits(&[0, 1, 2, 6, 16, 17, 18, 19]), 0, bits(&[18, 19, 21, 22, 24, 25, 27, 28])];
    const NONE: [u32; 4] = [0; 4];
    let (_, registers) = text.rsplit_once('(')?;
    let all: Vec<u32> = registers.split(',').map_while(hexadecimal).collect();
    let [first, _, third, fourth, fifth, ..] = all[..] else { return None };
    let set = [first, third, fourth, fifth];
    let within = |masks: [[u32; 4]; 3]| {
        set.iter().enumerate().all(|(i, bits)| bits & !masks.iter().fold(0, |all, m| all | m[i]) == 0)
    };
    if set == NONE {
        None
    } else if within([IGNORED, NONE, NONE]) {
        Some(Detail::Ignored)
    } else if within([IGNORED, SECONDARY, NONE]) {
        Some(Detail::Secondary)
    } else {
        within([IGNORED, SECONDARY, PASSING]).then_some(Detail::Passing)
    }
}

const fn bits(numbers: &[u32]) -> u32 {
    let (mut all, mut i) = (0, 0);
    while i < numbers.len() {
        all |= 1 << numbers[i];
        i += 1;
    }
    all
}

/// Detail of an Xid 144 to 150, by `WORKFLOW_NVLINK5_ERR` of NVIDIA's catalog: `RLW_RXPIPE Nonfatal XC0 i0 Link 13
/// (0x0409a0c2 0x00000008 ...)`. What is not fatal asks for no reset there; of what is fatal, two reasons for a link that
/// went down are to be ignored.
fn nvlink5(number: u32, text: &str) -> Option<Detail> {
    /// Reasons (bits 20 to 25 of the first register): software or a person took it down; a consequence of something in the
    /// host.
    const IGNORED: [u32; 2] = [0b10_0110, 0b10_1000];
    let words: Vec<&str> = text.split_whitespace().collect();
    // The last ones: a process may call itself what it likes.
    let at = words.windows(2).rposition(|two| matches!(two[0], "Fatal" | "Nonfatal") && two[1].starts_with("XC"))?;
    if words[at] == "Nonfatal" {
        return Some(Detail::Handled);
    }
    let down = at > 0 && matches!(words[at - 1], "NETIR_LINK_EVT" | "NETIR_LINK_DOWN");
    let reason = hexadecimal(text.rsplit_once('(')?.1).map(|register| register >> 20 & 0x3f);
    (number == 149 && down && reason.is_some_and(|reason| IGNORED.contains(&reason))).then_some(Detail::Ignored)
}

/// Hexadecimal number at the beginning of a text.
fn hexadecimal(text: &str) -> Option<u32> {
    let digits = text.trim_start().strip_prefix("0x")?;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    u32::from_str_radix(&digits[..end], 16).ok()
}

/// Sign of a count of errors that amdgpu found: `socket: 4, die: 0, 1 new uncorrectable hardware errors detected in umc
/// block`.
fn ras(line: &str) -> Option<Read> {
    if !line.contains("amdgpu") {
        return None;
    }
    let (before, after) = line.split_once(" hardware errors detected in ")?;
    let mut words = before.split_whitespace().rev();
    let kind = words.next()?;
    let count: u64 = words.find(|word| *word != "new")?.parse().ok()?;
    // Totals are told beside what is new, and again whenever somebody reads them.
    let new = !after.starts_with("total ") && !count.is_multiple_of(ALL_ONES);
    let detail = match (kind, after.split_whitespace().next()) {
        ("uncorrectable", Some("umc")) => Detail::Memory,
        ("uncorrectable", _) => Detail::Block,
        ("deferred", _) => Detail::Deferred,
        _ => return Some(Read::NoFault),
    };
    Some(if new { Read::Sign(Sign::Ras(detail)) } else { Read::NoFault })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<Sign<'static>> {
        if let Read::Sign(sign) = read(line) { Some(sign) } else { None }
    }

    #[test]
    fn registers_of_a_link_decide_what_its_error_means() {
        let link = |registers: &str| {
            of(&format!(
                "NVRM: Xid (PCI:0000:b3:00): 74, pid=1, name=a(0x1, NVLink: fatal error detected on link 14({registers})"
            ))
        };
        let with = |detail| Some(Sign::XidWith(74, detail));
        for (registers, want) in [
            ("0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", with(Detail::Ignored)),
            ("0x40800000, 0x0, 0x0, 0x0, 0x24900000, 0x0, 0x0", with(Detail::Ignored)),
            ("0x2, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", with(Detail::Secondary)),
            ("0x1, 0x0, 0x0, 0x30000, 0x0, 0x0, 0x0", with(Detail::Secondary)),
            ("0x10, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", with(Detail::Passing)),
            ("0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0", with(Detail::Passing)),
            ("0x0, 0x0, 0x0, 0x0, 0x40000, 0x0, 0x0", with(Detail::Passing)),
            // Connections; a reset of the fabric; never seen outside; together with one that is ignored; none.
            ("0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", Some(Sign::Xid(74))),
            ("0x200001, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", Some(Sign::Xid(74))),
            ("0x0, 0x0, 0x0, 0x40000, 0x0, 0x0, 0x0", Some(Sign::Xid(74))),
            ("0x0, 0x0, 0x2000, 0x0, 0x0, 0x0, 0x0", Some(Sign::Xid(74))),
            ("0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", Some(Sign::Xid(74))),
            ("0x1, 0x0", Some(Sign::Xid(74))),
            ("0xfffffffff, 0x0, 0x0, 0x0, 0x0", Some(Sign::Xid(74))),
        ] {
            assert_eq!(link(registers), want, "{registers}");
        }
        assert_eq!(of("NVRM: Xid (PCI:0000:3b:00): 74, NVLink: failed to train link 3"), Some(Sign::Xid(74)));
    }

    #[test]
    fn a_link_that_somebody_took_down_is_no_fault_and_no_process_can_say_that_it_is() {
        let line = |text: &str| of(&format!("NVRM: Xid (PCI:0009:01:00): 149, {text}"));
        let ignored = Some(Sign::XidWith(149, Detail::Ignored));
        assert_eq!(line("NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x026001c6 0x0)"), ignored, "V1");
        assert_eq!(line("NETIR_LINK_DOWN  Fatal   XC0 i0 Link 00 (0x02800011 0x0)"), ignored, "V2");
        assert_eq!(line("NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x025001c6 0x0)"), Some(Sign::Xid(149)));
        assert_eq!(line("NETIR_MFDE_EVENT Fatal XC0 i0 Link 00 (0x02600014 0x1)"), Some(Sign::Xid(149)));
        assert_eq!(
            line("NETIR_BER_EVENT Nonfatal XC0 i0 Link 03 (0x00086226)"),
            Some(Sign::XidWith(149, Detail::Handled))
        );
        assert_eq!(line("pid=1, name=Nonfatal XC0, NETIR_INT Fatal XC0 i0 Link 03 (0x0)"), Some(Sign::Xid(149)));
        assert_eq!(line("of a form that nobody has seen"), Some(Sign::Xid(149)));
    }

    #[test]
    fn a_recovery_action_goes_by_its_number() {
        let to = |what: &str| {
            of(&format!("NVRM: Xid (PCI:0000:09:00): 154, GPU recovery action changed from 0x0 (None) to {what}"))
        };
        assert_eq!(to("0x2 (Node Reboot Required)"), Some(Sign::Recovery(2)));
        assert_eq!(to("0x2 (OS Reboot)"), Some(Sign::Recovery(2)), "driver 610");
        assert_eq!(to("0x5 (Recover IMEX Domain)"), Some(Sign::Recovery(5)));
        assert_eq!(to("something"), Some(Sign::Xid(154)));
    }

    #[test]
    fn a_contained_error_that_needs_a_reset_says_so() {
        let line = |text: &str| {
            of(&format!("NVRM: Xid (PCI:0000:01:00): 94, pid=7194, Contained: CE User Channel (0x9). {text}"))
        };
        assert_eq!(line("RST: No, D-RST: No"), Some(Sign::Xid(94)));
        assert_eq!(line("RST: No, D-RST: Yes"), Some(Sign::XidWith(94, Detail::NeedsReset)));
    }

    #[test]
    fn counts_of_errors_are_of_a_block_and_neither_totals_nor_what_a_sleeping_gpu_answers() {
        let line = |text: &str| read(&format!("amdgpu 0000:68:00.0: amdgpu: {text}"));
        let sign = |detail| Read::Sign(Sign::Ras(detail));
        assert_eq!(
            line("{1}socket: 4, die: 0, 1 new uncorrectable hardware errors detected in umc block"),
            sign(Detail::Memory)
        );
        assert_eq!(line("2 uncorrectable hardware errors detected in gfx block"), sign(Detail::Block));
        assert_eq!(
            line("socket: 4, die: 0, 1 new deferred hardware errors detected in umc block"),
            sign(Detail::Deferred)
        );
        for none in [
            "1048560 uncorrectable hardware errors detected in umc block",
            "socket: 4, die: 0, 0 uncorrectable hardware errors detected in total in umc block",
            "socket: 4, die: 0, 3 uncorrectable hardware errors detected in total in umc block",
            "socket: 4, die: 0 1 correctable hardware errors detected in total in gfx block",
        ] {
            assert_eq!(line(none), Read::NoFault, "{none}");
        }
        assert_eq!(line("uncorrectable hardware errors detected in umc block"), Read::Other, "patterns say what it is");
        assert_eq!(read("mce: 3 uncorrectable hardware errors detected in cpu"), Read::Other);
    }
}
