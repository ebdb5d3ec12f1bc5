//! Tests against the engine of this machine: `cargo test --lib live -- --ignored --test-threads 1`. `LABD_TEST_IMAGE`
//! names an image with a shell and `sleep` (`labd-dev/base:latest` without it).

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bollard::models::{NetworkConnectRequest, NetworkDisconnectRequest};
use futures_util::{StreamExt, TryStreamExt};

use super::*;
use crate::{
    engine::{ObservedContainer, RunState},
    secret::Secret,
    spec::{EnvValue, FileSpec, Mount, MountSource, Port},
};

const LAB: &str = "wtengine";

fn engine() -> DockerEngine {
    DockerEngine::connect("/var/run/docker.sock", LAB).expect("a path")
}

fn network() -> NetworkSpec {
    NetworkSpec { name: LAB.into(), subnet: "198.18.253.0/24".into(), gateway: Ipv4Addr::new(198, 18, 253, 1) }
}

fn spec(last: u8, command: &[&str]) -> ContainerSpec {
    ContainerSpec {
        image: std::env::var("LABD_TEST_IMAGE").unwrap_or_else(|_| "labd-dev/base:latest".to_owned()),
        entrypoint: None,
        command: command.iter().map(|&c| c.to_owned()).collect(),
        env: BTreeMap::from([("GREETING".to_owned(), EnvValue::from("hello"))]),
        files: vec![
            FileSpec {
                path: "/tmp/secret".into(),
                mode: 0o600,
                owner: 1000,
                content: EnvValue::Secret(Secret::new("pss")),
            },
            FileSpec { path: "/new/deep/file".into(), mode: 0o644, owner: 0, content: "there".into() },
        ],
        mounts: vec![Mount { source: MountSource::Volume("wtengine-v".into()), target: "/v".into(), read_only: false }],
        ports: vec![Port { container: 80, host_ip: "127.0.0.1".into(), host: None }],
        address: Ipv4Addr::new(198, 18, 253, last),
        hostname: "here".into(),
        hosts: BTreeMap::from([("other".to_owned(), Ipv4Addr::new(198, 18, 253, 99))]),
        memory_bytes: 64 << 20,
        shm_bytes: 8 << 20,
        cpu_shares: 1024,
        stop_timeout: Duration::from_secs(1),
        nofile: 4096,
        unlimited_memlock: false,
        cpuset_cpus: None,
        cpuset_mems: None,
        devices: Vec::new(),
        user: None,
        workdir: None,
        rights: crate::spec::Rights { pids: 256, syscalls: crate::spec::SYSCALLS, ..crate::spec::Rights::default() },
    }
}

async fn ours(engine: &DockerEngine, service: &str) -> ObservedContainer {
    match engine.observe(service).await.expect("the engine answers") {
        Observed::Ours(c) => c,
        other => panic!("{service}: {other:?}"),
    }
}

/// Whether the list of all containers says of service `a` what an observation does.
async fn as_listed(engine: &DockerEngine) -> bool {
    let found = engine.list().await.expect("a list");
    found.iter().map(|c| c.service.as_str()).eq(["a"]) && found[0].is_still(&ours(engine, "a").await)
}

async fn clean(engine: &DockerEngine) {
    for found in engine.list().await.expect("the engine answers") {
        if let Observed::Ours(c) = engine.observe(&found.service).await.expect("the engine answers") {
            engine.remove(&c.id).await.expect("removed");
        }
    }
    engine.remove_network().await.expect("nothing is attached any more");
    let client = engine.client().await.expect("the engine answers");
    let _ = client.remove_volume("wtengine-v", None::<bollard::query_parameters::RemoveVolumeOptions>).await;
}

#[tokio::test]
#[ignore = "needs a container engine"]
async fn a_container_lives_as_it_is_told() {
    let engine = engine();
    clean(&engine).await;
    let info = engine.check().await.expect("an engine");
    assert!(info.root_dir.is_absolute() && !info.version.is_empty() && !info.api.is_empty(), "{info:?}");
    engine.ensure_network(&network()).await.expect("a network");
    engine.ensure_network(&network()).await.expect("the same network");
    assert!(engine.networks().await.expect("networks").iter().all(|(n, _)| n != LAB));
    let mut events = engine.events(None).await.expect("events");

    assert_eq!(engine.observe("a").await, Ok(Observed::Absent));
    let script = "echo out; echo err >&2; stat -c '%a %u' /tmp /tmp/secret /new /new/deep; cat /tmp/secret /new/deep/file; \
                  echo; cat /proc/self/limits | grep files; grep other /etc/hosts; df /dev/shm | tail -1; exec sleep 600";
    engine.create("a", &spec(10, &["sh", "-c", script])).await.expect("created");
    let made = ours(&engine, "a").await;
    assert!(as_listed(&engine).await);
    assert_eq!((made.run, made.spec_hash), (RunState::Created, spec(10, &["sh", "-c", script]).hash()));
    engine.start(&made.id).await.expect("started");
    engine.start(&made.id).await.expect("starting twice is fine");
    let running = ours(&engine, "a").await;
    assert!(matches!(running.run, RunState::Running { started_at } if started_at.as_millis() > 0));
    assert_eq!(running.address, Some(Ipv4Addr::new(198, 18, 253, 10)));
    assert!(running.ports[&80] > 1024);
    assert!(as_listed(&engine).await);
    let client = engine.client().await.expect("the engine answers");
    client.pause_container(&made.id).await.expect("paused");
    assert!(ours(&engine, "a").await.run == RunState::Paused && as_listed(&engine).await);
    client.unpause_container(&made.id).await.expect("unpaused");
    let leave = NetworkDisconnectRequest { container: made.id.clone(), force: None };
    client.disconnect_network(LAB, leave).await.expect("disconnected");
    assert!(ours(&engine, "a").await.address.is_none() && as_listed(&engine).await);
    let join = NetworkConnectRequest { container: made.id.clone(), endpoint_config: None };
    client.connect_network(LAB, join).await.expect("connected");
    assert!(ours(&engine, "a").await.address.is_some() && as_listed(&engine).await);

    tokio::time::sleep(Duration::from_millis(500)).await;
    let out: Vec<Bytes> = engine.logs("a", None, false).try_collect().await.expect("logs");
    let out = String::from_utf8(out.concat()).expect("text");
    for part in [
        "out\n",
        "err\n",
        "1777 0\n600 1000\n755 0\n755 0\n",
        "cat: /tmp/secret: Permission denied",
        "there\n",
        "4096",
        "198.18.253.99",
        "8192",
    ] {
        assert!(out.contains(part), "{part} is not in: {out}");
    }
    let first = engine.logs("a", Some(1), true).next().await.expect("a line").expect("logs");
    assert!(!first.is_empty());

    let run = engine.exec("a", &["sh", "-c", "echo $GREETING; exit 3"], Duration::from_secs(10)).await;
    assert_eq!(run, Ok((3, "hello\n".to_owned())));
    let slow = engine.exec("a", &["sleep", "30"], Duration::from_millis(300)).await;
    assert_eq!(slow, Err(EngineError::Other("`sleep` in a did not finish within 300 ms".into())));

    let look = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let patience = Patience { begin: Some(Duration::from_millis(1_500)), run: Duration::from_millis(400) };
    let run = async |script: &str| engine.run(&made.id, &look(script), patience).await;
    assert_eq!(run("sleep 3; echo late").await, Ok(Ran::NotBegun));
    assert_eq!(run("sleep 1; echo begun; sleep 3").await, Ok(Ran::Unfinished));
    assert_eq!(run("sleep 1; echo begun").await, Ok(Ran::Ended { code: 0, output: "begun\n".into() }));

    let begun = Instant::now();
    engine.stop(&made.id).await.expect("stopped");
    assert!(begun.elapsed() < Duration::from_secs(8), "its own stop timeout is 1 s");
    engine.stop(&made.id).await.expect("stopping twice is fine");
    engine.kill(&made.id).await.expect("killing what does not run is fine");
    assert!(matches!(ours(&engine, "a").await.run, RunState::Exited { code: 137 | 143, oom: false, .. }));
    assert!(as_listed(&engine).await);
    engine.start(&made.id).await.expect("started again");
    engine.kill(&made.id).await.expect("killed");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(matches!(ours(&engine, "a").await.run, RunState::Exited { code: 137, .. }));
    engine.remove(&made.id).await.expect("removed");
    engine.remove(&made.id).await.expect("removing twice is fine");
    assert_eq!(engine.observe("a").await, Ok(Observed::Absent));

    let mut told = Vec::new();
    while ![EngineEventKind::Stopped, EngineEventKind::Signal(9)].iter().all(|what| told.contains(what)) {
        let nudge =
            tokio::time::timeout(Duration::from_secs(5), events.next()).await.expect("in time").expect("one more");
        assert_eq!((nudge.service.as_str(), &nudge.id), ("a", &made.id));
        assert!(nudge.at.as_millis() > 0);
        told.push(nudge.what);
    }
    let (other, stop) = (EngineEventKind::Other, EngineEventKind::Stopped);
    // Made, started, paused, continued; stopped, which begins with a signal; started, killed.
    assert!(told.starts_with(&[other, other, other, other, EngineEventKind::Signal(15)]), "{told:?}");
    assert_eq!(told.iter().filter(|what| **what == stop).count(), 1, "{told:?}");
    clean(&engine).await;
}

#[tokio::test]
#[ignore = "needs a container engine"]
async fn troubles_are_said_in_one_line_with_the_fix() {
    let engine = engine();
    clean(&engine).await;
    engine.ensure_network(&network()).await.expect("a network");

    // A port that is taken, by a program and by a container.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let mut s = spec(11, &["sleep", "600"]);
    s.ports[0].host = Some(port);
    engine.create("port", &s).await.expect("created");
    let e = engine.start(&ours(&engine, "port").await.id).await.expect_err("taken");
    assert!(
        matches!(&e, EngineError::Conflict(t) if t.starts_with(&format!("port {port} on 127.0.0.1 is taken by another program"))),
        "{e}"
    );
    drop(taken);
    let id = ours(&engine, "port").await.id;
    engine.start(&id).await.expect("free now");
    s.address = Ipv4Addr::new(198, 18, 253, 12);
    engine.create("port2", &s).await.expect("created");
    let e = engine.start(&ours(&engine, "port2").await.id).await.expect_err("taken");
    assert!(e.to_string().contains("taken by another container"), "{e}");

    // A host directory and a program that are not there, an image that is not there.
    let mut s = spec(13, &["sleep", "600"]);
    s.mounts.push(Mount { source: MountSource::Host("/no/such/dir".into()), target: "/d".into(), read_only: true });
    let e = engine.create("dir", &s).await.expect_err("no such directory");
    assert!(e.to_string().contains("`mkdir -p /no/such/dir`"), "{e}");
    engine.create("exe", &spec(14, &["/no/such/program"])).await.expect("created");
    let id = ours(&engine, "exe").await.id;
    // The engine's init is what starts, and it ends like a shell that does not find a command.
    engine.start(&id).await.expect("its init starts");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(matches!(ours(&engine, "exe").await.run, RunState::Exited { code: 127, .. }));
    let mut s = spec(20, &["sleep", "600"]);
    s.user = Some("nosuchuser".into());
    engine.create("user", &s).await.expect("created");
    let e = engine.start(&ours(&engine, "user").await.id).await.expect_err("no such user");
    assert!(e.to_string().contains("nosuchuser") && e.to_string().len() < 200, "{e}");
    let mut s = spec(15, &["sleep", "600"]);
    s.image = "labd/nosuch:0".into();
    let e = engine.create("img", &s).await.expect_err("no such image");
    assert!(matches!(&e, EngineError::NotFound(t) if t.contains("labd/nosuch:0")), "{e}");

    // Files that cannot be put in leave nothing behind.
    let mut s = spec(16, &["sleep", "600"]);
    s.files.push(FileSpec { path: "/etc/passwd/x".into(), mode: 0o600, owner: 0, content: "".into() });
    let e = engine.create("half", &s).await.expect_err("a file is no directory");
    assert!(!e.to_string().contains("pss"), "{e}");
    assert_eq!(engine.observe("half").await, Ok(Observed::Absent));

    // A GPU that nobody can attach.
    let mut s = spec(17, &["sleep", "600"]);
    s.devices.push(crate::spec::Device::Nvidia { uuid: "GPU-0".into() });
    let e = match engine.create("gpu", &s).await {
        Ok(()) => engine.start(&ours(&engine, "gpu").await.id).await.expect_err("no GPU"),
        Err(e) => e,
    };
    assert!(e.to_string().contains("nvidia-container-toolkit"), "{e}");

    // A container of another lab, by name.
    let other = DockerEngine::connect("/var/run/docker.sock", "wtengine-other").expect("a path");
    engine.create("other-x", &spec(18, &["sleep", "600"])).await.expect("created");
    assert!(matches!(other.observe("x").await, Ok(Observed::Foreign { .. })));
    let e = other.create("x", &spec(19, &["sleep", "600"])).await.expect_err("the name is taken");
    assert!(matches!(&e, EngineError::Conflict(t) if t.contains("wtengine-other-x")), "{e}");

    // Another subnet: the network is recreated, with what was on it gone.
    let mut moved = network();
    moved.subnet = "198.18.253.128/25".into();
    moved.gateway = Ipv4Addr::new(198, 18, 253, 129);
    engine.ensure_network(&moved).await.expect("recreated");
    assert_eq!(engine.observe("port").await, Ok(Observed::Absent), "it was attached");
    clean(&engine).await;
}
