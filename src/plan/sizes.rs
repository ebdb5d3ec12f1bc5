//! How the machine is divided. Pure.
//!
//! Memory limits of all services together leave room for the host: a tenth of it, 1 to 16 GiB. The services around the
//! workers get a share between a floor (what they need idle, measured) and a ceiling; the workers divide the rest evenly.
//! What `labd.toml` sets is taken as it is, and refused when the whole no longer fits.

use serde::Serialize;

use crate::{
    config::{Bytes, Config, Service},
    node::NodeFacts,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Ray refuses a smaller object store (`OBJECT_STORE_MINIMUM_MEMORY_BYTES`).
const MIN_OBJECT_STORE: u64 = 75 * MIB;
/// The head runs no user code.
const HEAD_OBJECT_STORE: u64 = 100 * MIB;

/// What each service gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Left for the host, in bytes.
    pub host: Bytes,
    /// Hard memory limit of the head.
    pub head: Bytes,
    /// Hard memory limit of the driver node.
    pub driver: Bytes,
    /// Hard memory limit of each worker.
    pub worker: Bytes,
    /// Number of workers.
    pub workers: u32,
    /// Hard memory limit of MinIO.
    pub minio: Bytes,
    /// Hard memory limit of Prometheus.
    pub prometheus: Bytes,
    /// Hard memory limit of Grafana.
    pub grafana: Bytes,
    /// Hard memory limit of JupyterLab.
    pub jupyter: Bytes,
    /// Hard memory limit of the front door's relay.
    pub front_door: Bytes,
    /// Object store of the head.
    pub head_object_store: Bytes,
    /// Object store of the driver node.
    pub driver_object_store: Bytes,
    /// Object store of each worker.
    pub worker_object_store: Bytes,
    /// The `/dev/shm` all workers share: every object store, and room for NCCL's and PyTorch's own segments.
    pub shared_memory: Bytes,
    /// Ray's logical CPUs of the driver node.
    pub driver_cpus: u32,
    /// Ray's logical CPUs of each worker.
    pub worker_cpus: u32,
}

impl Sizes {
    /// Memory limits of everything that runs, the host's part left out.
    pub fn total(&self) -> u64 {
        let around = [self.head, self.driver, self.minio, self.prometheus, self.grafana, self.jupyter, self.front_door];
        around.iter().map(|b| b.get()).sum::<u64>() + self.worker.get() * u64::from(self.workers)
    }
}

/// Divides the machine. Fails when what `labd.toml` sets does not fit.
pub fn compute(config: &Config, node: &NodeFacts, workers: u32) -> Result<Sizes, String> {
    let total = node.memory_bytes;
    let host = (total / 10).clamp(GIB.min(total / 4), 16 * GIB);
    let usable = total - host;
    let services = &config.services;
    let share = |service: &Service, permille: u64, floor: u64, ceiling: u64| {
        if !service.on() {
            return 0;
        }
        service.memory.map_or_else(|| (usable / 1000 * permille).clamp(floor, ceiling), Bytes::get)
    };
    // Idle: head 0.8 GiB, driver node and worker 0.25 GiB each plus what jobs need, measured with Ray 2.60.
    // A head also holds a few uploads of 100 MiB and, as text, as JSON and as bytes, the log that a person asks for.
    let head = of_small_and_large(&services.ray_head, usable, (120, 4 * GIB), (80, 16 * GIB))
        .max(share_floor(&services.ray_head, (usable / 6).clamp(GIB, 3 * GIB / 2)));
    // A job of a course takes 1.1 GB there (its script 0.47, Train's controller 0.37, two processes that wait 0.12 each), a
    // notebook that is connected 0.2.
    let driver = of_small_and_large(&services.ray_driver, usable, (250, 32 * GIB), (120, 64 * GIB))
        .max(share_floor(&services.ray_driver, GIB));
    let minio = share(&services.minio, 50, 512 * MIB, 16 * GIB);
    let prometheus = share(&services.prometheus, 25, 192 * MIB, 4 * GIB);
    let grafana = share(&services.grafana, 10, 128 * MIB, GIB);
    // Kernels, and 1.2 GB for `ray job logs` of 300 MB in a terminal.
    let jupyter = share(&services.jupyter.service(), 75, 512 * MIB, 32 * GIB);
    let front_door = super::door::MEMORY;
    let around = head + driver + minio + prometheus + grafana + jupyter + front_door.get();
    let left = usable.saturating_sub(around);
    let n = u64::from(workers);
    let worker = match services.ray_worker.memory {
        Some(set) => set.get(),
        None if n == 0 => 0,
        // Whole MiB, so that a few bytes more or less of host memory do not recreate every worker.
        None => left / n / MIB * MIB,
    };
    let set = |service: &Service| service.memory.filter(|_| service.on());
    let limits_set = [
        ("services.ray-head.memory", set(&services.ray_head)),
        ("services.ray-driver.memory", set(&services.ray_driver)),
        ("services.ray-worker.memory", set(&services.ray_worker)),
        ("services.minio.memory", set(&services.minio)),
        ("services.jupyter.memory", set(&services.jupyter.service())),
        ("services.prometheus.memory", set(&services.prometheus)),
        ("services.grafana.memory", set(&services.grafana)),
    ];
    let stores_set = [("ray.object_store", config.ray.object_store), ("ray.shared_memory", config.ray.shared_memory)];
    // Also where no worker is planned yet, as in `labd config check`: a limit of none of them adds up to nothing.
    let too_large =
        |(key, size): (&'static str, Option<Bytes>)| size.filter(|s| s.get() > usable).map(|size| (size, key));
    if let Some((size, key)) = limits_set.into_iter().chain(stores_set).filter_map(too_large).max() {
        return Err(format!(
            "`{key}` is {size}, and this machine has {} after {} for the host: lower `{key}` in labd.toml",
            Bytes::new(usable),
            Bytes::new(host),
        ));
    }
    let blame = limits_set.into_iter().filter_map(|(k, v)| v.map(|v| (v, k))).max();
    let wanted = around + worker * n;
    if wanted > usable || (n > 0 && worker < 64 * MIB) {
        let lower = blame.map_or("this machine is too small for so many GPUs".to_owned(), |(size, key)| {
            format!("lower `{key}` in labd.toml (now {size})")
        });
        return Err(format!(
            "the services' memory limits add up to {}, and this machine has {} after {} for the host: {lower}",
            Bytes::new(around + (worker.max(64 * MIB)) * n),
            Bytes::new(usable),
            Bytes::new(host),
        ));
    }
    let store = |memory: u64| (memory / 4 / MIB * MIB).max(MIN_OBJECT_STORE);
    let worker_object_store = config.ray.object_store.map_or_else(|| store(worker), Bytes::get);
    if config.ray.object_store.is_some() && worker_object_store * n > usable {
        return Err(format!(
            "{n} object stores of {} do not fit into the {} that this machine has after {} for the host: lower \
             `ray.object_store` in labd.toml",
            Bytes::new(worker_object_store),
            Bytes::new(usable),
            Bytes::new(host),
        ));
    }
    let computed_shm = (worker_object_store + worker / 8 / MIB * MIB) * n.max(1);
    let shared_memory = config.ray.shared_memory.map_or(computed_shm, Bytes::get);
    if shared_memory < worker_object_store * n {
        return Err(format!(
            "`ray.shared_memory` is {}, less than {n} object stores of {}: raise it, or lower `ray.object_store`",
            Bytes::new(shared_memory),
            Bytes::new(worker_object_store),
        ));
    }
    Ok(Sizes {
        host: Bytes::new(host),
        head: Bytes::new(head),
        driver: Bytes::new(driver),
        worker: Bytes::new(worker),
        workers,
        minio: Bytes::new(minio),
        prometheus: Bytes::new(prometheus),
        grafana: Bytes::new(grafana),
        jupyter: Bytes::new(jupyter),
        front_door,
        head_object_store: Bytes::new(HEAD_OBJECT_STORE),
        // Half a worker's part: what is in it counts towards the limit, and scripts need the memory; the rest is spilled.
        driver_object_store: Bytes::new(store(driver / 2).min(4 * GIB)),
        worker_object_store: Bytes::new(worker_object_store),
        shared_memory: Bytes::new(shared_memory),
        driver_cpus: config.ray.driver_cpus.unwrap_or_else(|| (node.cpus / 4).max(4)),
        // A promise, not a core: training scripts written for a cluster ask for 8 per worker.
        worker_cpus: config.ray.cpus_per_worker.unwrap_or_else(|| (node.cpus / workers.max(1)).max(8)),
    })
}

/// A service's part of `usable`, in permille up to a ceiling: one for small machines, and one for large ones where it is more.
/// What `labd.toml` sets goes before.
fn of_small_and_large(service: &Service, usable: u64, small: (u64, u64), large: (u64, u64)) -> u64 {
    let part = |(permille, ceiling): (u64, u64)| (usable / 1000 * permille).min(ceiling);
    service.memory.map_or_else(|| part(small).max(part(large)), Bytes::get)
}

/// The floor of a service whose size is not set.
fn share_floor(service: &Service, floor: u64) -> u64 {
    if service.memory.is_some() { 0 } else { floor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::inputs;

    const MB: u64 = 1_000_000;

    #[test]
    fn there_is_room_where_drivers_run_and_in_the_head() {
        let mib = |b: Bytes| b.get() / MIB;
        let found = [8, 24, 64, 256, 1024].map(|machine| {
            let inputs = inputs("", 2, machine);
            let sizes = compute(&inputs.config, &inputs.node, 2).expect("it fits");
            [machine, mib(sizes.head), mib(sizes.driver), mib(sizes.driver_object_store), mib(sizes.worker)]
        });
        // Of the machine in GiB; of head, driver, driver's object store and each of two workers in MiB.
        assert_eq!(
            found,
            [
                [8, 1194, 1791, 223, 1357],
                [24, 2654, 5529, 691, 5149],
                [64, 4718, 14745, 1843, 14992],
                [256, 16384, 32768, 4096, 80336],
                [1024, 16384, 65536, 4096, 447_952],
            ]
        );
    }

    #[test]
    fn three_drivers_of_a_course_and_five_notebooks_fit_a_machine_of_24_gib() {
        let inputs = inputs("", 2, 24);
        let sizes = compute(&inputs.config, &inputs.node, 2).expect("it fits");
        let busy = 3 * (470 + 370 + 2 * 120) * MB + 5 * 200 * MB + 250 * MIB;
        assert!(busy + sizes.driver_object_store.get() < sizes.driver.get(), "{sizes:?}");
    }
}
