//! Ray's own Grafana dashboards: what the head writes of them, and of that what a chart needs. Pure.
//!
//! Ray makes them in Grafana's format of 2020, with what only an editor of dashboards needs: a tenth of it is left.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Largest file of one, in bytes: the largest of Ray 2.60 has half a megabyte.
pub const LARGEST: usize = 4 << 20;
/// What Ray's dashboard must hear of a Grafana before it embeds its panels.
pub const HEALTHY: &str = r#"{"database":"ok","version":"labd"}"#;
/// Kind of a panel that is a heading.
const ROW: &str = "row";
/// Value of a variable that means all of its values.
const ALL_VALUES: &str = "$__all";

/// Dashboard that the head writes.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Ray's id for it, which its own pages ask Grafana for.
    pub uid: &'static str,
    /// Name of its file in [`crate::services::ray_head::DASHBOARDS`].
    pub file: &'static str,
}

/// All of them, as Ray 2.60 writes them (`dashboard/modules/metrics/metrics_head.py`).
pub const ALL: [Source; 8] = [
    Source { uid: "rayDefaultDashboard", file: "default_grafana_dashboard.json" },
    Source { uid: "rayTrainDashboard", file: "train_grafana_dashboard.json" },
    Source { uid: "rayDataDashboard", file: "data_grafana_dashboard.json" },
    Source { uid: "rayServeDashboard", file: "serve_grafana_dashboard.json" },
    Source { uid: "rayServeDeploymentDashboard", file: "serve_deployment_grafana_dashboard.json" },
    Source { uid: "rayServeLlmDashboard", file: "serve_llm_grafana_dashboard.json" },
    Source { uid: "rayServeLlmSglangDashboard", file: "serve_llm_sglang_grafana_dashboard.json" },
    Source { uid: "rayDataLlmDashboard", file: "data_llm_grafana_dashboard.json" },
];

/// Dashboard, as far as charts need it.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Dashboard {
    /// Its title.
    pub title: String,
    /// Values of the variables that its queries name, where nobody chooses others: regular expressions that take all there
    /// is, and spans such as `5m`.
    pub variables: BTreeMap<String, String>,
    /// Its rows, in order.
    pub rows: Vec<Row>,
}

/// Panels under one heading.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Row {
    /// The heading; empty above the first one.
    pub title: String,
    /// Its panels, in order.
    pub panels: Vec<Panel>,
}

/// Chart of a dashboard.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Panel {
    /// Number by which Ray's pages ask for it.
    pub id: u32,
    /// Its title.
    pub title: String,
    /// Sentence about what it shows; may be empty.
    pub about: String,
    /// Grafana's name for its unit, or a word for it: `bytes`, `percentunit`, `tasks`. May be empty.
    pub unit: String,
    /// Whether its lines are stacked.
    pub stacked: bool,
    /// What it asks Prometheus for.
    pub queries: Vec<Query>,
    /// Lines that are limits: drawn with dashes, and not stacked. Names, or regular expressions between slashes.
    pub limits: Vec<String>,
    /// Lines that are not drawn until somebody asks for them; as `limits`.
    pub hidden: Vec<String>,
}

/// Question to Prometheus.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Query {
    /// PromQL with variables (`$Instance`).
    pub expr: String,
    /// Name of each of its lines, with labels in double braces; may be empty.
    pub legend: String,
}

#[derive(Deserialize)]
struct GrafanaDashboard {
    title: String,
    panels: Vec<GrafanaPanel>,
    #[serde(default)]
    templating: Templating,
}

#[derive(Default, Deserialize)]
struct Templating {
    #[serde(default)]
    list: Vec<Variable>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Variable {
    name: String,
    all_value: Option<String>,
    #[serde(default)]
    current: Current,
}

#[derive(Default, Deserialize)]
struct Current {
    /// A text, or a list of texts.
    #[serde(default)]
    value: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GrafanaPanel {
    id: u32,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default, deserialize_with = "is_true")]
    stack: bool,
    #[serde(default)]
    panels: Vec<GrafanaPanel>,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default)]
    series_overrides: Vec<Override>,
    #[serde(default)]
    field_config: FieldConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    expr: String,
    #[serde(default)]
    legend_format: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Override {
    alias: String,
    #[serde(default)]
    dashes: bool,
    #[serde(default)]
    hidden_series: bool,
}

#[derive(Default, Deserialize)]
struct FieldConfig {
    #[serde(default)]
    defaults: Defaults,
}

#[derive(Default, Deserialize)]
struct Defaults {
    #[serde(default)]
    unit: String,
}

/// Newer kinds of panels have an object where older ones say true or false.
fn is_true<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(serde_json::Value::deserialize(from)? == serde_json::Value::Bool(true))
}

impl Dashboard {
    /// Dashboard of a file that the head wrote. Fails with a line about what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let wrong = |e| format!("Ray's dashboard is written in another way than this labd knows: {e}");
        let read: GrafanaDashboard = serde_json::from_slice(json).map_err(wrong)?;
        let mut rows = Vec::new();
        for panel in read.panels {
            add(&mut rows, panel);
        }
        rows.retain(|row: &Row| !row.panels.is_empty());
        let variables = read.templating.list.into_iter().map(|v| (v.name.clone(), v.value())).collect();
        Ok(Self { title: read.title, variables, rows })
    }
}

/// Adds a panel below the last heading; a heading that is folded has its panels within itself.
fn add(rows: &mut Vec<Row>, panel: GrafanaPanel) {
    if panel.kind == ROW {
        rows.push(Row { title: panel.title, panels: Vec::new() });
        for within in panel.panels {
            add(rows, within);
        }
        return;
    }
    let (mut limits, mut hidden) = (Vec::new(), Vec::new());
    for over in panel.series_overrides {
        if over.dashes {
            limits.push(over.alias.clone());
        }
        if over.hidden_series {
            hidden.push(over.alias);
        }
    }
    let queries = panel.targets.into_iter().map(|t| Query { expr: t.expr, legend: t.legend_format }).collect();
    let panel = Panel {
        id: panel.id,
        title: panel.title,
        about: panel.description,
        unit: panel.field_config.defaults.unit,
        stacked: panel.stack,
        queries,
        limits,
        hidden,
    };
    match rows.last_mut() {
        Some(row) => row.panels.push(panel),
        None => rows.push(Row { title: String::new(), panels: vec![panel] }),
    }
}

impl Variable {
    fn value(self) -> String {
        match self.current.value {
            serde_json::Value::String(one) if one != ALL_VALUES => one,
            _ => self.all_value.unwrap_or_else(|| ".*".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &[u8] = include_bytes!("../../tests/data/ray-2.60-default-dashboard.json");

    #[test]
    fn a_dashboard_of_rays_is_read_as_far_as_charts_need_it() {
        let read = Dashboard::parse(DEFAULT).expect("Ray's own");
        assert_eq!(read.title, "Default Dashboard");
        let rows: Vec<_> =
            read.rows.iter().map(|r| (r.title.as_str(), r.panels.iter().map(|p| p.id).collect::<Vec<_>>())).collect();
        // Rows without a panel are none; a folded row has its panels within itself.
        let wanted: [(&str, &[u32]); 3] = [
            ("Overview and Health", &[24, 41]),
            ("Hardware Utilization by Node", &[8]),
            ("Ray Tasks, Actors and Placement Groups", &[26]),
        ];
        assert_eq!(rows, wanted.map(|(title, ids)| (title, ids.to_vec())));
        let panel = &read.rows[0].panels[1];
        assert_eq!((panel.title.as_str(), panel.unit.as_str(), panel.stacked), ("Cluster Utilization", "%", false));
        assert!(panel.about.starts_with("Aggregated utilization"), "{}", panel.about);
        assert_eq!(panel.queries[0].legend, "CPU (physical)");
        assert!(panel.queries[0].expr.starts_with("avg(ray_node_cpu_utilization{instance=~\"$Instance\""));
        assert_eq!(panel.limits, ["MAX", "MAX + PENDING", "Container MAX"]);
        assert_eq!(panel.hidden, ["/FINISHED|FAILED|DEAD|REMOVED|Failed Nodes:/", "/Container/", "Container MAX"]);
        assert!(read.rows[1].panels[0].stacked);
    }

    #[test]
    fn a_variable_means_all_there_is_unless_the_dashboard_says_which() {
        let read = Dashboard::parse(DEFAULT).expect("Ray's own");
        let is = |name: &str| read.variables.get(name).map(String::as_str);
        assert_eq!((is("SessionName"), is("Cluster"), is("RayNodeType")), (Some(".+"), Some(".*"), Some(".*")));
        let text = br#"{"title": "T", "panels": [], "templating": {"list": [
            {"name": "interval", "type": "custom", "current": {"value": "5m"}},
            {"name": "route", "allValue": ".*x", "current": {"value": ["$__all"]}},
            {"name": "one", "allValue": ".+", "current": {"value": "$__all"}}]}}"#;
        let read = Dashboard::parse(text).expect("a dashboard");
        let pairs = [("interval", "5m"), ("one", ".+"), ("route", ".*x")];
        assert_eq!(read.variables, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn newer_kinds_of_panels_are_read_and_what_is_no_dashboard_is_said() {
        let text = br#"{"title": "T", "panels": [{"id": 3, "type": "stat", "stack": {"mode": "normal"}, "targets": [{"expr": "1"}]}]}"#;
        let read = Dashboard::parse(text).expect("a dashboard");
        assert!(!read.rows[0].panels[0].stacked && read.rows[0].title.is_empty());
        for wrong in ["", "[]", r#"{"title": "T"}"#, r#"{"title": "T", "panels": [{"id": "x"}]}"#] {
            let said = Dashboard::parse(wrong.as_bytes()).expect_err("no dashboard");
            assert!(said.starts_with("Ray's dashboard is written in another way"), "{said}");
        }
    }
}
