//! Placement of workers: CPUs and memory of their own, so that what feeds a GPU is near it. Pure.
//!
//! Only where it can help: on a machine with several NUMA nodes, for a GPU that is near some of the CPUs and not all of
//! them. GPUs of one node share its CPUs.
//!
//! CPUs are bound whenever that is known. Memory needs no binding to be near: the kernel takes it where the thread runs.
//! Binding it keeps it there when the node is full, at the price that a worker is killed for memory although another node
//! has some; so it is bound only where the limits of all workers of the node fit into the node together.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    gpus::Gpu,
    node::{NodeFacts, numa},
    services::Place,
};

/// Largest sum of its workers' limits, in percent of a NUMA node's memory: the same tenth that the whole machine keeps
/// for the host is left. Chosen, not measured.
const MOST_OF_NODE_PERCENT: u64 = 90;
/// Smallest number of a worker's logical CPUs for Ray: they are a promise, and training scripts ask for 8.
const FEWEST_LOGICAL_CPUS: u32 = 8;

/// Places of the GPUs' workers, in the GPUs' order. `memory_bytes` is each worker's limit.
pub fn places(gpus: &[Gpu], node: &NodeFacts, bind: bool, memory_bytes: u64) -> Vec<Place> {
    let near: Vec<Option<BTreeSet<u32>>> = gpus.iter().map(|gpu| near(gpu, node).filter(|_| bind)).collect();
    let mut sharers: BTreeMap<&BTreeSet<u32>, u32> = BTreeMap::new();
    for cpus in near.iter().flatten() {
        *sharers.entry(cpus).or_default() += 1;
    }
    let homes: Vec<Option<&numa::NumaNode>> = near.iter().map(|cpus| home(cpus.as_ref()?, node)).collect();
    near.iter()
        .zip(&homes)
        .map(|(cpus, home)| {
            let Some(cpus) = cpus else { return Place::default() };
            let share = u32::try_from(cpus.len()).unwrap_or(u32::MAX) / sharers.get(cpus).copied().unwrap_or(1);
            let memory = home.filter(|home| {
                let here = homes.iter().flatten().filter(|other| other.id == home.id).count() as u64;
                here.saturating_mul(memory_bytes) <= home.memory_bytes / 100 * MOST_OF_NODE_PERCENT
            });
            Place {
                cpus: Some(numa::list(cpus)),
                memory: memory.map(|home| home.id.to_string()),
                logical_cpus: Some(share.max(FEWEST_LOGICAL_CPUS)),
            }
        })
        .collect()
}

/// CPUs near a GPU: some of the machine's, never all.
fn near(gpu: &Gpu, node: &NodeFacts) -> Option<BTreeSet<u32>> {
    let of = |n: &numa::NumaNode| numa::cpus(&n.cpus).unwrap_or_default();
    let with_cpus = node.numa.iter().filter(|n| !n.cpus.is_empty());
    if with_cpus.clone().count() < 2 {
        return None;
    }
    let online: BTreeSet<u32> = with_cpus.flat_map(of).collect();
    let listed = gpu.cpu_list.as_deref().and_then(numa::cpus).filter(|cpus| !cpus.is_empty());
    let own = || Some(of(node.numa.iter().find(|n| Some(n.id) == gpu.numa_node)?));
    // An engine refuses CPUs that are not there.
    let cpus: BTreeSet<u32> = listed.or_else(own)?.intersection(&online).copied().collect();
    (!cpus.is_empty() && cpus != online).then_some(cpus)
}

/// The one NUMA node that all these CPUs belong to.
fn home<'a>(cpus: &BTreeSet<u32>, node: &'a NodeFacts) -> Option<&'a numa::NumaNode> {
    node.numa.iter().find(|n| numa::cpus(&n.cpus).is_some_and(|own| cpus.is_subset(&own)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gpus::simulate, node::numa::NumaNode, plan::tests::inputs};

    const GIB: u64 = 1 << 30;

    fn machine(nodes: &[(u32, &str, u64)]) -> NodeFacts {
        let numa = nodes.iter().map(|&(id, cpus, gib)| NumaNode { id, cpus: cpus.into(), memory_bytes: gib * GIB });
        NodeFacts { numa: numa.collect(), ..inputs("", 0, 32).node }
    }

    fn gpus(at: &[(Option<u32>, Option<&str>)]) -> Vec<Gpu> {
        let mut gpus = simulate::gpus(u32::try_from(at.len()).expect("few"), &[]);
        for (gpu, (node, cpus)) in gpus.iter_mut().zip(at) {
            (gpu.numa_node, gpu.cpu_list) = (*node, cpus.map(str::to_owned));
        }
        gpus
    }

    fn said(places: &[Place]) -> Vec<String> {
        let word = |w: &Option<String>| w.clone().unwrap_or_else(|| "-".to_owned());
        places
            .iter()
            .map(|p| format!("{} {} {}", word(&p.cpus), word(&p.memory), p.logical_cpus.unwrap_or(0)))
            .collect()
    }

    /// Case: what it is, the NUMA nodes, where each GPU is, a worker's GiB, and each worker's CPUs, memory and logical
    /// CPUs.
    type Case<'a> = (&'a str, &'a [(u32, &'a str, u64)], &'a [(Option<u32>, Option<&'a str>)], u64, &'a [&'a str]);

    #[test]
    fn a_worker_is_where_its_gpu_is() {
        let two = [(0, "0-31,64-95", 256), (1, "32-63,96-127", 256)];
        let cases: [Case<'_>; 10] = [
            ("one each", &two, &[(Some(0), None), (Some(1), None)], 100, &["0-31,64-95 0 64", "32-63,96-127 1 64"]),
            (
                "three share, one is alone; the three's memory does not fit",
                &two,
                &[(Some(0), None), (Some(0), None), (Some(0), None), (Some(1), None)],
                100,
                &["0-31,64-95 - 21", "0-31,64-95 - 21", "0-31,64-95 - 21", "32-63,96-127 1 64"],
            ),
            ("the kernel's list goes before the node's", &two, &[(Some(0), Some("0-15"))], 100, &["0-15 0 16"]),
            ("a list alone finds its memory", &two, &[(None, Some("40-41"))], 100, &["40-41 1 8"]),
            ("over two nodes: no memory", &two, &[(None, Some("30-33"))], 100, &["30-33 - 8"]),
            ("all CPUs are no binding", &two, &[(None, Some("0-127"))], 100, &["- - 0"]),
            ("CPUs that are not there", &two, &[(Some(0), Some("200-201"))], 100, &["- - 0"]),
            ("nobody knows", &two, &[(None, None), (Some(7), None)], 100, &["- - 0", "- - 0"]),
            ("one node", &[(0, "0-15", 64)], &[(Some(0), Some("0-7"))], 10, &["- - 0"]),
            ("memory alone is no place to run", &[(0, "0-15", 64), (1, "", 64)], &[(Some(0), None)], 10, &["- - 0"]),
        ];
        for (what, nodes, at, gib, want) in cases {
            assert_eq!(said(&places(&gpus(at), &machine(nodes), true, gib * GIB)), want, "{what}");
        }
        let node = machine(&two);
        assert_eq!(said(&places(&gpus(&[(Some(0), None)]), &node, false, GIB)), ["- - 0"], "gpus.bind = false");
        let bare = [(0, "0", 64), (1, "1", 0)];
        let simulated = simulate::gpus(3, &machine(&bare).numa);
        assert_eq!(said(&places(&simulated, &machine(&bare), true, GIB)), ["0 0 8", "1 - 8", "0 0 8"]);
    }
}
