//! The plan by example and by property.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proptest::prelude::*;

use labd_gpu::{DeviceNode, Vendor};

use super::*;
use crate::node::{gpu::simulate, numa::NumaNode};
use spec::{Device, Kind, MountSource, Requirement};

pub(crate) fn secrets() -> Secrets {
    Secrets {
        ray_token: Secret::new("tttt-ray-token"),
        s3_access_key: Secret::new("tttt-access"),
        s3_secret_key: Secret::new("tttt-secret"),
        jupyter_token: Secret::new("tttt-jupyter"),
        grafana_password: Secret::new("tttt-grafana"),
    }
}

pub(crate) fn inputs(toml: &str, gpus: u32, memory_gib: u64) -> Inputs {
    Inputs {
        config: Config::parse(Path::new("labd.toml"), toml).expect("valid"),
        node: NodeFacts {
            hostname: "gpu1".into(),
            cpus: 16,
            numa_nodes: 1,
            numa: Vec::new(),
            infiniband: Vec::new(),
            memory_bytes: memory_gib << 30,
            nofile_limit: 20_000,
            unlimited_memlock: true,
        },
        gpus: simulate::gpus(gpus, &[]),
        secrets: secrets(),
        subnet: [198, 18, 100],
        ca: Vec::new(),
    }
}

fn hashes(plan: &Plan) -> BTreeMap<String, String> {
    plan.services.iter().map(|s| (s.name.clone(), s.container.hash())).collect()
}

/// Names of the services whose containers differ.
fn changed(a: &str, b: &str) -> Vec<String> {
    let (a, b) = (make(&inputs(a, 2, 32)).expect("a plan").0, make(&inputs(b, 2, 32)).expect("a plan").0);
    let (a, b) = (hashes(&a), hashes(&b));
    b.iter().filter(|(name, hash)| a.get(*name) != Some(hash)).map(|(name, _)| name.clone()).collect()
}

#[test]
fn a_change_concerns_only_what_it_concerns() {
    let mount = "[[mounts]]\nsource = \"/data\"\ntarget = \"/mnt\"";
    assert_eq!(changed("", mount), ["ray-worker-0", "ray-worker-1"]);
    assert_eq!(changed("", "[ports]\njupyter = 8889"), ["jupyter"]);
    assert_eq!(
        changed("", "[services.minio]\nmemory = \"1.5 GiB\"\n[services.ray-worker]\nmemory = \"8 GiB\"").len(),
        3
    );
    assert!(changed("", "[journal]\nretention_days = 5").is_empty());
}

#[test]
fn every_service_is_there_once_and_secrets_are_not_shown() {
    let (plan, _) = make(&inputs("", 2, 32)).expect("a plan");
    let names: Vec<&str> = plan.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "minio",
            "ray-head",
            "ray-driver",
            "ray-worker-0",
            "ray-worker-1",
            "jupyter",
            "front-door",
            "prometheus",
            "grafana"
        ]
    );
    let json = serde_json::to_string(&plan).expect("serialises");
    assert!(!json.contains("tttt"), "no secret in what `labd plan` prints");
    for service in &plan.services {
        assert!(!service.container.command.iter().any(|w| w.contains("tttt")), "no secret in `ps`");
    }
}

#[test]
fn nothing_is_published_beyond_loopback_unless_asked() {
    let ips = |toml: &str| {
        let (plan, _) = make(&inputs(toml, 2, 32)).expect("a plan");
        plan.services.into_iter().flat_map(|s| s.container.ports).map(|p| p.host_ip).collect::<BTreeSet<_>>()
    };
    assert_eq!(ips(""), BTreeSet::from(["127.0.0.1".to_owned()]));
    assert!(ips("[network]\npublish = \"0.0.0.0\"").contains("0.0.0.0"));
}

#[test]
fn another_store_replaces_minio() {
    let toml = "[services.minio]\nenabled = false\n[s3]\nendpoint = \"https://s3.lab\"\naccess_key_file = \"/a\"\nsecret_key_file = \"/s\"";
    let (plan, sizes) = make(&inputs(toml, 1, 32)).expect("a plan");
    let worker = plan.service("ray-worker-0").expect("there");
    assert_eq!(worker.container.env["AWS_ENDPOINT_URL"], "https://s3.lab".into());
    assert!(!worker.requires.contains(&Requirement::Ready("minio".into())));
    assert!(!plan.service("minio").expect("listed").enabled && sizes.minio.get() == 0);
    assert!(plan.images.iter().all(|i| i.name != ImageName::Minio), "its image is not needed");
}

#[test]
fn sizes_that_do_not_fit_name_the_setting() {
    let error = make(&inputs("[services.ray-worker]\nmemory = \"64 GiB\"", 2, 32)).expect_err("refused");
    assert!(error.contains("lower `services.ray-worker.memory`"), "{error}");
    let error =
        make(&inputs("[ray]\nshared_memory = \"1 GiB\"\nobject_store = \"1 GiB\"", 2, 32)).expect_err("refused");
    assert!(error.contains("ray.shared_memory"), "{error}");
}

#[test]
fn a_worker_is_near_its_gpu_and_has_what_collectives_need() {
    let near = |toml: &str| {
        let mut inputs = inputs(toml, 0, 512);
        let numa = |id, cpus: &str| NumaNode { id, cpus: cpus.into(), memory_bytes: 256 << 30 };
        inputs.node.numa = vec![numa(0, "0-15"), numa(1, "16-31")];
        inputs.node.infiniband = vec![DeviceNode { path: "/dev/infiniband/uverbs0".into(), gid: 0 }];
        inputs.gpus = simulate::gpus(4, &inputs.node.numa);
        inputs.gpus[3].vendor = Vendor::Amd;
        inputs.gpus[3].devices = vec![Device::Node { path: "/dev/kfd".into(), gid: 109 }];
        make(&inputs).expect("a plan").0
    };
    let plan = near("");
    for service in &plan.services {
        let c = &service.container;
        let worker = service.kind == Kind::RayWorker;
        assert_eq!((c.cpuset_cpus.is_some(), c.cpuset_mems.is_some(), c.unlimited_memlock), (worker, worker, worker));
        assert_eq!(c.devices.iter().any(|d| format!("{d:?}").contains("uverbs0")), worker, "{}", service.name);
        // Ray refuses `ROCR_VISIBLE_DEVICES`, and a second filter over one GPU leaves none.
        assert!(c.env.keys().all(|k| !k.contains("VISIBLE_DEVICES") && !k.starts_with("ROCR")), "{}", service.name);
    }
    let worker = |plan: &Plan, i: usize| plan.service(&format!("ray-worker-{i}")).expect("planned").container.clone();
    let said = |i| {
        let c = worker(&plan, i);
        format!("{} {}", c.cpuset_cpus.unwrap_or_default(), c.cpuset_mems.unwrap_or_default())
    };
    assert_eq!([0, 1, 2, 3].map(said), ["0-15 0", "16-31 1", "0-15 0", "16-31 1"]);
    assert!(worker(&plan, 3).command.contains(&"--num-cpus=8".to_owned()), "two share 16");
    let loose = worker(&near("[gpus]\nbind = false"), 0);
    assert_eq!((loose.cpuset_cpus, loose.cpuset_mems), (None, None));
    let set = worker(&near("[ray]\ncpus_per_worker = 3"), 0);
    assert!(set.command.contains(&"--num-cpus=3".to_owned()), "what is set is set");
}

proptest! {
    #[test]
    fn sizes_fit_any_host(gpus in 1_u32..=16, mib in 8_192_u64..=2 * 1024 * 1024, cpus in 1_u32..=512) {
        let mut inputs = inputs("", gpus, 1);
        inputs.node.memory_bytes = mib << 20;
        inputs.node.cpus = cpus;
        let (plan, sizes) = make(&inputs).expect("8 GiB are enough for 16 workers");
        prop_assert!(sizes.total() + sizes.host.get() <= mib << 20);
        prop_assert!(sizes.host.get() >= 512 << 20);
        let limits: u64 = plan.services.iter().map(|s| s.container.memory_bytes).sum();
        prop_assert!(limits <= (mib << 20) - sizes.host.get());
        prop_assert!(sizes.worker_object_store.get() >= 75 << 20);
        prop_assert!(sizes.shared_memory.get() >= sizes.worker_object_store.get() * u64::from(gpus));
        prop_assert!(sizes.shared_memory.get() <= mib << 20);
        prop_assert!(sizes.worker_cpus >= 8 && sizes.driver_cpus >= 1);
    }

    #[test]
    fn names_addresses_and_ports_are_unique_and_every_worker_has_a_gpu_of_its_own(gpus in 0_u32..=16) {
        let inputs = inputs("", gpus, 256);
        let (plan, _) = make(&inputs).expect("a plan");
        let n = plan.services.len();
        let names: BTreeSet<_> = plan.services.iter().map(|s| &s.name).collect();
        let addresses: BTreeSet<_> = plan.services.iter().map(|s| s.container.address).collect();
        prop_assert_eq!((names.len(), addresses.len()), (n, n));
        let ports: Vec<u16> = plan.services.iter().flat_map(|s| &s.container.ports).filter_map(|p| p.host).collect();
        prop_assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
        let ids: BTreeSet<_> = plan.services.iter().filter(|s| s.kind == Kind::RayWorker)
            .map(|s| format!("{:?}", s.container.env["LABD_GPU_UUID"])).collect();
        prop_assert_eq!(ids.len(), gpus as usize);
        for s in plan.services.iter().filter(|s| s.kind != Kind::RayWorker) {
            prop_assert!(s.container.devices.is_empty() && !s.container.env.contains_key("LABD_GPU_UUID"));
        }
    }

    #[test]
    fn the_same_inputs_make_the_same_containers_and_data_volumes_depend_on_the_lab_alone(gpus in 1_u32..=8, gib in 32_u64..=512) {
        let a = make(&inputs("", gpus, gib)).expect("a plan").0;
        prop_assert_eq!(hashes(&a), hashes(&make(&inputs("", gpus, gib)).expect("a plan").0));
        let volumes = |plan: &Plan| plan.services.iter().flat_map(|s| &s.container.mounts).filter_map(|m| match &m.source {
            MountSource::Volume(name) => Some(name.clone()),
            MountSource::Host(_) | MountSource::Memory { .. } => None,
        }).collect::<BTreeSet<_>>();
        let b = make(&inputs("[ports]\njupyter = 1234\n[ray]\ncpus_per_worker = 3", 1, 64)).expect("a plan").0;
        prop_assert_eq!(volumes(&a), volumes(&b));
    }
}
