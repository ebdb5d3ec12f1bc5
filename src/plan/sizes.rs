//! Sizes: how the machine is divided. Pure.
//!
//! Memory limits of all services together leave room for the host: a tenth of it, 1 to 16 GiB. The services around the
//! workers get a share between a floor (what they need idle, measured) and a ceiling; the workers divide the rest evenly.
//! What `labd.toml` sets is taken as it is, and refused when the whole no longer fits.

use std::collections::BTreeMap;

use crate::{
    config::{Bytes, Config},
    node::NodeFacts,
    services::{ALL, GIB, MIB, Memory, Sizes, ray_driver, ray_worker},
};

/// Smallest object store that Ray takes (`OBJECT_STORE_MINIMUM_MEMORY_BYTES`).
const MIN_OBJECT_STORE: u64 = 75 * MIB;
/// Size of the head's object store: it runs no user code.
const HEAD_OBJECT_STORE: u64 = 100 * MIB;

/// Divides the machine. Fails when what `labd.toml` sets does not fit.
pub fn compute(config: &Config, node: &NodeFacts, workers: u32) -> Result<Sizes, String> {
    let total = node.memory_bytes;
    let host = (total / 10).clamp(GIB.min(total / 4), 16 * GIB);
    let usable = total - host;
    let mut memory: BTreeMap<&'static str, Bytes> = BTreeMap::new();
    let mut limits_set: Vec<(String, Option<Bytes>)> = Vec::new();
    for def in ALL {
        let set = def.settings(config).memory.filter(|_| def.is_enabled(config));
        limits_set.push((format!("services.{}.memory", def.name()), set));
        let bytes = match def.memory {
            _ if !def.is_enabled(config) => Bytes::new(0),
            Memory::Fixed(bytes) => bytes,
            Memory::Share(of) => set.unwrap_or_else(|| Bytes::new(of(usable))),
            Memory::Rest => continue,
        };
        memory.insert(def.size_key, bytes);
    }
    let around: u64 = memory.values().map(|bytes| bytes.get()).sum();
    let left = usable.saturating_sub(around);
    let n = u64::from(workers);
    let worker = match ray_worker::DEF.settings(config).memory {
        Some(set) => set.get(),
        None if n == 0 => 0,
        // Whole MiB, so that a few bytes more or less of host memory do not recreate every worker.
        None => left / n / MIB * MIB,
    };
    memory.insert(ray_worker::DEF.size_key, Bytes::new(worker));
    let driver = memory.get(ray_driver::DEF.size_key).map_or(0, |bytes| bytes.get());
    let stores_set = [("ray.object_store", config.ray.object_store), ("ray.shared_memory", config.ray.shared_memory)];
    let stores_set = stores_set.map(|(key, size)| (key.to_owned(), size));
    // Also where no worker is planned yet, as in `labd config check`: a limit of none of them adds up to nothing.
    let too_large =
        |(key, size): &(String, Option<Bytes>)| size.filter(|s| s.get() > usable).map(|size| (size, key.clone()));
    if let Some((size, key)) = limits_set.iter().chain(&stores_set).filter_map(too_large).max() {
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
        memory,
        workers,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan::tests::inputs, services::ray_head};

    const MB: u64 = 1_000_000;

    #[test]
    fn there_is_room_where_drivers_run_and_in_the_head() {
        let mib = |b: Bytes| b.get() / MIB;
        let found = [8, 24, 64, 256, 1024].map(|machine| {
            let inputs = inputs("", 2, machine);
            let sizes = compute(&inputs.config, &inputs.node, 2).expect("it fits");
            [
                machine,
                mib(sizes.of(&ray_head::DEF)),
                mib(sizes.of(&ray_driver::DEF)),
                mib(sizes.driver_object_store),
                mib(sizes.of(&ray_worker::DEF)),
            ]
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
        assert!(busy + sizes.driver_object_store.get() < sizes.of(&ray_driver::DEF).get(), "{sizes:?}");
    }
}
