//! Tests of the plan by example and by property.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proptest::prelude::*;

use labd_gpu::{DeviceNode, Vendor};

use super::*;
use crate::{
    config::Config,
    credentials::Secrets,
    gpus::simulate,
    minio::Keys,
    node::numa::NumaNode,
    secret::Secret,
    services::minio,
    spec::{self, ContainerSpec, Device, EnvValue, ImageName, Kind, MountSource, Requirement},
};

pub(crate) fn secrets() -> Secrets {
    Secrets {
        ray_token: Secret::new("tttt-ray-token"),
        s3_access_key: Secret::new("tttt-access"),
        s3_secret_key: Secret::new("tttt-secret"),
        minio_root: Keys { access: Secret::new("tttt-root"), secret: Secret::new("tttt-root-secret") },
        jupyter_token: Secret::new("tttt-jupyter"),
        jupyter_door: Secret::new("tttt-jupyter-door"),
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
        requirements: String::new(),
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
    assert_eq!(changed("", mount), ["jupyter", "ray-driver", "ray-worker-0", "ray-worker-1"]);
    let code = ["jupyter", "ray-driver", "ray-head", "ray-worker-0", "ray-worker-1"];
    assert_eq!(changed("", "[ray]\nenv = { A = \"b\" }"), code);
    assert_eq!(changed("", "[images.build]\nhttp_proxy = \"http://p:3128\""), code);
    assert_eq!(changed("", "[images.build]\ngoproxy = \"https://g\""), [""; 0]);
    assert_eq!(changed("", "[ray]\npackages_limit = \"9 GiB\""), &code[1..]);
    assert_eq!(changed("", "[ports]\njupyter = 8889"), ["jupyter"]);
    assert!(changed("", "[http]\njupyter_port = 8701").is_empty());
    assert_eq!(
        changed("", "[services.minio]\nmemory = \"1.5 GiB\"\n[services.ray-worker]\nmemory = \"6 GiB\"").len(),
        3
    );
    assert!(changed("", "[journal]\nretention_days = 5").is_empty());
}

/// Containers of a plan, each with the fingerprints of all of it and of what cannot wait. Without what their images are
/// made of: an edit below `images/` is a soft change of its own, and seen in the reference.
fn golden_containers() -> Vec<String> {
    let (plan, _) = make(&inputs("", 1, 32)).expect("a plan");
    let golden = plan.services.into_iter().map(|service| {
        let mut container = service.container.clone();
        service.image.as_str().clone_into(&mut container.image);
        format!("{} {} {}", service.name, container.hash(), container.hard_hash())
    });
    golden.collect()
}

/// Checks the fingerprints. A change here means: every container in question is recreated on every machine that gets
/// this labd, when it is idle; where the second column changes, at once, under whatever trains. Where that is meant,
/// take over the new values and say so in the commit.
#[test]
fn no_edit_changes_a_container_unnoticed() {
    let golden = [
        "minio 82d06c463fc3a64a dcc0950b9caa7a74",
        "ray-head 596ae008aecd3a81 9f24e8f29f48cca3",
        "ray-driver 6baa90c4989ed541 6ac8a5045fcd7f23",
        "ray-worker-0 e4246ecb40dd1694 3515777b06b4bbda",
        "jupyter 05a74d6f8cd4a372 381a7259c486e2f9",
        "front-door 2833f4fec0b47ff6 2310fa03d0b022f6",
        "prometheus 93d3c59c525778fb 5bbdbc0663843b8e",
        "grafana aeadd135f8d9aa64 a8bc500cd8d617c6",
    ];
    assert_eq!(golden_containers(), golden);
}

#[test]
fn what_a_change_concerns_says_whether_it_can_wait() {
    use spec::Change;
    let worker = |inputs: &Inputs| container(&make(inputs).expect("a plan").0, "ray-worker-0").clone();
    let first = worker(&inputs("", 1, 32));
    let differs = |change: &dyn Fn(&mut Inputs)| {
        let mut inputs = inputs("", 1, 32);
        change(&mut inputs);
        let other = worker(&inputs);
        let hard = first.hard_hash() != other.hard_hash();
        (first.hash() != other.hash()).then_some(if hard { Change::Hard } else { Change::Soft })
    };
    assert_eq!(differs(&|_| {}), None);
    for soft in [
        (&|i: &mut Inputs| i.node.nofile_limit = 1_024) as &dyn Fn(&mut Inputs),
        &|i| i.node.unlimited_memlock = false,
        &|i| i.node.memory_bytes += 8 << 30,
        &|i| i.node.infiniband = vec![DeviceNode { path: "/dev/infiniband/uverbs0".into(), gid: 0 }],
        &|i| i.requirements = "lightning".into(),
        &|i| i.config.images.build.http_proxy = Some("http://u:p@proxy:1".into()),
    ] {
        assert_eq!(differs(soft), Some(Change::Soft));
    }
    for hard in [
        (&|i: &mut Inputs| i.subnet = [198, 18, 101]) as &dyn Fn(&mut Inputs),
        &|i| i.secrets.ray_token = Secret::new("another"),
        &|i| i.gpus[0].id = "SIM-7".into(),
        &|i| i.gpus[0].devices = vec![Device::Node { path: "/dev/dri/renderD128".into(), gid: 44 }],
    ] {
        assert_eq!(differs(hard), Some(Change::Hard));
    }
    // A part that is empty is no part: a newer labd's field changes nothing until it is used.
    let parts = first.parts();
    assert!(
        !parts.contains_key("cpuset_cpus") && !parts.contains_key("devices") && parts.contains_key("env LABD_GPU_UUID")
    );
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
        plan.services.iter().flat_map(|s| s.container.ports.clone()).map(|p| p.host_ip).collect::<BTreeSet<_>>()
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
    assert!(!plan.service("minio").expect("listed").enabled && sizes.of(&minio::DEF).get() == 0);
    assert!(plan.images.iter().all(|i| i.name != ImageName::Minio), "its image is not needed");
}

#[test]
fn sizes_that_do_not_fit_name_the_setting() {
    let error = make(&inputs("[services.ray-worker]\nmemory = \"64 GiB\"", 2, 32)).expect_err("refused");
    assert!(error.contains("lower `services.ray-worker.memory`"), "{error}");
    let error =
        make(&inputs("[ray]\nshared_memory = \"1 GiB\"\nobject_store = \"1 GiB\"", 2, 32)).expect_err("refused");
    assert!(error.contains("ray.shared_memory"), "{error}");
    for gpus in [0, 2] {
        for key in ["object_store", "shared_memory"] {
            let toml = format!("[ray]\n{key} = \"900 GiB\"");
            let error = make(&inputs(&toml, gpus, 23)).expect_err("larger than the machine");
            assert!(error.ends_with(&format!("lower `ray.{key}` in labd.toml")), "{error}");
        }
        let error = make(&inputs("[services.ray-worker]\nmemory = \"64 GiB\"", gpus, 32)).expect_err("refused");
        assert!(error.contains("lower `services.ray-worker.memory`"), "{error}");
    }
    let error = make(&inputs("[ray]\nobject_store = \"16 GiB\"", 2, 23)).expect_err("not twice");
    assert!(error.contains("lower `ray.object_store`"), "{error}");
    make(&inputs("[services.grafana]\nenabled = false\nmemory = \"900 GiB\"", 2, 32)).expect("it does not run");
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
        let worker = service.kind == Kind::RAY_WORKER;
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

/// Containers that run people's code: Ray's, then JupyterLab's.
const CODE: [&str; 5] = ["ray-head", "ray-driver", "ray-worker-0", "ray-worker-1", "jupyter"];

fn container<'a>(plan: &'a Plan, name: &str) -> &'a ContainerSpec {
    &plan.service(name).expect("planned").container
}

#[test]
fn what_the_lab_adds_to_the_environment_is_where_peoples_code_runs_and_not_shown() {
    let toml = "[ray.env]\nHF_TOKEN = \"tttt-hf\"\n[images.build]\npip_index_url = \"https://u:tttt-pip@pypi/simple\"\n\
        http_proxy = \"http://u:tttt-p@proxy:1\"\nhttps_proxy = \"http://u:tttt-p@proxy:2\"\nno_proxy = \".edu, 10.0.0.1\"";
    let (plan, _) = make(&inputs(toml, 2, 32)).expect("a plan");
    for service in &plan.services {
        let env = &service.container.env;
        let has = |name: &str, value: &str| {
            env.get(name).is_some_and(|v| matches!(v, EnvValue::Secret(s) if s.expose() == value))
        };
        let code = CODE.contains(&service.name.as_str());
        for (name, value) in [
            ("HF_TOKEN", "tttt-hf"),
            ("PIP_INDEX_URL", "https://u:tttt-pip@pypi/simple"),
            ("UV_DEFAULT_INDEX", "https://u:tttt-pip@pypi/simple"),
            ("http_proxy", "http://u:tttt-p@proxy:1"),
            ("HTTP_PROXY", "http://u:tttt-p@proxy:1"),
            ("https_proxy", "http://u:tttt-p@proxy:2"),
            ("HTTPS_PROXY", "http://u:tttt-p@proxy:2"),
        ] {
            assert_eq!(has(name, value), code, "{name} in {}", service.name);
        }
        if code {
            let EnvValue::Plain(hosts) = &env["no_proxy"] else { panic!("shown as it is") };
            let hosts: BTreeSet<&str> = hosts.split(',').collect();
            for host in
                [".edu", "10.0.0.1", "localhost", "127.0.0.1", "198.18.100.0/24", "198.18.100.10", "198.18.100.21"]
            {
                assert!(hosts.contains(host), "{host}");
            }
            assert!(plan.services.iter().all(|s| hosts.contains(s.name.as_str())), "{hosts:?}");
            assert_eq!(env["no_proxy"], env["NO_PROXY"]);
        }
    }
    let json = serde_json::to_string(&plan).expect("serialises");
    assert!(!json.contains("tttt"), "no secret in what `labd plan` prints");
}

#[test]
fn one_more_gpu_changes_no_other_container_unless_sizes_do() {
    let with = |gpus| {
        make(&inputs(
            "[services.ray-worker]\nmemory = \"1 GiB\"\n[ray]\nshared_memory = \"8 GiB\"\ncpus_per_worker = 8",
            gpus,
            64,
        ))
        .expect("a plan")
        .0
    };
    let (two, three) = (hashes(&with(2)), hashes(&with(3)));
    assert!(two.iter().all(|(name, hash)| three.get(name) == Some(hash)));
}

#[test]
fn warm_starts_are_a_setting_and_a_job_waits_a_week_for_its_place() {
    for (toml, set) in [("", None), ("[ray]\nwarm_starts = false", Some("0"))] {
        let (plan, _) = make(&inputs(toml, 2, 32)).expect("a plan");
        for name in ["ray-head", "ray-driver", "ray-worker-0"] {
            let env = serde_json::to_value(&container(&plan, name).env).expect("serialises");
            assert_eq!(env["LABD_WARM"].as_str(), set, "{name}");
            assert_eq!(env["RAY_JOB_START_TIMEOUT_SECONDS"], "604800", "{name}");
        }
    }
}

#[test]
fn nodes_beside_the_head_know_all_ports_of_their_agents_and_ask_the_raylets_hook() {
    let (plan, _) = make(&inputs("", 2, 32)).expect("a plan");
    for name in ["ray-driver", "ray-worker-0"] {
        let container = container(&plan, name);
        for port in [
            "dashboard-agent-grpc-port",
            "runtime-env-agent-port",
            "dashboard-agent-listen-port",
            "metrics-export-port",
        ] {
            assert_eq!(
                container.command.iter().filter(|a| a.starts_with(&format!("--{port}="))).count(),
                1,
                "{name} {port}"
            );
        }
        assert!(container.files.iter().any(|f| f.path == "/opt/labd/start/labd_start.py"), "{name}");
    }
    assert!(container(&plan, "ray-head").files.iter().any(|f| f.path == "/opt/labd/start/labd_start.py"));
}

#[test]
fn every_name_that_labd_sets_is_refused_in_the_labs_own_environment() {
    let toml = "[images.build]\npip_index_url = \"https://p\"\nhttp_proxy = \"http://p\"\nhttps_proxy = \"http://p\"";
    let (plan, _) = make(&inputs(toml, 2, 32)).expect("a plan");
    for name in CODE.iter().flat_map(|name| container(&plan, name).env.keys()) {
        assert!(crate::config::environment::check(name, "x").is_err(), "{name}");
    }
    // What the image sets, too.
    let image = include_str!("../../images/ray/Dockerfile");
    let lines = image.lines().map(|l| l.trim().trim_start_matches("ENV ").trim_end_matches(" \\"));
    for name in ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "PATH"] {
        assert!(lines.clone().any(|l| l.starts_with(&format!("{name}="))), "{name} is the image's");
        assert!(crate::config::environment::check(name, "x").is_err(), "{name}");
    }
}

#[test]
fn a_path_means_the_same_in_notebook_driver_and_worker() {
    let (plan, _) =
        make(&inputs("[[mounts]]\nsource = \"/data\"\ntarget = \"/mnt/d\"\nread_only = true", 2, 32)).expect("a plan");
    for service in &plan.services {
        let mounts = &service.container.mounts;
        let data =
            mounts.iter().any(|m| m.target == "/mnt/d" && m.read_only && m.source == MountSource::Host("/data".into()));
        assert_eq!(data, CODE[1..].contains(&service.name.as_str()), "{}", service.name);
        let packages =
            mounts.iter().any(|m| m.target == "/packages" && m.source == MountSource::Volume("labd-packages".into()));
        assert_eq!(packages, CODE[..4].contains(&service.name.as_str()), "{}", service.name);
    }
    let jupyter = &container(&plan, "jupyter").mounts;
    let at = |target: &str| jupyter.iter().find(|m| m.target == target).map(|m| &m.source);
    assert!(at("/workspace").is_some() && at("/workspace") == at("/root/work"));
}

#[test]
fn simulated_gpus_are_marked_and_only_they_have_an_nvidia_smi_of_ours() {
    let marks = |inputs: &Inputs| -> Vec<(String, bool, bool)> {
        let (plan, _) = make(inputs).expect("a plan");
        let ray = plan.services.into_iter().filter(|s| s.image == ImageName::Ray && s.kind != Kind("front-door"));
        ray.map(|s| {
            let smi = s.container.files.iter().any(|f| f.path == "/usr/local/bin/nvidia-smi" && f.mode == 0o755);
            (s.name.clone(), s.container.env.get("LABD_SIMULATED_GPUS") == Some(&"1".into()), smi)
        })
        .collect()
    };
    let said = |marks: &[(String, bool, bool)], of: fn(&(String, bool, bool)) -> bool| -> Vec<String> {
        marks.iter().filter(|m| of(m)).map(|m| m.0.clone()).collect()
    };
    let all = marks(&inputs("", 2, 32));
    assert_eq!(said(&all, |m| m.1), ["ray-driver", "ray-worker-0", "ray-worker-1"]);
    assert_eq!(said(&all, |m| m.2), ["ray-worker-0", "ray-worker-1"]);
    let mut mixed = inputs("", 2, 32);
    mixed.gpus[1].vendor = Vendor::Nvidia;
    let mixed = marks(&mixed);
    assert_eq!(said(&mixed, |m| m.1), [""; 0]);
    assert_eq!(said(&mixed, |m| m.2), ["ray-worker-0"]);
    assert!(marks(&inputs("", 0, 32)).iter().all(|m| !m.1 && !m.2));
}

#[test]
fn the_labs_packages_are_part_of_the_ray_image_alone() {
    let references = |toml: &str, requirements: &str| -> Vec<String> {
        let mut inputs = inputs(toml, 1, 32);
        inputs.requirements = requirements.to_owned();
        let (plan, _) = make(&inputs).expect("a plan");
        plan.images.into_iter().map(|i| i.reference).collect()
    };
    let (none, some) = (references("", ""), references("[images.build]\npackages = [\"lightning\"]", ""));
    assert_ne!(none[0], some[0]);
    assert_eq!(none[1..], some[1..]);
    assert_ne!(references("", "lightning"), none);
    assert_eq!(references("", "lightning"), some, "wherever they are written");
    let mut inputs = inputs("[images.build]\npackages = [\" a \", \"b\"]\ntorch = \"debian\"", 1, 32);
    inputs.requirements = "c==1\nd".to_owned();
    let ray = images::images(&inputs).into_iter().find(|i| i.name == ImageName::Ray).expect("there");
    let spec::ImageSource::Build { args } = ray.source else { panic!("built") };
    let said = ["PACKAGES", "TORCH_INDEX", "TORCH_DEBIAN"].map(|name| args[name].as_str());
    assert_eq!(said, ["a\nb\nc==1\nd", "none", "1"]);
}

#[test]
fn no_login_of_an_address_is_in_the_plan_that_is_shown() {
    let index = "https://me:tttt-pw@index.example.org/simple";
    let toml = format!(
        "[images.build]\ntorch = \"{index}\"\npip_index_url = \"{index}\"\n\
         http_proxy = \"http://me:tttt-pw@proxy:3128\"\n[ray]\nenv = {{ MINE = \"{index}\" }}"
    );
    let inputs = inputs(&toml, 1, 32);
    let (plan, sizes) = make(&inputs).expect("a plan");
    let view = PlanView { node: inputs.node, gpus: inputs.gpus, sizes, plan };
    let shown = view.to_json().to_string();
    assert!(!shown.contains("tttt-pw"), "{shown}");
    assert!(shown.contains("https://index.example.org/simple"));
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
        let ids: BTreeSet<_> = plan.services.iter().filter(|s| s.kind == Kind::RAY_WORKER)
            .map(|s| format!("{:?}", s.container.env["LABD_GPU_UUID"])).collect();
        prop_assert_eq!(ids.len(), gpus as usize);
        for s in plan.services.iter().filter(|s| s.kind != Kind::RAY_WORKER) {
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
