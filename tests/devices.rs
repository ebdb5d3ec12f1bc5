//! Tests of devices in containers of a real engine. `tests/host/test_devices.py` and `tests/host/test_cdi.py` run
//! these; by themselves: `LABD_TEST_IMAGE=labd/base:... cargo test --test devices -- --ignored`.

use std::{collections::BTreeMap, env, fs, net::Ipv4Addr, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use labd::{
    engine::{Engine as _, EngineError, Observed, ObservedContainer, Patience, Ran, docker::DockerEngine},
    gpus::attach,
    node,
    spec::{ContainerSpec, Device, EnvValue, NetworkSpec, Rights},
    supervise::{decide::GpuVisibility, gpu_check},
};
use labd_gpu::{Device as Found, Vendor};

const PATIENCE: Duration = Duration::from_secs(20);

/// An engine's view for a lab of this test's own, gone at the end.
struct Lab {
    engine: DockerEngine,
    subnet: [u8; 3],
}

impl Lab {
    async fn new(name: &str, socket: &str, subnet: [u8; 3]) -> Self {
        let lab = Self { engine: DockerEngine::connect(socket, name).expect("a path"), subnet };
        lab.clean().await;
        let [a, b, c] = subnet;
        let gateway = Ipv4Addr::new(a, b, c, 1);
        let network = NetworkSpec { name: name.into(), subnet: format!("{a}.{b}.{c}.0/24"), gateway };
        lab.engine.ensure_network(&network).await.expect("a network");
        lab
    }

    fn spec(&self, last: u8, uuid: &str, devices: Vec<Device>) -> ContainerSpec {
        let [a, b, c] = self.subnet;
        ContainerSpec {
            image: env::var("LABD_TEST_IMAGE").unwrap_or_else(|_| "labd-dev/base:latest".to_owned()),
            entrypoint: None,
            command: ["sleep", "600"].map(str::to_owned).to_vec(),
            env: BTreeMap::from([("LABD_GPU_UUID".to_owned(), EnvValue::from(uuid))]),
            files: Vec::new(),
            mounts: Vec::new(),
            ports: Vec::new(),
            address: Ipv4Addr::new(a, b, c, last),
            hostname: "worker".into(),
            hosts: BTreeMap::new(),
            memory_bytes: 64 << 20,
            shm_bytes: 8 << 20,
            cpu_shares: 1024,
            stop_timeout: Duration::from_secs(1),
            nofile: 4096,
            unlimited_memlock: node::facts().unlimited_memlock,
            cpuset_cpus: None,
            cpuset_mems: None,
            devices,
            user: None,
            workdir: None,
            rights: Rights { pids: 256, ..Rights::default() },
        }
    }

    /// Makes the service's container and starts it.
    async fn start(&self, service: &str, spec: &ContainerSpec) -> Result<String, EngineError> {
        self.engine.create(service, spec).await?;
        let id = self.container(service).await.expect("just made").id;
        self.engine.start(&id).await?;
        Ok(id)
    }

    async fn container(&self, service: &str) -> Option<ObservedContainer> {
        match self.engine.observe(service).await.expect("the engine answers") {
            Observed::Ours(c) => Some(c),
            _ => None,
        }
    }

    async fn sh(&self, id: &str, script: &str) -> String {
        let argv = ["sh", "-c", script].map(str::to_owned);
        match self.engine.run(id, &argv, Patience::whole(PATIENCE)).await.expect("the engine answers") {
            Ran::Ended { output, .. } => output.trim().to_owned(),
            Ran::NotBegun | Ran::Unfinished => panic!("`{script}` does not end"),
        }
    }

    async fn look(&self, id: &str, spec: &ContainerSpec) -> GpuVisibility {
        let command = gpu_check::command(spec).expect("it has a device");
        gpu_check::verdict(&self.engine.run(id, &command, Patience::whole(PATIENCE)).await)
    }

    async fn clean(&self) {
        for found in self.engine.list().await.expect("the engine answers") {
            if let Some(c) = self.container(&found.service).await {
                self.engine.remove(&c.id).await.expect("removed");
            }
        }
        self.engine.remove_network().await.expect("nothing is attached any more");
    }
}

/// Checks what `systemctl daemon-reload` does to a container whose nodes were allowed behind systemd's back.
#[tokio::test]
#[ignore = "needs a container engine, root and the devices controller of cgroup v1"]
async fn a_device_that_is_taken_away_is_missed_inside() {
    let lab = Lab::new("labdtest-devices", "/var/run/docker.sock", [198, 18, 228]).await;
    let node = |path: &str| Device::Node { path: path.into(), gid: 0 };
    let spec = lab.spec(10, "SIM-0", vec![node("/dev/fuse"), node("/dev/net/tun")]);
    let id = lab.start("worker", &spec).await.expect("started");
    assert_eq!(lab.look(&id, &spec).await, GpuVisibility::There);
    if spec.unlimited_memlock {
        assert_eq!(lab.sh(&id, "ulimit -l").await, "unlimited");
    }

    let number = fs::metadata("/dev/net/tun").expect("a device").rdev();
    // As `makedev(3)` packs it: twelve bits of each are enough for these.
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff);
    let denied = format!("/sys/fs/cgroup/devices/docker/{id}/devices.deny");
    fs::write(&denied, format!("c {major}:{minor} rwm")).expect("cgroup v1");
    let gone = lab.look(&id, &spec).await;
    let GpuVisibility::Gone(reason) = gone else { panic!("{gone:?}") };
    assert_eq!(
        reason,
        "the GPU is gone inside the container (was systemctl daemon-reload run?): /dev/net/tun: Operation not permitted"
    );

    // A restart of the same container is no remedy in general, another container is.
    lab.engine.remove(&id).await.expect("removed");
    assert_eq!(lab.look(&id, &spec).await, GpuVisibility::Unknown, "there is nothing to look into");
    let id = lab.start("worker", &spec).await.expect("started");
    assert_eq!(lab.look(&id, &spec).await, GpuVisibility::There);
    lab.clean().await;

    let missing = lab_of_missing_node().await;
    assert!(missing.contains("/dev/nosuch"), "{missing}");
}

/// The words for a node that the host does not have.
async fn lab_of_missing_node() -> String {
    let lab = Lab::new("labdtest-devices", "/var/run/docker.sock", [198, 18, 228]).await;
    let spec = lab.spec(10, "SIM-0", vec![Device::Node { path: "/dev/nosuch".into(), gid: 0 }]);
    let error = lab.start("worker", &spec).await.expect_err("no such node").to_string();
    lab.clean().await;
    error
}

fn found(id: &str) -> Found {
    Found {
        id: id.into(),
        vendor: Vendor::Nvidia,
        name: "GPU".into(),
        index: 0,
        memory_bytes: 1,
        pci: None,
        parent: None,
        partition: None,
        instance: None,
        divided: false,
        numa_node: None,
        cpu_list: None,
        nodes: Vec::new(),
    }
}

/// Against an engine with CDI, whose file system begins at `LABD_TEST_ROOT` and whose specifications make `/dev/fuse`
/// `nvidia.com/gpu=GPU-aaaa` and `/dev/net/tun` `GPU-bbbb`.
#[tokio::test]
#[ignore = "needs a container engine with CDI: tests/host/test_cdi.py starts one"]
async fn cdi() {
    let socket = env::var("LABD_TEST_ENGINE").expect("LABD_TEST_ENGINE");
    let root = env::var("LABD_TEST_ROOT").expect("LABD_TEST_ROOT");
    let lab = Lab::new("labdtest-cdi", &socket, [198, 18, 233]).await;
    let info = lab.engine.check().await.expect("an engine");
    let devices = lab.engine.devices(Path::new(&root)).await.expect("what it hands in");
    assert!(info.cdi && !devices.cdi_dirs.is_empty(), "{info:?} {devices:?}");
    for (last, uuid, own, other) in
        [(10, "GPU-aaaa", "/dev/fuse", "/dev/net/tun"), (11, "GPU-bbbb", "/dev/net/tun", "/dev/fuse")]
    {
        let handed = attach::container_devices(&found(uuid), &devices).expect("handed in");
        assert_eq!(handed, [Device::Cdi { name: format!("nvidia.com/gpu={uuid}"), gids: Vec::new() }]);
        let spec = lab.spec(last, uuid, handed);
        let id = lab.start(uuid, &spec).await.expect("started");
        assert_eq!(lab.sh(&id, &format!("true <{own} && echo opened")).await, "opened");
        assert_eq!(lab.sh(&id, &format!("ls {other} 2>/dev/null")).await, "", "{uuid} has {other}");
        assert_eq!(lab.look(&id, &spec).await, GpuVisibility::There);
    }
    // A GPU that no specification names is asked for the older way, which this engine has no toolkit for.
    let other = attach::container_devices(&found("GPU-cccc"), &devices).expect("handed in");
    assert_eq!(other, [Device::Nvidia { uuid: "GPU-cccc".into() }]);
    let error = lab.start("other", &lab.spec(12, "GPU-cccc", other)).await.expect_err("no toolkit").to_string();
    assert!(error.contains("nvidia-container-toolkit"), "{error}");
    let unknown = vec![Device::Cdi { name: "nvidia.com/gpu=GPU-cccc".into(), gids: Vec::new() }];
    let error = lab.start("unknown", &lab.spec(13, "GPU-cccc", unknown)).await.expect_err("no such name").to_string();
    assert!(error.starts_with("the engine knows no CDI device nvidia.com/gpu=GPU-cccc"), "{error}");
    lab.clean().await;
}
