//! Tests against the engine of this machine: `cargo test --lib images::live -- --ignored --nocapture`. Makes the base
//! image and the smallest of the others, and leaves both for whoever needs them next.

use std::time::Duration;

use super::*;

async fn settled(images: &Images, name: ImageName) -> ImageState {
    let mut states = images.watch();
    let mut last = String::new();
    let wait = async {
        loop {
            let state = states.borrow_and_update().get(&name).cloned().unwrap_or(ImageState::Unknown);
            match state {
                ImageState::Preparing { detail, .. } if detail != last => {
                    tracing::info!(image = name.as_str(), "{detail}");
                    last = detail;
                }
                ImageState::Present { .. } | ImageState::Unavailable { .. } => return state,
                _ => {}
            }
            states.changed().await.expect("the task runs");
        }
    };
    tokio::time::timeout(Duration::from_mins(8), wait).await.expect("in time")
}

#[tokio::test]
#[ignore = "needs a container engine, and minutes"]
async fn an_image_is_built_once_and_what_cannot_be_had_says_why() {
    let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_test_writer().try_init();
    let engine = DockerEngine::connect("/var/run/docker.sock", "wtengine").expect("a path");
    // The machine's own bundle: where package registries are reached through a mirror, builds need its CA.
    let bundle = std::path::PathBuf::from("/etc/ssl/certs/ca-certificates.crt");
    let settings = Build { ca_bundle: bundle.exists().then_some(bundle), ..Default::default() };
    let ca = crate::plan::images::read_ca(settings.ca_bundle.as_deref()).expect("readable");
    let args = BTreeMap::new();
    let prometheus = ImageSpec {
        name: ImageName::Prometheus,
        reference: crate::plan::images::reference_of(ImageName::Prometheus, &args, &ca),
        source: ImageSource::Build { args },
    };
    let grafana = ImageSpec {
        name: ImageName::Grafana,
        reference: "registry.invalid/grafana:1".to_owned(),
        source: ImageSource::Pull,
    };
    // No such version of Ray: fails late, and after steps that others can use.
    let args = BTreeMap::from([("RAY_VERSION".to_owned(), "0.0.1".to_owned())]);
    let ray = ImageSpec {
        name: ImageName::Ray,
        reference: crate::plan::images::reference_of(ImageName::Ray, &args, &ca),
        source: ImageSource::Build { args },
    };
    let images = Images::spawn(engine.clone(), vec![prometheus.clone(), grafana, ray], settings.clone());
    for name in [ImageName::Prometheus, ImageName::Grafana, ImageName::Ray] {
        images.want(name);
        images.want(name);
    }
    let ImageState::Unavailable { reason, .. } = settled(&images, ImageName::Grafana).await else { panic!("pulled") };
    assert!(reason.starts_with("image cannot be pulled: no registry answers at registry.invalid"), "{reason}");
    let built = settled(&images, ImageName::Prometheus).await;
    let log = images.log(ImageName::Prometheus);
    assert!(
        matches!(&built, ImageState::Present { size_bytes, built_at, .. }
        if *size_bytes > 50_000_000 && built_at.as_millis() > 0),
        "{built:?}\n{}",
        log.join("\n")
    );
    let ImageState::Unavailable { reason, .. } = settled(&images, ImageName::Ray).await else { panic!("built") };
    assert!(
        reason.starts_with("building image ray failed at step ") && reason.ends_with("see `labd images build ray`"),
        "{reason}"
    );
    assert!(reason.contains("ray"), "{reason}");

    // Another labd finds it there at once, and another look changes nothing.
    let again = Images::spawn(engine, vec![prometheus], settings);
    assert_eq!(settled(&again, ImageName::Prometheus).await, built);
    assert!(again.log(ImageName::Prometheus).is_empty(), "nothing was built");
    again.mark_missing(ImageName::Prometheus);
    again.want(ImageName::Prometheus);
    assert_eq!(settled(&again, ImageName::Prometheus).await, built);
}
