//! Demands on Ray that cannot be met now, in a person's words. Pure.

use std::collections::{BTreeMap, HashMap};

use super::proto;
use crate::snapshot::DemandView;

/// State `NodeStatus::DEAD`.
const DEAD: i32 = 2;

/// Demands, those that can never be met first.
pub(super) fn demands(state: &proto::ClusterState) -> Vec<DemandView> {
    let nodes: Vec<&HashMap<String, f64>> = state.nodes.iter().filter(|n| n.status != DEAD).map(|n| &n.total).collect();
    let largest = nodes
        .iter()
        .max_by(|a, b| size(a).partial_cmp(&size(b)).unwrap_or(std::cmp::Ordering::Equal))
        .map(|n| words(n))
        .unwrap_or_default();
    let single =
        state.pending.iter().filter_map(|d| Some((&d.request.as_ref()?.resources, d.count.max(0).unsigned_abs())));
    let gangs = state.gangs.iter().flat_map(|g| &g.requests).map(|b| (&b.resources, 1));
    let mut merged: BTreeMap<(bool, String), u64> = BTreeMap::new();
    for (resources, count) in single.chain(gangs) {
        let feasible = nodes.iter().any(|node| fits(resources, node));
        let asks = words(resources);
        if !asks.is_empty() && count > 0 {
            *merged.entry((feasible, asks)).or_default() += count;
        }
    }
    merged
        .into_iter()
        .map(|((feasible, asks_for), count)| DemandView {
            asks_for,
            count,
            infeasible: !feasible,
            node_has: largest.clone(),
        })
        .collect()
}

fn fits(asked: &HashMap<String, f64>, node: &HashMap<String, f64>) -> bool {
    asked.iter().filter(|(name, _)| !internal(name)).all(|(name, n)| node.get(name).copied().unwrap_or(0.0) >= *n)
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
        let node =
            |total: &[(&str, f64)], status| proto::NodeResources { total: map(total), status, ..Default::default() };
        let ask = |asked: &[(&str, f64)], count| proto::Demand {
            request: Some(proto::Bundle { resources: map(asked) }),
            count,
        };
        let state = proto::ClusterState {
            nodes: vec![
                node(&[("CPU", 16.0)], 1),
                node(&[("GPU", 1.0), ("CPU", 8.0), ("node:198.18.100.20", 1.0)], 1),
                node(&[("GPU", 8.0), ("CPU", 8.0)], DEAD),
            ],
            pending: vec![ask(&[("GPU", 4.0), ("CPU", 1.0)], 1), ask(&[("GPU", 0.5)], 2), ask(&[], 1)],
            gangs: vec![proto::Gang { requests: vec![proto::Bundle { resources: map(&[("GPU", 0.5)]) }] }],
        };
        let got = demands(&state);
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].asks_for.as_str(), got[0].count, got[0].infeasible), ("4 GPU, 1 CPU", 1, true));
        assert_eq!(got[0].node_has, "1 GPU, 8 CPU");
        assert_eq!((got[1].asks_for.as_str(), got[1].count, got[1].infeasible), ("0.5 GPU", 3, false));
    }
}
