//! Making of one image: build, pull, or bootstrap of the base. Each reports through a [`Reporter`] and can be dropped
//! at any moment; the engine then gives the build up, and a bootstrap is told to end and clean up behind itself.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bollard::{
    errors::Error,
    models::CreateImageInfo,
    query_parameters::{BuildImageOptions, CreateImageOptions},
};
use futures_util::StreamExt;

use super::{
    bootstrap::bootstrap,
    progress::{BuildProgress, PullProgress, pull_failure, split_reference},
};
use crate::{
    config::Build,
    engine::{
        EngineError, LABEL_INPUTS,
        docker::{DockerEngine, SILENT, explain},
    },
    plan::images as inputs,
    spec::{ImageName, ImageSource, ImageSpec},
    time::{Timestamp, human},
};

/// Longest wait for a registry before the base is bootstrapped instead.
const BASE_ANSWER: Duration = Duration::from_secs(15);
/// Longest silence of a pull.
const PULL_SILENCE: Duration = Duration::from_mins(3);
/// Shortest time between two progress reports that are about the same step.
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// Number of lines of output kept for each image.
const LOG_LINES: usize = 500;

/// Reason why an image could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Engine that went away: not the image's fault, tried again as soon as it is back.
    Engine(String),
    /// Failure of the build or pull itself, in one line.
    Image(String),
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        Self::Engine(e.to_string())
    }
}

/// Image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) id: String,
    pub(super) size_bytes: u64,
    pub(super) built_at: Timestamp,
}

/// Log of the last lines that a build or pull printed.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    pub(super) fn lines(&self) -> Vec<String> {
        self.inner().iter().cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.inner().clear();
    }

    pub(super) fn push(&self, line: &str) {
        let mut lines = self.inner();
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(explain::redact(line));
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        // Nothing that is held under this lock can panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Destination of progress: `detail` to whoever watches the state, lines to the log.
pub(super) struct Reporter {
    pub(super) log: Log,
    detail: Box<dyn Fn(String) + Send + Sync>,
    last: Option<(Instant, u32)>,
}

impl Reporter {
    pub(super) fn new(log: Log, detail: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self { log, detail: Box::new(detail), last: None }
    }

    pub(super) fn say(&self, detail: impl Into<String>) {
        (self.detail)(detail.into());
    }

    /// Reports a detail unless something about the same step was reported just now: builds print thousands of lines.
    fn say_sometimes(&mut self, step: u32, detail: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.last.is_none_or(|(at, of)| of != step || now.duration_since(at) >= REPORT_EVERY) {
            self.last = Some((now, step));
            self.say(detail());
        }
    }

    fn line(&self, line: &str) {
        self.log.push(line);
    }
}

/// The image under `reference`, when the engine has it.
pub(super) async fn inspect(engine: &DockerEngine, reference: &str) -> Result<Option<Present>, Failure> {
    let client = engine.client().await?;
    match client.inspect_image(reference).await {
        Ok(image) => Ok(Some(Present {
            id: image.id.unwrap_or_default(),
            size_bytes: u64::try_from(image.size.unwrap_or(0)).unwrap_or(0),
            built_at: image.created.as_deref().and_then(Timestamp::parse).unwrap_or_default(),
        })),
        Err(e) => match engine.fail(&e) {
            EngineError::NotFound(_) => Ok(None),
            other => Err(other.into()),
        },
    }
}

/// Makes an image that the engine does not have, or rebuilds it.
///
/// `base` is held while the base image is made, which all builds share. `fresh` ignores the engine's layer cache.
pub(super) async fn make(
    engine: &DockerEngine,
    spec: &ImageSpec,
    settings: &Build,
    base: &tokio::sync::Mutex<()>,
    fresh: bool,
    mut report: Reporter,
) -> Result<Present, Failure> {
    let begun = Instant::now();
    match &spec.source {
        ImageSource::Pull => {
            pull(engine, &spec.reference, PULL_SILENCE, &mut report).await.map_err(|f| f.of_pull(&spec.reference))?;
        }
        ImageSource::Build { args } => {
            report.say("waiting for the base image");
            let base = {
                let _one = base.lock().await;
                ensure_base(engine, settings, &mut report).await?
            };
            let args = build_args(spec.name, args, settings, &base);
            build(engine, spec, args, settings, fresh, &mut report).await?;
        }
    }
    let present = inspect(engine, &spec.reference).await?.ok_or_else(|| {
        Failure::Image(format!(
            "image {} was made and is gone again; rebuild it with `labd images build`",
            spec.reference
        ))
    })?;
    report.line(&format!(
        "{} made in {}, {} MB",
        spec.reference,
        human(begun.elapsed()),
        present.size_bytes / 1_000_000
    ));
    Ok(present)
}

/// Reference of the image that builds start from: the official one where it is there or can be pulled, else our own.
async fn ensure_base(engine: &DockerEngine, settings: &Build, report: &mut Reporter) -> Result<String, Failure> {
    let ours = inputs::base_reference();
    // Ours first when both are there: a registry that comes and goes must not throw the layer cache away each time.
    for reference in [ours.as_str(), inputs::OFFICIAL_BASE] {
        if inspect(engine, reference).await?.is_some() {
            return Ok(reference.to_owned());
        }
    }
    report.say(format!("pulling the base image {}", inputs::OFFICIAL_BASE));
    match pull(engine, inputs::OFFICIAL_BASE, BASE_ANSWER, report).await {
        Ok(()) => return Ok(inputs::OFFICIAL_BASE.to_owned()),
        Err(PullFailure::Engine(e)) => return Err(Failure::Engine(e)),
        Err(PullFailure::Pull(why)) => {
            report.line(&format!("{} not pulled, bootstrapping instead: {why}", inputs::OFFICIAL_BASE));
        }
    }
    bootstrap(engine, settings, &ours, report).await?;
    Ok(ours)
}

/// All build arguments: the plan's, the base, and where to fetch from, as far as the Dockerfile declares them.
fn build_args(
    name: ImageName,
    args: &std::collections::BTreeMap<String, String>,
    settings: &Build,
    base: &str,
) -> HashMap<String, String> {
    let declared = inputs::declared_args(name);
    let mirrors = [
        ("PIP_INDEX_URL", &settings.pip_index_url),
        ("GOPROXY", &settings.goproxy),
        ("DEBIAN_MIRROR", &settings.debian_mirror),
    ];
    let mut all: HashMap<String, String> = mirrors
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
        .chain(args.clone())
        .chain([("BASE".to_owned(), base.to_owned())])
        .filter(|(key, _)| declared.contains(key))
        .collect();
    // Proxies need no declaration and stay out of the image's history.
    all.extend(proxies(settings));
    all
}

/// The proxies in both spellings: tools disagree about which one counts.
pub(super) fn proxies(settings: &Build) -> Vec<(String, String)> {
    [("http_proxy", &settings.http_proxy), ("https_proxy", &settings.https_proxy), ("no_proxy", &settings.no_proxy)]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.clone()?)))
        .flat_map(|(key, value)| [(key.to_owned(), value.clone()), (key.to_ascii_uppercase(), value)])
        .collect()
}

async fn build(
    engine: &DockerEngine,
    spec: &ImageSpec,
    args: HashMap<String, String>,
    settings: &Build,
    fresh: bool,
    report: &mut Reporter,
) -> Result<(), Failure> {
    let word = spec.name.as_str();
    let ca = inputs::read_ca(settings.ca_bundle.as_deref())
        .map_err(|e| Failure::Image(format!("building image {word} failed: {e}")))?;
    let tar = inputs::context_tar(spec.name, &ca)
        .map_err(|e| Failure::Image(format!("building image {word} failed: its files cannot be packed: {e}")))?;
    let inputs = spec.reference.rsplit(':').next().unwrap_or_default().to_owned();
    let options = BuildImageOptions {
        t: Some(spec.reference.clone()),
        nocache: fresh,
        rm: true,
        forcerm: true,
        buildargs: Some(args),
        labels: Some(HashMap::from([(LABEL_INPUTS.to_owned(), inputs)])),
        ..Default::default()
    };
    let client = engine.client().await?.with_timeout(SILENT);
    let mut progress = BuildProgress::default();
    let mut began: Option<(u32, Instant)> = None;
    let mut output = client.build_image(options, None, Some(bollard::body_full(tar.into())));
    report.say(progress.detail());
    while let Some(message) = output.next().await {
        let message = match message {
            Ok(message) => message,
            Err(e) => return Err(build_failure(engine, &e, word, &progress)),
        };
        // A base that the engine has to fetch speaks through `status`; everything else through `stream`.
        for line in progress.feed(message.stream.as_deref().unwrap_or_default()) {
            report.line(&line);
        }
        let number = progress.step().map_or(0, |s| s.number);
        if began.is_none_or(|(n, _)| n != number) {
            if let Some((n, at)) = began.filter(|(n, _)| *n > 0) {
                report.line(&format!("(step {n} took {})", human(at.elapsed())));
            }
            began = Some((number, Instant::now()));
        }
        report.say_sometimes(number, || progress.detail());
    }
    Ok(())
}

fn build_failure(engine: &DockerEngine, e: &Error, word: &str, progress: &BuildProgress) -> Failure {
    match e {
        Error::DockerStreamError { error: text } | Error::DockerResponseServerError { message: text, .. } => {
            Failure::Image(progress.failure(word, text))
        }
        other => match engine.fail(other) {
            EngineError::Unreachable(line) => Failure::Engine(line),
            line => Failure::Image(progress.failure(word, &line.to_string())),
        },
    }
}

enum PullFailure {
    Engine(String),
    Pull(String),
}

impl PullFailure {
    fn of_pull(self, reference: &str) -> Failure {
        match self {
            Self::Engine(line) => Failure::Engine(line),
            Self::Pull(text) => Failure::Image(pull_failure(reference, &text)),
        }
    }

    fn from(engine: &DockerEngine, e: &Error) -> Self {
        match e {
            Error::DockerStreamError { error: text } | Error::DockerResponseServerError { message: text, .. } => {
                Self::Pull(text.clone())
            }
            other => match engine.fail(other) {
                EngineError::Unreachable(line) => Self::Engine(line),
                line => Self::Pull(line.to_string()),
            },
        }
    }
}

/// Pulls `reference`; gives up when nothing is heard for `silence`.
async fn pull(
    engine: &DockerEngine,
    reference: &str,
    silence: Duration,
    report: &mut Reporter,
) -> Result<(), PullFailure> {
    let client = engine.client().await.map_err(|e| PullFailure::Engine(e.to_string()))?.with_timeout(SILENT);
    let (name, tag) = split_reference(reference);
    let options = CreateImageOptions { from_image: Some(name), tag, ..Default::default() };
    let mut output = client.create_image(Some(options), None, None);
    let mut progress = PullProgress::default();
    let mut patience = silence;
    report.line(&format!("pulling {reference}"));
    loop {
        let Ok(message) = tokio::time::timeout(patience, output.next()).await else {
            return Err(PullFailure::Pull(format!("i/o timeout: nothing heard for {}", human(patience))));
        };
        match message {
            None => return Ok(()),
            Some(Err(e)) => return Err(PullFailure::from(engine, &e)),
            Some(Ok(CreateImageInfo { id, status, progress_detail, .. })) => {
                let amount = progress_detail.unwrap_or_default();
                progress.feed(id.as_deref(), status.as_deref().unwrap_or_default(), amount.current, amount.total);
                report.say_sometimes(0, || progress.detail());
                // Once a registry answered, unpacking a large layer may take longer than its first answer.
                patience = PULL_SILENCE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn only_declared_arguments_and_proxies_reach_a_build() {
        let settings = Build {
            https_proxy: Some("http://p:3128".into()),
            pip_index_url: Some("https://m/simple".into()),
            goproxy: Some("https://g".into()),
            ..Default::default()
        };
        let plan = BTreeMap::from([("RAY_VERSION".to_owned(), "2.60.0".to_owned())]);
        let args = build_args(ImageName::Ray, &plan, &settings, "labd/base:x");
        assert_eq!(args.get("BASE").map(String::as_str), Some("labd/base:x"));
        assert_eq!(args.get("HTTPS_PROXY"), args.get("https_proxy"));
        assert!(args.contains_key("RAY_VERSION") && args.contains_key("PIP_INDEX_URL"));
        assert!(!args.contains_key("GOPROXY"), "ray's Dockerfile has no use for it");
    }
}
