//! Checks of the GPUs that workers see.

use std::collections::BTreeMap;

use super::{COMMAND, KERNEL_LOG, first_line, look};
use crate::{
    doctor::{Check, Scene, count},
    gpus::vendor,
    spec::worker_slot,
};

/// Checks each worker from inside: one GPU, another one in each.
pub(in crate::doctor) async fn in_workers(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "worker-gpus";
    if scene.simulated() > 0 {
        return vec![Check::skipped(NAME, "simulated GPUs: there is nothing to check in the workers")];
    }
    let (Ok(engine), Some(standing)) = (&scene.engine, scene.standing().await) else {
        return vec![Check::skipped(NAME, "the engine was not reached")];
    };
    let workers = standing.iter().filter(|c| c.running && c.lab.as_deref() == Some(engine.lab()));
    let mut workers: Vec<String> =
        workers.filter_map(|c| c.service.clone()).filter(|s| worker_slot(s).is_some()).collect();
    workers.sort();
    if workers.is_empty() {
        return vec![Check::skipped(NAME, "no worker runs")];
    }
    let bus = look(scene).await;
    let snapshot = scene.snapshot();
    let seen = workers.into_iter().map(|worker| {
        // Each is asked as its own GPU's vendor would; where labd does not say whose that is, as the first on the bus.
        let gpu = snapshot.and_then(|s| s.gpus.iter().find(|gpu| gpu.worker.as_ref() == Some(&worker)));
        let own = gpu.and_then(|gpu| vendor::ALL.into_iter().find(|def| def.vendor.as_str() == gpu.vendor));
        let def = own.or(bus.first().map(|(def, _)| *def)).unwrap_or(vendor::ALL[0]);
        (worker, def.ask_worker)
    });
    let seen = seen.map(|(worker, ask)| async move {
        let said = match engine.exec(&worker, ask, COMMAND).await {
            Ok((code, text)) => Ok((code == 0, text)),
            Err(e) => Err(e.to_string()),
        };
        (worker, said)
    });
    judge_workers(&futures_util::future::join_all(seen).await)
}

type Seen = Result<(bool, String), String>;

fn judge_workers(workers: &[(String, Seen)]) -> Vec<Check> {
    const NAME: &str = "worker-gpus";
    let mut checks = Vec::new();
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for (worker, seen) in workers {
        let again = format!("labd restart {worker}");
        let (fine, text) = match seen {
            Ok(said) => said,
            Err(why) => {
                checks.push(Check::fail(NAME, format!("{worker}: {why}"), format!("{KERNEL_LOG}\n{again}")));
                continue;
            }
        };
        if text.contains("Failed to initialize NVML: Unknown Error") {
            let why = format!("{worker} lost its GPU, as a `systemctl daemon-reload` on the host does it");
            checks.push(Check::fail(NAME, why, again));
            continue;
        }
        let gpus = gpus_in(text);
        match gpus.as_slice() {
            [] => {
                let why = format!("{worker} sees no GPU: {}", first_line(text));
                checks.push(Check::fail(NAME, why, format!("labd logs {worker} -n 30\n{again}")));
            }
            _ if !fine => checks.push(Check::fail(NAME, format!("{worker}: {}", first_line(text)), again)),
            [one] => {
                if let Some(other) = owners.insert(one.clone(), worker.as_str()) {
                    checks.push(Check::fail(NAME, format!("{worker} and {other} see the same GPU, {one}"), again));
                }
            }
            many => {
                checks.push(Check::fail(NAME, format!("{worker} sees {} GPUs and must see one", many.len()), again));
            }
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(NAME, format!("each of {} sees one GPU of its own", count(workers.len(), "worker"))));
    }
    checks
}

/// GPUs and partitions in the output of `nvidia-smi --list-gpus`: partitions in place of the GPU they are on.
fn gpus_in(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let uuid = line.split_once("UUID: ").and_then(|(_, rest)| rest.split([')', ' ']).next());
        uuid.or_else(|| line.strip_prefix("GPU ")).unwrap_or(line).trim().to_owned()
    };
    let of = |start: &str| -> Vec<String> {
        text.lines().map(str::trim).filter(|l| l.starts_with(start)).map(name).collect()
    };
    let partitions = of("MIG ");
    if partitions.is_empty() { of("GPU ") } else { partitions }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn each_worker_sees_one_gpu_of_its_own() {
        let worker = |i: usize, seen: Seen| (format!("ray-worker-{i}"), seen);
        let line = |uuid: &str| Ok((true, format!("GPU 0: NVIDIA A100 (UUID: {uuid})\n")));
        let why = |workers: &[(String, Seen)]| {
            let found = judge_workers(workers);
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].verdict, found[0].why.clone())
        };
        let good = why(&[worker(0, line("GPU-aa")), worker(1, line("GPU-bb"))]);
        assert_eq!(good, (Verdict::Ok, "each of 2 workers sees one GPU of its own".into()));
        let same = why(&[worker(0, line("GPU-aa")), worker(1, line("GPU-aa"))]);
        assert_eq!(same, (Verdict::Fail, "ray-worker-1 and ray-worker-0 see the same GPU, GPU-aa".into()));
        let lost = why(&[worker(0, Ok((false, "Failed to initialize NVML: Unknown Error\n".into())))]);
        assert!(lost.1.contains("lost its GPU"), "{lost:?}");
        assert!(why(&[worker(0, Ok((true, crate::doctor::gpu::nvidia::tests::TWO.into())))]).1.contains("sees 2 GPUs"));
        assert!(
            why(&[worker(0, Err("`nvidia-smi` in x did not finish within 6 s".into()))]).1.contains("did not finish")
        );
        assert!(why(&[worker(0, Ok((false, "sh: nvidia-smi: not found\n".into())))]).1.contains("not found"));
        let mig = "GPU 0: NVIDIA A100 (UUID: GPU-aa)\n  MIG 1g.5gb Device 0: (UUID: MIG-cc)\n";
        assert_eq!(gpus_in(mig), ["MIG-cc"]);
        assert_eq!(gpus_in("GPU renderD129\n"), ["renderD129"]);
    }
}
