//! Messages of Ray's GCS that labd uses, with the fields it reads. Field numbers from Ray 2.60's `gcs_service.proto`,
//! `gcs.proto` and `autoscaler.proto`; fields labd does not know are skipped, as protobuf does.

use std::collections::HashMap;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodesRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodesReply {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    pub(super) nodes: Vec<Node>,
}

/// Message `GcsNodeInfo`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) address: String,
    /// Port of its raylet.
    #[prost(int32, tag = "5")]
    pub(super) port: i32,
    /// State; 0 is ALIVE, 1 is DEAD.
    #[prost(int32, tag = "7")]
    pub(super) state: i32,
    #[prost(map = "string, double", tag = "11")]
    pub(super) resources: HashMap<String, f64>,
    #[prost(string, tag = "12")]
    pub(super) name: String,
    #[prost(uint64, tag = "23")]
    pub(super) start_time_ms: u64,
    #[prost(bool, tag = "25")]
    pub(super) is_head: bool,
    #[prost(map = "string, string", tag = "26")]
    pub(super) labels: HashMap<String, String>,
}

impl Node {
    /// Whether the GCS counts it as ALIVE.
    pub(super) const fn is_alive(&self) -> bool {
        self.state == 0
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct UnregisterRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) node_id: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub(super) death: Option<Death>,
}

/// Message `NodeDeathInfo`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Death {
    /// Reason; 2 is `UNEXPECTED_TERMINATION`.
    #[prost(int32, tag = "1")]
    pub(super) reason: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StateRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StateReply {
    #[prost(message, optional, tag = "1")]
    pub(super) state: Option<ClusterState>,
}

/// Message `ClusterResourceState`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ClusterState {
    #[prost(message, repeated, tag = "3")]
    pub(super) nodes: Vec<NodeResources>,
    #[prost(message, repeated, tag = "4")]
    pub(super) pending: Vec<Demand>,
    #[prost(message, repeated, tag = "5")]
    pub(super) gangs: Vec<Gang>,
}

/// Message `NodeState`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeResources {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    #[prost(map = "string, double", tag = "4")]
    pub(super) available: HashMap<String, f64>,
    #[prost(map = "string, double", tag = "5")]
    pub(super) total: HashMap<String, f64>,
    /// Status; 2 is DEAD.
    #[prost(int32, tag = "8")]
    pub(super) status: i32,
}

/// Message `ResourceRequestByCount`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Demand {
    #[prost(message, optional, tag = "1")]
    pub(super) request: Option<Bundle>,
    #[prost(int64, tag = "2")]
    pub(super) count: i64,
}

/// Message `ResourceRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Bundle {
    #[prost(map = "string, double", tag = "1")]
    pub(super) resources: HashMap<String, f64>,
}

/// Message `GangResourceRequest`: a placement group that waits.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Gang {
    #[prost(message, repeated, tag = "1")]
    pub(super) requests: Vec<Bundle>,
}

/// Message `GetAllJobInfoRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GcsJobsRequest {
    #[prost(bool, optional, tag = "3")]
    pub(super) skip_submission_info: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(super) skip_is_running_tasks: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GcsJobsReply {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    pub(super) jobs: Vec<GcsJob>,
}

/// Message `JobTableData`: every driver that has connected, those of the job API and all others.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GcsJob {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    #[prost(bool, tag = "2")]
    pub(super) is_dead: bool,
    #[prost(message, optional, tag = "12")]
    pub(super) driver: Option<Address>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Address {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) node: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PlacementGroupsRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PlacementGroupsReply {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    pub(super) groups: Vec<PlacementGroup>,
}

/// Message `PlacementGroupTableData`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PlacementGroup {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    /// State; 2 is CREATED, 3 REMOVED, 4 RESCHEDULING.
    #[prost(int32, tag = "5")]
    pub(super) state: i32,
    #[prost(bytes = "vec", tag = "6")]
    pub(super) job: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) actor: Vec<u8>,
    #[prost(bool, tag = "10")]
    pub(super) is_detached: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RemovePlacementGroupRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
}

/// Reply that says whether it was done.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DoneReply {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ActorRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NamedActorRequest {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NamedActorReply {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    pub(super) actor: Option<Actor>,
}

/// Message `ActorTableData`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Actor {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) job: Vec<u8>,
    /// State; 0 and 1 wait for their place (`DEPENDENCIES_UNREADY`, `PENDING_CREATION`), 2 is ALIVE.
    #[prost(int32, tag = "6")]
    pub(super) state: i32,
    /// Field `serialized_runtime_env`.
    #[prost(string, tag = "22")]
    pub(super) environment: String,
    #[prost(string, tag = "23")]
    pub(super) class: String,
    #[prost(bytes = "vec", tag = "29")]
    pub(super) node: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ActorsRequest {
    #[prost(message, optional, tag = "3")]
    pub(super) filters: Option<ActorFilters>,
}

/// Message `GetAllActorInfoRequest.Filters`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ActorFilters {
    #[prost(int32, optional, tag = "3")]
    pub(super) state: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ActorsReply {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    pub(super) actors: Vec<Actor>,
}

/// Message to a raylet, of `node_manager.proto`. The language, field 1, is Python: 0.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PrestartRequest {
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) job: Option<Vec<u8>>,
    #[prost(message, optional, tag = "3")]
    pub(super) environment: Option<RuntimeEnvInfo>,
    #[prost(uint64, optional, tag = "4")]
    pub(super) keep_alive_seconds: Option<u64>,
    #[prost(uint64, tag = "5")]
    pub(super) number: u64,
}

/// Message `RuntimeEnvInfo`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RuntimeEnvInfo {
    #[prost(string, tag = "1")]
    pub(super) serialized: String,
    #[prost(message, optional, tag = "3")]
    pub(super) config: Option<RuntimeEnvConfig>,
}

/// Message `RuntimeEnvConfig`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RuntimeEnvConfig {
    #[prost(int32, tag = "1")]
    pub(super) setup_timeout_seconds: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PrestartReply {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct KillActorRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) actor_id: Vec<u8>,
    #[prost(bool, tag = "2")]
    pub(super) force: bool,
    #[prost(bool, tag = "3")]
    pub(super) no_restart: bool,
}
