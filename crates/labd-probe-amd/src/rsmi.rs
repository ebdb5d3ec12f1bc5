//! ROCm SMI through `rocm_smi_lib`, and only those parts of it that hold what a safe function promises:
//!
//! * `get_device_power_data` passes a null pointer on and then reads it, and writes far behind its buffers. Power comes
//!   from the kernel's files.
//! * `get_device_full_metrics` has room for one version's table; a newer library writes a longer one.
//! * Processes are commented out in the crate; they come from the kernel's files, too.
//!
//! ROCm before 6.0 lacks functions that the crate asks for ids: the probe does not load with it.
//!
//! What the crate can get wrong without harm is caught: it looks a clock up by the index that the library gave, unchecked,
//! which is a panic where that index is none.

use std::panic::{self, AssertUnwindSafe};

use labd_gpu::{Reading, line::Hello, line::Source};
use rocm_smi_lib::{RocmErr, RocmSmi, RsmiClkType, RsmiTemperatureMetric, RsmiTemperatureType};

/// Number of readings between two reads of the error counters: there is a file per block of the chip (14), each
/// answered by firmware.
const ECC_EVERY: u32 = 5;

/// Library, once it runs. Its list of GPUs is made at its start and never again.
pub(crate) struct Library {
    smi: RocmSmi,
    errors: Vec<Errors>,
}

/// Constant facts about a GPU, as the library reports them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Card {
    /// Number `N` of `/dev/dri/renderD<N>`.
    pub(crate) render_minor: Option<u32>,
    /// PCI address; asked only where the render node is not known.
    pub(crate) pci: Option<String>,
    /// Number of the chip itself.
    pub(crate) unique_id: Option<u64>,
    /// Product name.
    pub(crate) name: Option<String>,
    /// Memory in bytes.
    pub(crate) memory_bytes: Option<u64>,
}

/// Error counters as they were when last asked.
#[derive(Clone, Copy, Default)]
struct Errors {
    next: u32,
    corrected: Option<u64>,
    uncorrected: Option<u64>,
}

impl Library {
    /// Starts the library. A failed start shows as no GPUs: the crate drops the library's answer.
    pub(crate) fn start() -> Result<Self, RocmErr> {
        let mut smi = RocmSmi::init()?;
        let errors = vec![Errors::default(); smi.get_device_count() as usize];
        Ok(Self { smi, errors })
    }

    /// Number of GPUs it has.
    pub(crate) fn count(&self) -> u32 {
        self.errors.len() as u32
    }

    /// Source of the answers, with its versions.
    pub(crate) fn hello(&mut self) -> Hello {
        // The crate words it as "version: 7.2, patch: 0".
        let version = |words: String| words.replace("version: ", "").replace(", patch: ", ".");
        Hello {
            source: Source::RocmSmi,
            driver: self.smi.get_rsmi_driver_version().ok().filter(|v| !v.is_empty()),
            library: self.smi.get_rsmi_version().ok().map(version),
        }
    }

    /// Facts about GPU number `index`.
    pub(crate) fn card(&mut self, index: u32) -> Card {
        let mut card = Card::default();
        if let Ok(identifiers) = self.smi.get_device_identifiers(index) {
            card.render_minor = identifiers.drm_render_minor.ok();
            card.unique_id = identifiers.unique_id.ok().filter(|id| *id != 0);
            card.name = identifiers.name.ok().and_then(|name| product(&name));
        }
        if card.render_minor.is_none() {
            // The crate asks for the traffic on the bus along with it, which takes the driver a second.
            card.pci = guarded(|| self.smi.get_device_pcie_data(index)).map(|pcie| pci_address(pcie.id));
        }
        card.memory_bytes = self.smi.get_device_memory_data(index).ok().map(|m| m.vram_total).filter(|b| *b > 0);
        card
    }

    /// Present reading of GPU number `index`. [`Reading::error`] is the library's first real complaint where it has no
    /// value to give at all; that something is not supported does not count.
    pub(crate) fn reading(&mut self, index: u32) -> Reading {
        let mut complaint = None;
        let mut keep = |e: RocmErr| {
            if !matches!(e, RocmErr::RsmiStatusNotSupported | RocmErr::RsmiStatusNotYetImplemented) {
                complaint.get_or_insert(e);
            }
        };
        let busy = self.smi.get_device_busy_percent(index).map_err(&mut keep).ok();
        // MI300 has no sensor at the edge of the chip.
        let mut celsius = |at| self.smi.get_device_temperature_metric(index, at, RsmiTemperatureMetric::Current);
        let temperature = celsius(RsmiTemperatureType::Edge)
            .or_else(|_| celsius(RsmiTemperatureType::Junction))
            .map_err(&mut keep)
            .ok();
        let memory = self.smi.get_device_memory_data(index).map_err(&mut keep).ok();
        let mut megahertz = |clock| {
            let hertz = guarded(|| self.smi.get_device_frequency(index, clock))?.current;
            u32::try_from(hertz / 1_000_000).ok().filter(|mhz| *mhz > 0)
        };
        let (clock, memory_clock) = (megahertz(RsmiClkType::RsmiClkTypeSys), megahertz(RsmiClkType::RsmiClkTypeMem));

        let answered =
            busy.is_some() || temperature.is_some() || memory.is_some() || clock.is_some() || memory_clock.is_some();
        let errors = if answered { self.errors(index) } else { Errors::default() };
        Reading {
            utilisation_percent: busy.map(|percent| percent as f32),
            memory_used_bytes: memory.map(|m| m.vram_used),
            temperature_c: temperature.map(|c| c as f32),
            clock_mhz: clock,
            memory_clock_mhz: memory_clock,
            ecc_corrected: errors.corrected,
            ecc_uncorrected: errors.uncorrected,
            error: complaint.filter(|_| !answered).map(|e| symbol(e).to_owned()),
            ..Reading::default()
        }
    }

    /// Error counters, summed over all blocks of the chip that count.
    fn errors(&mut self, index: u32) -> Errors {
        let last = self.errors[index as usize];
        let now = if last.next > 0 {
            Errors { next: last.next - 1, ..last }
        } else {
            let blocks = self.smi.get_device_ecc_data(index).blocks;
            let counters: Vec<_> = blocks.into_iter().filter_map(|state| state.block).map(|b| b.counters).collect();
            let sum = |of: fn(&rocm_smi_lib::rsmi_error_count_t) -> u64| {
                (!counters.is_empty()).then(|| counters.iter().map(of).sum())
            };
            Errors {
                next: ECC_EVERY - 1,
                corrected: sum(|c| c.correctable_err),
                uncorrected: sum(|c| c.uncorrectable_err),
            }
        };
        self.errors[index as usize] = now;
        now
    }
}

/// Result of a question; `None` when the answer is an error, or one that the crate stumbles over.
fn guarded<T>(ask: impl FnOnce() -> Result<T, RocmErr>) -> Option<T> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let answer = panic::catch_unwind(AssertUnwindSafe(ask));
    panic::set_hook(hook);
    answer.ok()?.ok()
}

/// Product name, as on the box: `Instinct MI100` of `Arcturus GL-XL [Instinct MI100]`. `None` for a bare device number,
/// which is what the library reports for a GPU that its list of names lacks.
fn product(name: &str) -> Option<String> {
    let inner = name.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(name, |(inner, _)| inner).trim();
    (!inner.is_empty() && !inner.starts_with("0x")).then(|| inner.to_owned())
}

/// PCI address, in the kernel's notation, of the number that ROCm SMI makes of it: domain in the upper half, then 8
/// bits bus, 5 bits device, 3 bits function. Bits 28 to 31 are a partition's number.
fn pci_address(bdfid: u64) -> String {
    format!("{:04x}:{:02x}:{:02x}.{:x}", bdfid >> 32, (bdfid >> 8) & 0xff, (bdfid >> 3) & 0x1f, bdfid & 7)
}

/// Name that the library gives a return code.
pub(crate) const fn symbol(code: RocmErr) -> &'static str {
    match code {
        RocmErr::RsmiStatusSuccess => "RSMI_STATUS_SUCCESS",
        RocmErr::RsmiStatusInvalidArgs => "RSMI_STATUS_INVALID_ARGS",
        RocmErr::RsmiStatusNotSupported => "RSMI_STATUS_NOT_SUPPORTED",
        RocmErr::RsmiStatusFileError => "RSMI_STATUS_FILE_ERROR",
        RocmErr::RsmiStatusPermission => "RSMI_STATUS_PERMISSION",
        RocmErr::RsmiStatusOutOfResources => "RSMI_STATUS_OUT_OF_RESOURCES",
        RocmErr::RsmiStatusInternalException => "RSMI_STATUS_INTERNAL_EXCEPTION",
        RocmErr::RsmiStatusInputOutOfBounds => "RSMI_STATUS_INPUT_OUT_OF_BOUNDS",
        RocmErr::RsmiStatusInitError => "RSMI_STATUS_INIT_ERROR",
        RocmErr::RsmiStatusNotYetImplemented => "RSMI_STATUS_NOT_YET_IMPLEMENTED",
        RocmErr::RsmiStatusNotFound => "RSMI_STATUS_NOT_FOUND",
        RocmErr::RsmiStatusInsufficientSize => "RSMI_STATUS_INSUFFICIENT_SIZE",
        RocmErr::RsmiStatusInterrupt => "RSMI_STATUS_INTERRUPT",
        RocmErr::RsmiStatusUnexpectedSize => "RSMI_STATUS_UNEXPECTED_SIZE",
        RocmErr::RsmiStatusNoData => "RSMI_STATUS_NO_DATA",
        RocmErr::RsmiStatusUnexpectedData => "RSMI_STATUS_UNEXPECTED_DATA",
        RocmErr::RsmiStatusBusy => "RSMI_STATUS_BUSY",
        RocmErr::RsmiStatusRefcountOverflow => "RSMI_STATUS_REFCOUNT_OVERFLOW",
        RocmErr::RsmiStatusSettingUnavailable => "RSMI_STATUS_SETTING_UNAVAILABLE",
        RocmErr::RsmiStatusAmdgpuRestartErr => "RSMI_STATUS_AMDGPU_RESTART_ERR",
        // The last two are the crate's own.
        RocmErr::RsmiStatusUnknownError | RocmErr::RsmiStringConversionError | RocmErr::RsmiLibLoadingError => {
            "RSMI_STATUS_UNKNOWN_ERROR"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_is_written_as_the_kernel_writes_it() {
        assert_eq!(pci_address(0x6300), "0000:63:00.0");
        assert_eq!(pci_address(0x0001_0000_0c19), "0001:0c:03.1");
        assert_eq!(pci_address(0x3000_0500), "0000:05:00.0", "the third partition's");
    }

    #[test]
    fn a_product_is_called_what_is_printed_on_it() {
        assert_eq!(product("Arcturus GL-XL [Instinct MI100]").as_deref(), Some("Instinct MI100"));
        assert_eq!(product("AMD Instinct MI300X").as_deref(), Some("AMD Instinct MI300X"));
        assert_eq!(product("0x74a1"), None);
        assert_eq!(product(""), None);
    }

    #[test]
    fn a_stumble_of_the_crate_is_no_answer() {
        assert_eq!(guarded(|| Ok([1, 2][std::hint::black_box(33)])), None::<i32>);
        assert_eq!(guarded(|| Err::<i32, _>(RocmErr::RsmiStatusBusy)), None);
        assert_eq!(guarded(|| Ok(3)), Some(3));
    }
}
