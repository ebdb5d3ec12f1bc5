//! Tests with real processes that speak the protocol, or something else.

use std::{fs, path::Path, time::Duration};

use labd_gpu::line::Source;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::*;

const HELLO: &str = r#"{"hello":{"source":"nvml","driver":"570.1"}}"#;
const INVENTORY: &str =
    r#"{"inventory":[{"id":"GPU-1","vendor":"nvidia","name":"H100","index":0,"memory_bytes":85899345920}]}"#;
const READINGS: &str = r#"{"readings":[{"id":"GPU-1","temperature_c":41.0}]}"#;
/// Beginning of a healthy probe's script; `$0` is its own process.
fn begins() -> String {
    format!("say() {{ printf '%s\\n' \"$1\"; }}; say '{HELLO}'; say '{INVENTORY}'; say '{READINGS}'")
}

/// Launch of a shell script as a probe.
fn script(source: Source, text: &str) -> Launch {
    Launch {
        source,
        program: Program::Path("/bin/sh".into()),
        args: vec!["-c".into(), text.to_owned()],
        env: Vec::new(),
    }
}

fn watch_scripts(scripts: &[(Source, String)]) -> watch::Receiver<ProbeView> {
    let launches: Vec<Option<Launch>> = scripts.iter().map(|(source, text)| Some(script(*source, text))).collect();
    spawn_from(move || launches.clone(), "/nonexistent".into())
}

fn watch_script(text: &str) -> watch::Receiver<ProbeView> {
    watch_scripts(&[(Source::Nvml, text.to_owned())])
}

/// Waits until the view is so, and returns it.
async fn until(view: &mut watch::Receiver<ProbeView>, is: impl FnMut(&ProbeView) -> bool) -> ProbeView {
    let seen = timeout(Duration::from_mins(1), view.wait_for(is)).await.map(|seen| seen.expect("it goes on").clone());
    seen.unwrap_or_else(|_| panic!("not within a minute: {:?}", *view.borrow()))
}

fn trouble_is(view: &ProbeView, code: &str) -> bool {
    view.trouble.as_ref().is_some_and(|t| t.code == code)
}

async fn until_gone(pid: &str) {
    let gone = || {
        // A zombie waits for us, not for the kernel.
        let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !gone() {
        assert!(Instant::now() < deadline, "process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_the_probe_says_is_shown_and_it_ends_with_the_last_receiver() {
    let dir = tempfile::tempdir().expect("a directory");
    let pid = dir.path().join("pid");
    let text = format!("echo $$ >{}; {}; while :; do sleep 0.2; say '{READINGS}'; done", pid.display(), begins());
    let mut view = watch_script(&text);
    let seen = until(&mut view, |v| v.read_at.is_some()).await;
    assert_eq!(seen.hello.map(|h| h.source), Some(Source::Nvml));
    assert_eq!((seen.devices[0].id.as_str(), seen.readings[0].temperature_c), ("GPU-1", Some(41.0)));
    assert!(seen.present && seen.inventory_at.is_some());
    assert_eq!((seen.stale_since, seen.trouble, seen.restarts), (None, None, 0));
    let pid = fs::read_to_string(pid).expect("it wrote its number");
    drop(view);
    until_gone(pid.trim()).await;
}

/// Ticks every 100 ms until told to stop. Returns how often, and the longest time between two ticks.
async fn ticks(mut stopped: tokio::sync::oneshot::Receiver<()>) -> (u64, Duration) {
    let (mut tick, mut last) = (tokio::time::interval(Duration::from_millis(100)), Instant::now());
    let (mut count, mut longest) = (0, Duration::ZERO);
    while stopped.try_recv().is_err() {
        tick.tick().await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        count += 1;
    }
    (count, longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_hangs_is_replaced_and_the_rest_of_labd_keeps_its_rhythm() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str| dir.path().join(name).display().to_string();
    // The first one hangs, with a child of its own, as a vendor's command would be. The second one works once it may.
    let text = format!(
        "if [ ! -e {pid} ]; then echo $$ >{pid}; {begins}; sleep 3600 & echo $! >{child}; wait; fi; \
         while [ ! -e {go} ]; do sleep 0.1; done; {begins}; while :; do sleep 0.2; say '{READINGS}'; done",
        begins = begins(),
        pid = file("pid"),
        child = file("child"),
        go = file("go"),
    );
    // Beside the ticks in labd's runtime, those of a thread of its own: a machine that is busy keeps both waiting.
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let rhythm = tokio::spawn(ticks(stopped));
    let (stop_other, stopped) = tokio::sync::oneshot::channel();
    let other = std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(ticks(stopped))
    });
    let began = Instant::now();
    let mut view = watch_script(&text);
    let silent = until(&mut view, |v| trouble_is(v, "probe-silent")).await;
    assert_eq!(silent.devices.len(), 1, "what was known is kept");
    assert_eq!(silent.stale_since, silent.read_at);
    assert!(began.elapsed() >= SILENCE);
    for name in ["pid", "child"] {
        until_gone(fs::read_to_string(file(name)).expect("it wrote the number").trim()).await;
    }
    fs::write(file("go"), "").expect("a file");
    let back = until(&mut view, |v| v.stale_since.is_none()).await;
    assert!(back.trouble.is_none() && back.read_at > silent.read_at && back.restarts >= 1, "{back:?}");
    let elapsed = began.elapsed();
    stop.send(()).expect("it runs");
    stop_other.send(()).expect("it runs");
    let (count, longest) = rhythm.await.expect("it ends");
    let (_, machines) = other.join().expect("it ends");
    assert!(
        longest < Duration::from_secs(1) + machines,
        "a tick of 100 ms came after {longest:?} (machine: {machines:?})"
    );
    assert!(count >= elapsed.as_secs(), "{count} ticks in {elapsed:?}");
}

#[tokio::test]
async fn a_crash_is_said_in_words_and_what_was_known_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let crashed = dir.path().join("crashed").display().to_string();
    let crash = "echo 'fell off the bus' >&2; kill -SEGV $$";
    let text =
        format!("if [ ! -e {crashed} ]; then touch {crashed}; {}; {crash}; fi; echo '{HELLO}'; {crash}", begins());
    let mut view = watch_script(&text);
    let seen = until(&mut view, |v| v.restarts >= 2).await;
    let text = seen.trouble.expect("it does not run").text;
    assert_eq!(text, "the GPU probe (NVML) ended: signal 11: fell off the bus; it is started again");
    assert_eq!((seen.devices.len(), seen.stale_since), (1, seen.read_at));
}

#[tokio::test]
async fn garbage_is_counted_and_no_sign_of_life() {
    let mut view =
        watch_script(&format!("{}; while :; do echo nonsense; printf '\\377\\n'; sleep 0.1; done", begins()));
    let seen = until(&mut view, |v| v.garbled >= 4).await;
    assert!(trouble_is(&seen, "probe-garbled"));
    assert_eq!(seen.devices.len(), 1);
    until(&mut view, |v| v.restarts >= 1).await;
}

#[tokio::test]
async fn floods_are_stopped() {
    for flood in [format!("yes '{READINGS}'"), "yes".to_owned(), "cat /dev/zero".to_owned(), "yes >&2".to_owned()] {
        let mut view = watch_script(&flood);
        let code = if flood.ends_with("&2") { "probe-silent" } else { "probe-flood" };
        until(&mut view, |v| trouble_is(v, code)).await;
    }
}

#[tokio::test]
async fn a_probe_that_ends_at_once_is_not_started_in_a_tight_circle() {
    let dir = tempfile::tempdir().expect("a directory");
    let starts = dir.path().join("starts");
    let mut view = watch_script(&format!("echo >>{}; exit 3", starts.display()));
    let seen = until(&mut view, |v| v.restarts >= 3).await;
    assert!(trouble_is(&seen, "probe-ended") && seen.stale_since.is_some(), "{seen:?}");
    drop(view);
    let starts = fs::read(&starts).expect("it wrote").len();
    assert!((3..=5).contains(&starts), "{starts} starts");
}

#[tokio::test]
async fn what_cannot_be_started_is_said() {
    let launch = Launch { program: Program::Path("/no/such/file".into()), ..script(Source::Nvml, "") };
    let mut view = spawn_from(move || vec![Some(launch.clone())], "/nonexistent".into());
    let seen = until(&mut view, |v| trouble_is(v, "probe-not-started")).await;
    assert!(seen.trouble.expect("just seen").text.contains("No such file"));
}

#[tokio::test]
async fn the_next_source_is_asked_where_a_library_is_missing() {
    let missing = r#"echo '{"trouble":{"code":"library-missing","text":"no libnvidia-ml.so.1"}}'; exec sleep 60"#;
    let works = format!("{}; while :; do sleep 0.2; say '{READINGS}'; done", begins());
    let second = (Source::NvidiaSmi, works.replace("nvml", "nvidia-smi"));
    for first in [missing, "echo 'error while loading shared libraries' >&2; exit 127"] {
        let mut view = watch_scripts(&[(Source::Nvml, first.to_owned()), second.clone()]);
        let seen = until(&mut view, |v| v.read_at.is_some()).await;
        assert_eq!(seen.hello.map(|h| h.source), Some(Source::NvidiaSmi), "{first}");
        assert_eq!((seen.restarts, seen.trouble, seen.stale_since), (0, None, None));
    }
}

#[test]
fn trouble_beside_readings_lasts_until_a_round_without_it() {
    let readings = || Ok(Line::Readings(Vec::new()));
    let trouble = || Ok(Line::Trouble(Trouble { code: "amdgpu-not-loaded".into(), text: "no driver".into() }));
    let mut view = ProbeView::default();
    let mut after = |line| {
        view.handle(line, "the kernel's files", Timestamp::from_millis(0));
        (view.trouble.is_some(), view.stale_since.is_some())
    };
    after(Ok(Line::Inventory(Vec::new())));
    assert_eq!(after(readings()), (false, false));
    for _ in 0..3 {
        // As the probe for AMD's GPUs prints each second where the driver runs none, and begins anew now and then.
        assert_eq!([after(trouble()), after(readings())], [(true, false); 2]);
    }
    assert_eq!([after(trouble()), after(Ok(Line::Inventory(Vec::new()))), after(readings())], [(true, false); 3]);
    assert_eq!(after(readings()), (false, false), "somebody loaded it");
}

#[tokio::test]
async fn a_probe_of_a_gpu_that_is_not_there_is_never_started() {
    let root = tempfile::tempdir().expect("a directory");
    let place = Place { root: root.path().into(), dir: root.path().join("probes") };
    let mut view = spawn(vendor::of(labd_gpu::Vendor::Amd).expect("a vendor"), place);
    assert!(timeout(Duration::from_millis(300), view.changed()).await.is_err());
    assert_eq!(*view.borrow(), ProbeView::default());
    let device = root.path().join("sys/bus/pci/devices/0000:c1:00.0");
    fs::create_dir_all(&device).expect("a folder");
    for (file, text) in [("vendor", "0x1002\n"), ("class", "0x120000\n")] {
        fs::write(device.join(file), text).expect("a file");
    }
    until(&mut view, |v| v.present).await;
}
