//! Demands on Ray that cannot be met now, in a person's words. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use super::{RayNode, proto};
use crate::snapshot::DemandView;

/// Tolerance of sums: Ray counts in steps of 0.0001.
const STEP: f64 = 1e-4;

/// Resources of the lab when all of it is there: whether a demand can ever be met does not change while a node is away that
/// comes back.
#[derive(Debug, Default)]
pub(super) struct Lab {
    /// Resources of each node.
    nodes: Vec<HashMap<String, f64>>,
    /// Whether no GPU was seen yet, and nodes are still to come: nothing is known then.
    unknown: bool,
}

impl Lab {
    /// Resources by the newest node of each address, and the addresses `planned` for nodes. One that did not join yet counts
    /// as one more of the largest.
    pub(super) fn new(nodes: &[RayNode], planned: &BTreeSet<Ipv4Addr>) -> Self {
        let counts = |node: &&RayNode| node.alive || planned.contains(&node.address);
        let resources = |node: &RayNode| node.resources.iter().map(|(name, &n)| (name.clone(), n)).collect();
        let mut lab = Self { nodes: nodes.iter().filter(counts).map(resources).collect(), unknown: false };
        let to_come = planned.iter().filter(|&address| nodes.iter().all(|node| node.address != *address)).count();
        if let Some(largest) = lab.largest().filter(|node| size(node).0 > 0.0).cloned() {
            lab.nodes.extend(std::iter::repeat_n(largest, to_come));
        } else {
            lab.unknown = to_come > 0;
        }
        lab
    }

    fn largest(&self) -> Option<&HashMap<String, f64>> {
        self.nodes.iter().max_by(|a, b| size(a).partial_cmp(&size(b)).unwrap_or(std::cmp::Ordering::Equal))
    }

    fn has_node_for(&self, asked: &HashMap<String, f64>) -> bool {
        self.unknown || self.nodes.iter().any(|node| fits(asked, node))
    }

    /// Sum of what it has of these resources.
    fn total(&self, of: &HashMap<String, f64>) -> HashMap<String, f64> {
        let total = |name: &String| self.nodes.iter().filter_map(|node| node.get(name)).sum();
        of.keys().map(|name| (name.clone(), total(name))).collect()
    }
}

/// Demands, those that can never be met first. A placement group asks at once: its sum is compared with the lab. Single
/// requests take their turns.
pub(super) fn demands(state: &proto::ClusterState, lab: &Lab) -> Vec<DemandView> {
    let largest = lab.largest().map(words).unwrap_or_default();
    let single =
        state.pending.iter().filter_map(|d| Some((&d.request.as_ref()?.resources, d.count.max(0).unsigned_abs())));
    let mut merged: BTreeMap<(bool, String, String), u64> = BTreeMap::new();
    let mut add = |feasible, asks: String, lab_has: String, count| {
        if !asks.is_empty() && count > 0 {
            *merged.entry((feasible, asks, lab_has)).or_default() += count;
        }
    };
    for (resources, count) in single {
        add(lab.has_node_for(resources), words(resources), String::new(), count);
    }
    for gang in &state.gangs {
        let each = gang.requests.iter().map(|bundle| &bundle.resources);
        let sum = sum(each.clone());
        let has = lab.total(&sum);
        if each.clone().all(|resources| lab.has_node_for(resources)) && !lab.unknown && !fits(&sum, &has) {
            add(false, words(&sum), words(&has), 1);
            continue;
        }
        for resources in each {
            add(lab.has_node_for(resources), words(resources), String::new(), 1);
        }
    }
    merged
        .into_iter()
        .map(|((feasible, asks_for, lab_has), count)| DemandView {
            asks_for,
            count,
            infeasible: !feasible,
            node_has: largest.clone(),
            lab_has,
        })
        .collect()
}

/// Sum of what several requests ask for.
fn sum<'a>(requests: impl Iterator<Item = &'a HashMap<String, f64>>) -> HashMap<String, f64> {
    let mut sum: HashMap<String, f64> = HashMap::new();
    for (name, n) in requests.flatten().filter(|(name, _)| !internal(name)) {
        *sum.entry(name.clone()).or_default() += n;
    }
    sum
}

fn fits(asked: &HashMap<String, f64>, has: &HashMap<String, f64>) -> bool {
    let has = |name: &String| has.get(name).copied().unwrap_or(0.0);
    asked.iter().filter(|(name, _)| !internal(name)).all(|(name, n)| has(name) + STEP >= *n)
}

/// Resources that Ray makes up for itself.
fn internal(name: &str) -> bool {
    name.starts_with("node:") || name.contains("_group_") || name.starts_with("bundle_") || name == "implicit_resource"
}

fn size(node: &HashMap<String, f64>) -> (f64, f64) {
    (node.get("GPU").copied().unwrap_or(0.0), node.get("CPU").copied().unwrap_or(0.0))
}

/// Resources in words, such as `4 GPU, 8 CPU`: GPU first, then CPU, then others by name.
pub(crate) fn words(resources: &HashMap<String, f64>) -> String {
    let mut named: Vec<(u8, &str, f64)> = resources
        .iter()
        .filter(|(name, n)| !internal(name) && **n > 0.0 && *name != "object_store_memory")
        .map(|(name, &n)| {
            (u8::from(name != "GPU") + u8::from(!matches!(name.as_str(), "GPU" | "CPU")), name.as_str(), n)
        })
        .collect();
    named.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let words = named.into_iter().map(|(_, name, n)| match name {
        "memory" => format!("{:.1} GiB memory", n / 1_073_741_824.0),
        _ => format!("{n} {name}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, f64)]) -> HashMap<String, f64> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
    }

    #[test]
    fn what_no_node_has_is_infeasible_and_what_is_busy_is_not() {
        let ask = |asked: &[(&str, f64)], count| proto::Demand {
            request: Some(proto::Bundle { resources: map(asked) }),
            count,
        };
        let state = proto::ClusterState {
            nodes: Vec::new(),
            pending: vec![ask(&[("GPU", 4.0), ("CPU", 1.0)], 1), ask(&[("GPU", 0.5)], 2), ask(&[], 1)],
            gangs: vec![proto::Gang { requests: vec![proto::Bundle { resources: map(&[("GPU", 0.5)]) }] }],
        };
        let nodes = [
            node(1, &[("CPU", 16.0)], true),
            node(20, &[("GPU", 1.0), ("CPU", 8.0), ("node:198.18.100.20", 1.0)], true),
            node(30, &[("GPU", 8.0), ("CPU", 8.0)], false),
        ];
        let got = demands(&state, &Lab::new(&nodes, &planned(&[1, 20])));
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].asks_for.as_str(), got[0].count, got[0].infeasible), ("4 GPU, 1 CPU", 1, true));
        assert_eq!(got[0].node_has, "1 GPU, 8 CPU");
        assert_eq!((got[1].asks_for.as_str(), got[1].count, got[1].infeasible), ("0.5 GPU", 3, false));
    }

    /// Node of the address with this last part.
    fn node(last: u8, has: &[(&str, f64)], alive: bool) -> RayNode {
        RayNode {
            id: vec![last],
            address: Ipv4Addr::new(198, 18, 100, last),
            port: 0,
            alive,
            is_head: last == 10,
            started_at: crate::time::Timestamp::from_millis(1),
            name: String::new(),
            resources: map(has).into_iter().collect(),
            available: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    fn planned(last: &[u8]) -> BTreeSet<Ipv4Addr> {
        last.iter().map(|&last| Ipv4Addr::new(198, 18, 100, last)).collect()
    }

    #[test]
    fn what_is_asked_for_at_once_can_never_be_met_where_its_sum_is_more_than_the_lab_has() {
        let worker = |last, alive| node(last, &[("GPU", 1.0), ("CPU", 8.0)], alive);
        let head = || node(10, &[("CPU", 4.0)], true);
        let lab = planned(&[10, 20, 21]);
        let bundles = |n: usize| proto::Gang {
            requests: vec![proto::Bundle { resources: map(&[("GPU", 1.0), ("bundle_group_x", 1.0)]) }; n],
        };
        let single = |count| proto::Demand { request: Some(proto::Bundle { resources: map(&[("GPU", 1.0)]) }), count };
        let never = ("3 GPU", 1, true, "2 GPU");
        for (what, nodes, gangs, singles, want) in [
            ("a group of three", vec![head(), worker(20, true), worker(21, true)], vec![3], 0, vec![never]),
            (
                "two groups in turn",
                vec![head(), worker(20, true), worker(21, true)],
                vec![2, 2],
                0,
                vec![("1 GPU", 4, false, "")],
            ),
            (
                "single ones in turn",
                vec![head(), worker(20, true), worker(21, true)],
                vec![],
                3,
                vec![("1 GPU", 3, false, "")],
            ),
            (
                "a worker died and comes back",
                vec![head(), worker(20, false), worker(21, true)],
                vec![2],
                0,
                vec![("1 GPU", 2, false, "")],
            ),
            (
                "all workers died",
                vec![head(), worker(20, false), worker(21, false)],
                vec![2],
                1,
                vec![("1 GPU", 3, false, "")],
            ),
            ("too much all the same", vec![head(), worker(20, false), worker(21, true)], vec![3], 0, vec![never]),
            ("one is to come", vec![head(), worker(20, true)], vec![2], 0, vec![("1 GPU", 2, false, "")]),
            ("no worker is there yet", vec![head()], vec![9], 1, vec![("1 GPU", 10, false, "")]),
            (
                "a worker that is not planned any more",
                vec![head(), worker(20, true), worker(21, true), worker(22, false)],
                vec![3],
                0,
                vec![never],
            ),
        ] {
            let state = proto::ClusterState {
                nodes: Vec::new(),
                pending: vec![single(singles)],
                gangs: gangs.into_iter().map(bundles).collect(),
            };
            let got = demands(&state, &Lab::new(&nodes, &lab));
            let got: Vec<_> =
                got.iter().map(|d| (d.asks_for.as_str(), d.count, d.infeasible, d.lab_has.as_str())).collect();
            assert_eq!(got, want, "{what}");
        }
    }
}
