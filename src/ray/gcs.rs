//! Calls to the GCS: gRPC on the head's port, with the token as metadata; and the one call to a raylet, of the same kind.

use std::{net::SocketAddr, time::Duration};

use hyper::http::uri::PathAndQuery;
use tonic::{
    Code, Request,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use super::{Endpoint, SETUP_SECONDS, proto, spare::Spare};
use crate::secret::Secret;

/// Longest wait for an answer. A fully loaded head answers in tens of milliseconds.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest wait after an unregistration: the GCS never answers when it is told of a node that it already counts as
/// dead.
const UNREGISTER: Duration = Duration::from_secs(1);
/// Reason `UNEXPECTED_TERMINATION`.
const UNEXPECTED_TERMINATION: i32 = 2;
/// State `ActorTableData.ALIVE`.
pub(super) const ALIVE: i32 = 2;
/// Time for which Ray keeps a process that nothing runs in; it ends with its job in any case.
const KEEP_ALIVE: Duration = Duration::from_hours(30 * 24);
/// Namespace in which Ray keeps the actors of its job API.
const JOBS_NAMESPACE: &str = "SUPERVISOR_ACTOR_RAY_NAMESPACE";

/// A connection, made at the first call and again after it broke.
#[derive(Debug, Clone)]
pub(super) struct Gcs {
    channel: Option<Channel>,
    token: Option<MetadataValue<Ascii>>,
}

impl Gcs {
    pub(super) fn connect(endpoint: &Endpoint) -> Self {
        Self::to(endpoint.gcs, &endpoint.token)
    }

    fn to(address: SocketAddr, token: &Secret) -> Self {
        let channel = Channel::from_shared(format!("http://{address}"))
            .ok()
            .map(|e| e.connect_timeout(Duration::from_secs(1)).connect_lazy());
        let token = format!("Bearer {}", token.expose()).parse().ok().map(|mut value: MetadataValue<Ascii>| {
            value.set_sensitive(true);
            value
        });
        Self { channel, token }
    }

    /// Nodes, dead ones included.
    pub(super) async fn nodes(&self) -> Result<Vec<proto::Node>, String> {
        let reply: proto::NodesReply =
            self.call("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", proto::NodesRequest {}, ANSWER).await?;
        accepted(reply.status.as_ref())?;
        Ok(reply.nodes)
    }

    /// Free and total resources, and what waits for them.
    pub(super) async fn state(&self) -> Result<proto::ClusterState, String> {
        let path = "/ray.rpc.autoscaler.AutoscalerStateService/GetClusterResourceState";
        let reply: proto::StateReply = self.call(path, proto::StateRequest {}, ANSWER).await?;
        Ok(reply.state.unwrap_or_default())
    }

    /// Actors that are ALIVE.
    pub(super) async fn actors(&self) -> Result<Vec<proto::Actor>, String> {
        let request = proto::ActorsRequest { filters: Some(proto::ActorFilters { state: Some(ALIVE) }) };
        let reply: proto::ActorsReply =
            self.call("/ray.rpc.ActorInfoGcsService/GetAllActorInfo", request, ANSWER).await?;
        accepted(reply.status.as_ref())?;
        Ok(reply.actors)
    }

    /// Declares a node dead.
    pub(super) async fn unregister(&self, node_id: Vec<u8>, message: &str) -> Result<(), String> {
        let death = proto::Death { reason: UNEXPECTED_TERMINATION, message: message.to_owned() };
        let request = proto::UnregisterRequest { node_id, death: Some(death) };
        let path = "/ray.rpc.NodeInfoGcsService/UnregisterNode";
        match tokio::time::timeout(UNREGISTER, self.call::<_, proto::DoneReply>(path, request, ANSWER)).await {
            Ok(reply) => accepted(reply?.status.as_ref()),
            // It was dead already.
            Err(_) => Ok(()),
        }
    }

    /// Ends the actor that would run a job's driver, while it waits for its place; one that runs is left alone.
    pub(super) async fn kill_waiting_job(&self, submission_id: &str) -> Result<(), String> {
        let request = proto::NamedActorRequest {
            name: format!("_ray_internal_job_actor_{submission_id}"),
            namespace: JOBS_NAMESPACE.to_owned(),
        };
        let reply: proto::NamedActorReply =
            self.call("/ray.rpc.ActorInfoGcsService/GetNamedActorInfo", request, ANSWER).await?;
        // One that never was, or has ended, is no error here.
        let Some(actor) = reply.actor.filter(|actor| !actor.id.is_empty() && actor.state < ALIVE) else {
            return Ok(());
        };
        let request = proto::KillActorRequest { actor_id: actor.id, force: true, no_restart: true };
        let reply: proto::DoneReply =
            self.call("/ray.rpc.ActorInfoGcsService/KillActorViaGcs", request, ANSWER).await?;
        accepted(reply.status.as_ref())
    }

    /// Drivers that have ever connected, as the GCS has them.
    pub(super) async fn jobs(&self) -> Result<Vec<proto::GcsJob>, String> {
        let request = proto::GcsJobsRequest { skip_submission_info: Some(true), skip_is_running_tasks: Some(true) };
        let reply: proto::GcsJobsReply = self.call("/ray.rpc.JobInfoGcsService/GetAllJobInfo", request, ANSWER).await?;
        accepted(reply.status.as_ref())?;
        Ok(reply.jobs)
    }

    /// Placement groups, removed ones included.
    pub(super) async fn placement_groups(&self) -> Result<Vec<proto::PlacementGroup>, String> {
        let path = "/ray.rpc.PlacementGroupInfoGcsService/GetAllPlacementGroup";
        let reply: proto::PlacementGroupsReply = self.call(path, proto::PlacementGroupsRequest {}, ANSWER).await?;
        accepted(reply.status.as_ref())?;
        Ok(reply.groups)
    }

    /// Removes a placement group.
    pub(super) async fn remove_placement_group(&self, id: Vec<u8>) -> Result<(), String> {
        let path = "/ray.rpc.PlacementGroupInfoGcsService/RemovePlacementGroup";
        let reply: proto::DoneReply = self.call(path, proto::RemovePlacementGroupRequest { id }, ANSWER).await?;
        accepted(reply.status.as_ref())
    }

    /// Actor with this id; `None` for one that the GCS no longer has.
    pub(super) async fn actor(&self, id: Vec<u8>) -> Result<Option<proto::Actor>, String> {
        let reply: proto::NamedActorReply =
            self.call("/ray.rpc.ActorInfoGcsService/GetActorInfo", proto::ActorRequest { id }, ANSWER).await?;
        Ok(reply.actor.filter(|actor| !actor.id.is_empty()))
    }

    async fn call<Q, R>(&self, path: &'static str, message: Q, limit: Duration) -> Result<R, String>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let channel = self.channel.clone().ok_or("the GCS has no valid address")?;
        let mut grpc = Grpc::new(channel).max_decoding_message_size(16 << 20);
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        let work = async {
            grpc.ready().await.map_err(|_| "the GCS cannot be reached".to_owned())?;
            let codec = ProstCodec::<Q, R>::default();
            grpc.unary(request, PathAndQuery::from_static(path), codec).await.map_err(|status| match status.code() {
                Code::Unauthenticated | Code::PermissionDenied => {
                    "the Ray head refuses labd's token: it was started with another one".to_owned()
                }
                code => format!("the GCS does not answer ({code:?})"),
            })
        };
        let answer = tokio::time::timeout(limit, work).await;
        answer
            .map_err(|_| format!("the GCS did not answer within {} s", limit.as_secs()))?
            .map(tonic::Response::into_inner)
    }
}

/// Has the raylet at `address` start a worker process for a job and an environment, which then waits for work.
pub(super) async fn prestart(address: SocketAddr, token: &Secret, spare: &Spare) -> Result<(), String> {
    let request = proto::PrestartRequest {
        job: Some(spare.job.clone()),
        environment: Some(proto::RuntimeEnvInfo {
            serialized: spare.environment.clone(),
            config: Some(proto::RuntimeEnvConfig { setup_timeout_seconds: SETUP_SECONDS }),
        }),
        keep_alive_seconds: Some(KEEP_ALIVE.as_secs()),
        number: 1,
    };
    let path = "/ray.rpc.NodeManagerService/PrestartWorkers";
    Gcs::to(address, token).call::<_, proto::PrestartReply>(path, request, ANSWER).await?;
    Ok(())
}

fn accepted(status: Option<&proto::Status>) -> Result<(), String> {
    match status {
        Some(status) if status.code != 0 => {
            Err(format!("the GCS refuses: {}", status.message.lines().next().unwrap_or_default()))
        }
        _ => Ok(()),
    }
}
