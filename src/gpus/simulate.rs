//! Simulated GPUs, so that the whole appliance runs on any machine. Marked wherever a GPU is shown.
//!
//! What is shown of one follows what its worker really does, measured on its container: use is the CPU time of all its
//! processes, where 100 % are the worker's even share of the machine's cores; memory is what they hold, page cache left out,
//! at most the GPU's size. A worker that does nothing shows about 0 %, one that does not run 0 % and nothing held. Temperature
//! and power have no counterpart and are absent.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use labd_gpu::Reading;
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{Gpu, Vendor};
use crate::{node::numa::NumaNode, time::Timestamp};

/// Time between two readings of a worker's container.
const LOOK: Duration = Duration::from_secs(2);
/// Longest wait for an answer of the engine.
const ANSWER: Duration = Duration::from_secs(5);
/// Step in which memory is shown, so that an idle lab's snapshot is not a new one every 2 s.
const STEP: u64 = 16 << 20;

/// Simulated GPUs, `count` of them: `SIM-0` and so on, on the machine's NUMA nodes that have CPUs in turn.
pub fn gpus(count: u32, numa: &[NumaNode]) -> Vec<Gpu> {
    let nodes: Vec<u32> = numa.iter().filter(|n| !n.cpus.is_empty()).map(|n| n.id).collect();
    (0..count)
        .map(|i| Gpu {
            slot: i as usize,
            id: format!("SIM-{i}"),
            vendor: Vendor::Simulated,
            name: "Simulated GPU".to_owned(),
            memory_bytes: 16 << 30,
            pci: None,
            parent: None,
            partition: None,
            numa_node: (!nodes.is_empty()).then(|| nodes[i as usize % nodes.len()]),
            cpu_list: None,
            devices: Vec::new(),
        })
        .collect()
}

/// Counters of one container at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Time at which they were read, by the engine's clock.
    pub at: Timestamp,
    /// CPU time of all processes so far, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory they hold, page cache left out, in bytes.
    pub memory_bytes: u64,
    /// Number of CPUs of the machine.
    pub cpus: u32,
}

/// Load of a running worker, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Share of all the machine's cores, 0 to 1, and the number of those cores; absent until there are two readings.
    pub cpu: Option<(f64, u32)>,
    /// Memory its processes hold, in bytes.
    pub memory_bytes: Option<u64>,
}

/// Load of each simulated worker that runs, by the worker's name.
pub type Loads = BTreeMap<String, Load>;

impl Load {
    /// Load between two readings of the same container. Counters that went back are another run's: then only the memory
    /// is known.
    pub fn between(before: Option<Counters>, now: Counters) -> Self {
        let cpu = before.and_then(|before| {
            let spent = now.cpu_ns.checked_sub(before.cpu_ns)?;
            let passed = now.at.since(before.at);
            let cpus = now.cpus.max(1);
            (!passed.is_zero()).then(|| (spent as f64 / passed.as_nanos() as f64 / f64::from(cpus), cpus))
        });
        Self { cpu, memory_bytes: Some(now.memory_bytes) }
    }
}

/// Reading of a simulated GPU, of `workers` in all; `load` is absent for a worker that does not run.
pub fn reading(gpu: &Gpu, workers: usize, load: Option<&Load>) -> Reading {
    let idle = Load { cpu: Some((0.0, 1)), memory_bytes: Some(0) };
    let load = load.unwrap_or(&idle);
    let percent = |(share, cpus): (f64, u32)| {
        let own = (f64::from(cpus) / workers.max(1) as f64).max(1.0);
        (share * f64::from(cpus) / own * 100.0).clamp(0.0, 100.0).round() as f32
    };
    Reading {
        id: gpu.id.clone(),
        utilisation_percent: load.cpu.map(percent),
        memory_used_bytes: load.memory_bytes.map(|bytes| (bytes / STEP * STEP).min(gpu.memory_bytes)),
        ..Reading::default()
    }
}

/// Reads the counters of the workers that `running` names, every 2 s, for as long as somebody hears their loads. Never
/// asks about the same container twice at once.
pub async fn follow<F>(
    running: impl Fn() -> Vec<String> + Send,
    ask: impl Fn(String) -> F + Send,
    tell: watch::Sender<Arc<Loads>>,
) where
    F: Future<Output = Option<Counters>> + Send,
{
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: BTreeMap<String, Counters> = BTreeMap::new();
    loop {
        tokio::select! {
            () = tell.closed() => return,
            _ = tick.tick() => {}
        }
        let looks = running().into_iter().map(|name| {
            let answer = tokio::time::timeout(ANSWER, ask(name.clone()));
            async move { (name, answer.await.ok().flatten()) }
        });
        let seen = futures_util::future::join_all(looks).await;
        let load = |(name, counters): &(String, Option<Counters>)| {
            let load = counters.map(|now| Load::between(before.get(name).copied(), now)).unwrap_or_default();
            (name.clone(), load)
        };
        let loads: Loads = seen.iter().map(load).collect();
        before = seen.into_iter().filter_map(|(name, counters)| Some((name, counters?))).collect();
        tell.send_if_modified(|old| {
            let news = **old != loads;
            if news {
                *old = Arc::new(loads);
            }
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn counters(ms: i64, cpu_ms: u64, memory_bytes: u64) -> Counters {
        Counters { at: Timestamp::from_millis(ms), cpu_ns: cpu_ms * 1_000_000, memory_bytes, cpus: 8 }
    }

    /// Use in percent and memory in MiB of one of `workers`, after so much CPU time within 2 s.
    fn shown(workers: usize, cpu_ms: u64, memory: u64) -> (Option<f32>, Option<u64>) {
        let load = Load::between(Some(counters(1_000, 500, 0)), counters(3_000, 500 + cpu_ms, memory));
        let reading = reading(&gpus(1, &[])[0], workers, Some(&load));
        (reading.utilisation_percent, reading.memory_used_bytes.map(|b| b >> 20))
    }

    #[test]
    fn use_is_the_workers_share_of_the_cores_and_memory_is_what_it_holds() {
        assert_eq!(shown(2, 0, 0), (Some(0.0), Some(0)));
        // Two workers on eight cores: four are each one's.
        assert_eq!(shown(2, 4_000, 3 * GIB), (Some(50.0), Some(3 << 10)));
        assert_eq!(shown(2, 16_000, 40 * GIB), (Some(100.0), Some(16 << 10)), "never more than there is");
        assert_eq!(shown(16, 1_000, 17 << 20), (Some(50.0), Some(16)), "at least one core is a worker's");
        let idle = reading(&gpus(1, &[])[0], 2, None);
        assert_eq!((idle.utilisation_percent, idle.memory_used_bytes), (Some(0.0), Some(0)), "it does not run");
        assert_eq!((idle.temperature_c, idle.power_w), (None, None));
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let first = Load::between(None, counters(1_000, 9_000, GIB));
        assert_eq!((first.cpu, first.memory_bytes), (None, Some(GIB)));
        let anew = Load::between(Some(counters(1_000, 9_000, GIB)), counters(3_000, 10, GIB));
        assert_eq!(anew.cpu, None, "another run of the container");
        let silent = reading(&gpus(1, &[])[0], 2, Some(&Load::default()));
        assert_eq!((silent.utilisation_percent, silent.memory_used_bytes), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn only_running_workers_are_asked_and_a_silent_engine_holds_nothing_up() {
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (tell, mut loads) = watch::channel(Arc::new(Loads::new()));
        let book = asked.clone();
        let ask = move |name: String| {
            let book = book.clone();
            async move {
                book.lock().expect("unpoisoned").push(name.clone());
                if name == "ray-worker-1" {
                    std::future::pending::<()>().await;
                }
                let times = book.lock().expect("unpoisoned").iter().filter(|n| **n == name).count() as u64;
                Some(counters(times.cast_signed() * 7_000, times * 7_000, GIB))
            }
        };
        let task = tokio::spawn(follow(|| vec!["ray-worker-0".into(), "ray-worker-1".into()], ask, tell));
        let known = loads.wait_for(|loads| loads.get("ray-worker-0").is_some_and(|l| l.cpu.is_some())).await;
        let known = known.expect("it goes on").clone();
        assert_eq!(known["ray-worker-0"].cpu, Some((0.125, 8)));
        assert_eq!(known["ray-worker-1"], Load::default());
        let asked = asked.lock().expect("unpoisoned").clone();
        assert!(asked.iter().all(|name| name == "ray-worker-0" || name == "ray-worker-1"), "{asked:?}");
        drop(loads);
        task.await.expect("it ends with its last listener");
    }
}
