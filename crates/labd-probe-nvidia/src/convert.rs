//! Conversion of NVML's answers into labd's values. Pure.

use labd_gpu::{Instance, Process, Reading, Throttle, line::LIBRARY_MISSING};
use nvml_wrapper::{
    bitmasks::device::ThrottleReasons, enums::device::UsedGpuMemory, error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};

/// Answer of NVML.
pub(crate) type Answer<T> = Result<T, NvmlError>;

/// Name that NVML gives an error (`nvmlReturn_t` in `nvml.h`).
pub(crate) fn symbol(error: &NvmlError) -> String {
    use NvmlError as E;
    let name = match error {
        E::LibloadingError(_) => return LIBRARY_MISSING.to_owned(),
        E::Uninitialized => "UNINITIALIZED",
        E::InvalidArg => "INVALID_ARGUMENT",
        E::NotSupported => "NOT_SUPPORTED",
        E::NoPermission => "NO_PERMISSION",
        E::NotFound => "NOT_FOUND",
        E::InsufficientSize(_) => "INSUFFICIENT_SIZE",
        E::InsufficientPower => "INSUFFICIENT_POWER",
        E::DriverNotLoaded => "DRIVER_NOT_LOADED",
        E::Timeout => "TIMEOUT",
        E::IrqIssue => "IRQ_ISSUE",
        E::LibraryNotFound => "LIBRARY_NOT_FOUND",
        E::FunctionNotFound | E::FailedToLoadSymbol(_) => "FUNCTION_NOT_FOUND",
        E::CorruptedInfoROM => "CORRUPTED_INFOROM",
        E::GpuLost => "GPU_IS_LOST",
        E::ResetRequired => "RESET_REQUIRED",
        E::OperatingSystem => "OPERATING_SYSTEM",
        E::LibRmVersionMismatch => "LIB_RM_VERSION_MISMATCH",
        E::InUse => "IN_USE",
        E::InsufficientMemory => "MEMORY",
        E::NoData => "NO_DATA",
        // Newer than the crate.
        E::UnexpectedVariant(23) => "INSUFFICIENT_RESOURCES",
        E::UnexpectedVariant(27) => "NOT_READY",
        E::UnexpectedVariant(28) => "GPU_NOT_FOUND",
        E::UnexpectedVariant(29) => "INVALID_STATE",
        E::UnexpectedVariant(code) => return format!("NVML_ERROR_{code}"),
        _ => "UNKNOWN",
    };
    format!("NVML_ERROR_{name}")
}

/// Whether this answer to any question at all means that the GPU does not work.
fn broken(error: &NvmlError) -> bool {
    use NvmlError as E;
    matches!(error, E::GpuLost | E::ResetRequired | E::IrqIssue | E::InsufficientPower | E::UnexpectedVariant(28))
}

/// Whether this answer means only that there is no such value: this GPU does not have it, or this library is older.
fn not_there(error: &NvmlError) -> bool {
    use NvmlError as E;
    matches!(error, E::NotSupported | E::FunctionNotFound | E::FailedToLoadSymbol(_) | E::InvalidArg | E::NoPermission)
}

/// Value that need not be there.
pub(crate) fn optional<T>(answer: Answer<T>) -> Answer<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(e) if not_there(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Answers of NVML about one device, in NVML's units.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Utilisation in percent.
    pub(crate) utilisation: Answer<u32>,
    /// Memory in use, in bytes.
    pub(crate) memory: Answer<u64>,
    /// Temperature in degrees Celsius.
    pub(crate) temperature: Answer<u32>,
    /// Power drawn, in milliwatts.
    pub(crate) power: Answer<u32>,
    /// Limit on the power, in milliwatts.
    pub(crate) power_limit: Answer<u32>,
    /// Clock of the compute units, in MHz.
    pub(crate) clock: Answer<u32>,
    /// Clock of the memory, in MHz.
    pub(crate) memory_clock: Answer<u32>,
    pub(crate) throttled: Answer<ThrottleReasons>,
    pub(crate) ecc_corrected: Answer<u64>,
    pub(crate) ecc_uncorrected: Answer<u64>,
    pub(crate) rows: Answer<Rows>,
    pub(crate) compute: Answer<Vec<ProcessInfo>>,
    pub(crate) graphics: Answer<Vec<ProcessInfo>>,
}

/// Memory that was taken out of use: rows since Ampere, pages before. Absent when this GPU does not count it.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) remapped: [Option<u64>; 2],
    pub(crate) retired: [Option<u64>; 2],
    pub(crate) pending: [Option<u64>; 2],
    pub(crate) failed: Option<u64>,
    /// What the GPU needs before it can be used again, which only newer drivers say.
    pub(crate) recovery: Option<u64>,
}

impl Rows {
    fn count(&self) -> Option<u32> {
        let sum = |of: [Option<u64>; 2]| Some(of[0]?.saturating_add(of[1]?));
        sum(self.remapped).or(sum(self.retired)).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
    }
}

/// Reading of the device `id`. One value without an answer is absent. A GPU that says that it is lost, or of which
/// neither memory nor temperature can be read, has an error and nothing else.
pub(crate) fn reading(id: &str, answers: Answers) -> Reading {
    let mut all = Failures::default();
    let unexpected = |e: &NvmlError| (!not_there(e)).then(|| symbol(e));
    let blind = match (&answers.memory, &answers.temperature) {
        (Err(memory), Err(temperature)) => unexpected(memory).or_else(|| unexpected(temperature)),
        _ => None,
    };
    let reading = Reading {
        id: id.to_owned(),
        utilisation_percent: all.value(answers.utilisation).map(|n| n as f32),
        memory_used_bytes: all.value(answers.memory),
        temperature_c: all.value(answers.temperature).map(|n| n as f32),
        power_w: all.value(answers.power).map(watts),
        power_limit_w: all.value(answers.power_limit).map(watts),
        clock_mhz: all.value(answers.clock),
        memory_clock_mhz: all.value(answers.memory_clock),
        throttled: all.value(answers.throttled).map(throttled).unwrap_or_default(),
        ecc_corrected: all.value(answers.ecc_corrected),
        ecc_uncorrected: all.value(answers.ecc_uncorrected),
        ..Reading::default()
    };
    let rows = all.value(answers.rows).unwrap_or_default();
    let (compute, graphics) = (all.value(answers.compute), all.value(answers.graphics));
    if let Some(symbol) = all.broken.or(blind) {
        return Reading::of_failed(id, &symbol);
    }
    Reading {
        remapped_rows: rows.count(),
        remap_pending: rows.pending.iter().flatten().any(|n| *n > 0),
        remap_failed: rows.failed.is_some_and(|n| n > 0),
        recovery_action: rows.recovery.and_then(|n| u32::try_from(n).ok()),
        processes: processes(compute.into_iter().chain(graphics).flatten()),
        ..reading
    }
}

#[derive(Default)]
struct Failures {
    /// First answer that says that the GPU does not work.
    broken: Option<String>,
}

impl Failures {
    fn value<T>(&mut self, answer: Answer<T>) -> Option<T> {
        match answer {
            Ok(value) => Some(value),
            Err(e) => {
                if self.broken.is_none() && broken(&e) {
                    self.broken = Some(symbol(&e));
                }
                None
            }
        }
    }
}

fn watts(milliwatts: u32) -> f32 {
    milliwatts as f32 / 1000.0
}

/// Reasons that concern a person. `Hardware` is what NVML gives in addition to its cause where it knows that.
fn throttled(reasons: ThrottleReasons) -> Vec<Throttle> {
    type R = ThrottleReasons;
    let is = |flags: R| reasons.intersects(flags);
    let thermal = is(R::HW_THERMAL_SLOWDOWN | R::SW_THERMAL_SLOWDOWN);
    let brake = is(R::HW_POWER_BRAKE_SLOWDOWN);
    let caused = is(R::HW_THERMAL_SLOWDOWN | R::HW_POWER_BRAKE_SLOWDOWN);
    [
        (Throttle::Thermal, thermal),
        (Throttle::PowerCap, is(R::SW_POWER_CAP)),
        (Throttle::PowerBrake, brake),
        (Throttle::Hardware, is(R::HW_SLOWDOWN) && !caused),
    ]
    .into_iter()
    .filter_map(|(reason, is)| is.then_some(reason))
    .collect()
}

/// Processes, each once: one that computes and draws is in both of NVML's lists, with the same memory.
fn processes(all: impl Iterator<Item = ProcessInfo>) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    for one in all {
        let memory_bytes = match one.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        match found.iter_mut().find(|p| p.pid == one.pid) {
            Some(known) => known.memory_bytes = known.memory_bytes.max(memory_bytes),
            None => found.push(Process { pid: one.pid, memory_bytes }),
        }
    }
    found
}

/// Instance that processes on a MIG device name, where they do.
pub(crate) fn instance(processes: &[ProcessInfo]) -> Option<Instance> {
    processes.iter().find_map(|p| Some(Instance { gpu: p.gpu_instance_id?, compute: p.compute_instance_id? }))
}

/// Kind of a MIG device, out of its name, such as `1g.10gb` out of `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
pub(crate) fn profile(name: &str) -> String {
    name.rsplit_once(" MIG ").map_or("MIG", |(_, profile)| profile).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Answers {
        Answers {
            utilisation: Ok(97),
            memory: Ok(5 << 30),
            temperature: Ok(41),
            power: Ok(312_500),
            power_limit: Ok(700_000),
            clock: Ok(1980),
            memory_clock: Ok(2619),
            throttled: Ok(ThrottleReasons::GPU_IDLE),
            ecc_corrected: Ok(3),
            ecc_uncorrected: Ok(0),
            rows: Ok(Rows { remapped: [Some(1), Some(2)], failed: Some(0), ..Rows::default() }),
            compute: Ok(Vec::new()),
            graphics: Ok(Vec::new()),
        }
    }

    fn process(pid: u32, used_gpu_memory: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: None, compute_instance_id: None }
    }

    #[test]
    fn everything_has_labds_units() {
        let reading = reading("GPU-1", answers());
        assert_eq!(reading.utilisation_percent, Some(97.0));
        assert_eq!((reading.power_w, reading.power_limit_w), (Some(312.5), Some(700.0)));
        assert_eq!((reading.remapped_rows, reading.remap_pending, reading.remap_failed), (Some(3), false, false));
        assert_eq!((reading.throttled, reading.error), (Vec::new(), None));
    }

    #[test]
    fn a_value_that_a_gpu_does_not_have_is_absent() {
        let power = Err(NvmlError::NotSupported);
        let ecc_corrected = Err(NvmlError::FailedToLoadSymbol("undefined symbol".into()));
        let reading = reading("GPU-1", Answers { power, ecc_corrected, clock: Err(NvmlError::Unknown), ..answers() });
        assert_eq!(
            (reading.power_w, reading.ecc_corrected, reading.clock_mhz, reading.error),
            (None, None, None, None)
        );
        assert_eq!(reading.temperature_c, Some(41.0));
    }

    #[test]
    fn a_lost_gpu_has_an_error_and_nothing_else() {
        for (error, want) in [
            (NvmlError::GpuLost, "NVML_ERROR_GPU_IS_LOST"),
            (NvmlError::ResetRequired, "NVML_ERROR_RESET_REQUIRED"),
            (NvmlError::UnexpectedVariant(28), "NVML_ERROR_GPU_NOT_FOUND"),
        ] {
            assert_eq!(
                reading("GPU-1", Answers { graphics: Err(error), ..answers() }),
                Reading::of_failed("GPU-1", want)
            );
        }
    }

    #[test]
    fn unknown_counts_when_nothing_vital_can_be_read() {
        let blind = |memory, temperature| reading("GPU-1", Answers { memory, temperature, ..answers() }).error;
        let unknown = Some("NVML_ERROR_UNKNOWN".to_owned());
        assert_eq!(blind(Err(NvmlError::Unknown), Err(NvmlError::Unknown)), unknown);
        // A MIG device has no temperature, and unified memory no size.
        assert_eq!(blind(Err(NvmlError::Unknown), Err(NvmlError::NotSupported)), unknown);
        assert_eq!(blind(Err(NvmlError::Unknown), Ok(41)), None);
        assert_eq!(blind(Err(NvmlError::NotSupported), Err(NvmlError::NotSupported)), None);
    }

    #[test]
    fn a_slowdown_is_named_by_its_cause() {
        type R = ThrottleReasons;
        for (reasons, want) in [
            (R::GPU_IDLE | R::APPLICATIONS_CLOCKS_SETTING | R::SYNC_BOOST, vec![]),
            (R::SW_POWER_CAP, vec![Throttle::PowerCap]),
            (R::SW_THERMAL_SLOWDOWN, vec![Throttle::Thermal]),
            (R::HW_SLOWDOWN | R::HW_THERMAL_SLOWDOWN, vec![Throttle::Thermal]),
            (R::HW_SLOWDOWN | R::HW_POWER_BRAKE_SLOWDOWN, vec![Throttle::PowerBrake]),
            (R::HW_SLOWDOWN | R::SW_POWER_CAP, vec![Throttle::PowerCap, Throttle::Hardware]),
        ] {
            assert_eq!(throttled(reasons), want, "{reasons:?}");
        }
    }

    #[test]
    fn pages_count_where_there_are_no_rows() {
        let rows = Rows { retired: [Some(4), Some(1)], pending: [None, Some(1)], ..Rows::default() };
        let reading = reading("GPU-1", Answers { rows: Ok(rows), ..answers() });
        assert_eq!((reading.remapped_rows, reading.remap_pending), (Some(5), true));
    }

    #[test]
    fn what_the_gpu_needs_and_the_instance_of_a_process_are_passed_on() {
        let rows = Rows { recovery: Some(2), ..Rows::default() };
        assert_eq!(reading("GPU-1", Answers { rows: Ok(rows), ..answers() }).recovery_action, Some(2));
        let somewhere = process(7, UsedGpuMemory::Used(1));
        let there = ProcessInfo { gpu_instance_id: Some(9), compute_instance_id: Some(0), ..somewhere.clone() };
        assert_eq!(instance(&[somewhere.clone(), there]), Some(Instance { gpu: 9, compute: 0 }));
        assert_eq!(instance(&[somewhere]), None);
    }

    #[test]
    fn a_process_is_listed_once() {
        let compute = Ok(vec![process(7, UsedGpuMemory::Used(1 << 20)), process(8, UsedGpuMemory::Unavailable)]);
        let graphics = Ok(vec![process(7, UsedGpuMemory::Used(1 << 20))]);
        let reading = reading("GPU-1", Answers { compute, graphics, ..answers() });
        let want = [Process { pid: 7, memory_bytes: Some(1 << 20) }, Process { pid: 8, memory_bytes: None }];
        assert_eq!(reading.processes, want);
    }

    #[test]
    fn a_mig_device_says_what_it_is() {
        assert_eq!(profile("NVIDIA A100-SXM4-40GB MIG 3g.20gb"), "3g.20gb");
        assert_eq!(profile("NVIDIA H100 80GB HBM3 MIG 1c.2g.20gb+me"), "1c.2g.20gb+me");
        assert_eq!(profile("GRID A100X"), "MIG");
    }
}
