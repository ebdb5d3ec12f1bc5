//! Bootstrap of the base image where no registry answers: by a script from a Debian mirror.

use std::{
    io,
    path::Path,
    process::{Command as StdCommand, Stdio},
    time::Duration,
};

use bollard::query_parameters::CreateImageOptions;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _, stream};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdout, Command},
};

use super::make::{Failure, Reporter, proxies};
use crate::{
    config::Build,
    engine::{
        EngineError, LABEL_INPUTS,
        docker::{DockerEngine, SILENT, explain},
    },
    plan::images as inputs,
    text::shell_word,
};

/// Makes the base from a Debian mirror and gives it to the engine as `reference`.
pub(super) async fn bootstrap(
    engine: &DockerEngine,
    settings: &Build,
    reference: &str,
    report: &mut Reporter,
) -> Result<(), Failure> {
    let failed = |why: &str| Failure::Image(format!("the base image cannot be made: {}", explain::one_line(why)));
    let client = engine.client().await?.with_timeout(SILENT);
    report.say("bootstrapping the base image with debootstrap");
    let mut variables = proxies(settings);
    variables.extend(settings.debian_mirror.clone().map(|mirror| ("DEBIAN_MIRROR".to_owned(), mirror)));
    let script = input(&String::from_utf8_lossy(&inputs::bootstrap_script()), &variables);
    let unit = systemd_runs_it().then(|| format!("labd-bootstrap-{}", std::process::id()));
    let mut command = Command::from(shell(unit.as_deref()));
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.as_std().get_program().display().to_string();
    let mut child = command.spawn().map_err(|e| failed(&format!("{program} cannot be run: {e}")))?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed("its output cannot be read"));
    };
    // One that ends before it has read everything says itself why.
    tokio::spawn(async move {
        let _ = stdin.write_all(script.as_bytes()).await;
    });
    let log = report.log.clone();
    let errors = tokio::spawn(async move {
        let mut last = String::new();
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            log.push(&line);
            // The script's own last word says more than what debootstrap printed on the way.
            if !line.trim().is_empty() {
                last = line;
            }
        }
        last
    });
    let tag = reference.split_once(':').map(|(_, tag)| tag.to_owned());
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: reference.split_once(':').map(|(repo, _)| repo.to_owned()),
        changes: vec![
            "CMD [\"bash\"]".to_owned(),
            format!("LABEL {LABEL_INPUTS}={}", tag.as_deref().unwrap_or_default()),
        ],
        tag,
        ..Default::default()
    };
    let body = bollard::body_try_stream(output_of(Running { child, unit }, stdout));
    let imported = client.create_image(Some(options), Some(body), None).try_for_each(|_| async { Ok(()) }).await;
    let Err(e) = imported else { return Ok(()) };
    // A script that failed is the reason; the engine only saw its input end.
    let last = tokio::time::timeout(Duration::from_secs(10), errors).await;
    match last.ok().and_then(Result::ok).as_deref().and_then(|l| l.strip_prefix("bootstrap: error: ")) {
        Some(why) => Err(failed(why)),
        None => match engine.fail(&e) {
            EngineError::Unreachable(_) if engine.check().await.is_ok() => Err(failed("the script ended early")),
            EngineError::Unreachable(line) => Err(Failure::Engine(line)),
            line => Err(failed(&line.to_string())),
        },
    }
}

/// Whether systemd has started labd. A unit of labd's may not do what debootstrap does (set-id files, mounting).
fn systemd_runs_it() -> bool {
    let root = rustix::process::geteuid().is_root();
    root && std::env::var_os("INVOCATION_ID").is_some() && Path::new("/run/systemd/system").is_dir()
}

/// Command that runs a script from its standard input, in a unit of that name where there is one: a service of its own
/// under systemd, as free as any other of root's.
fn shell(unit: Option<&str>) -> StdCommand {
    let Some(unit) = unit else {
        let mut shell = StdCommand::new("bash");
        shell.arg("-s");
        return shell;
    };
    let mut run = StdCommand::new("systemd-run");
    run.args(["--quiet", "--collect", "--wait", "--pipe"]).arg(format!("--unit={unit}")).args(["bash", "-s"]);
    run
}

/// Script with its environment, for a shell that reads it from its standard input: neither is seen in a list of
/// processes, and a proxy's login is not among a unit's settings either.
fn input(script: &str, variables: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        text.push_str(&format!("export {name}={}\n", shell_word(value)));
    }
    // Read to its end before it begins, so that nothing it runs can take the rest for its own input.
    text + "{\n" + script + "\nexit\n} </dev/null\n"
}

/// Script in a process group of its own, told to end (and so to clean up) when it is dropped while it runs.
struct Running {
    child: Child,
    /// Systemd unit in which it runs.
    unit: Option<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // None once it was waited for: then there is no such group any more.
        let Some(pid) = self.child.id() else { return };
        let group = format!("-{pid}");
        let mut ends = vec![vec!["kill", "-TERM", "--", &group]];
        let service = self.unit.as_ref().map(|unit| format!("{unit}.service"));
        if let Some(service) = &service {
            ends.push(vec!["systemctl", "--no-block", "stop", service]);
        }
        for argv in ends {
            let _ = StdCommand::new(argv[0])
                .args(&argv[1..])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// Output of a script as a request body. It ends in an error when the script failed: an engine takes half a tar for
/// one.
fn output_of(running: Running, stdout: ChildStdout) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
    stream::try_unfold((running, stdout), |(mut running, mut stdout)| async move {
        let mut piece = Vec::with_capacity(64 * 1024);
        if stdout.read_buf(&mut piece).await? > 0 {
            return Ok(Some((Bytes::from(piece), (running, stdout))));
        }
        let status = running.child.wait().await?;
        if status.success() { Ok(None) } else { Err(io::Error::other("the bootstrap script failed")) }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_failing_script_never_ends_its_body_well() {
        for (script, fine) in [("printf tar", true), ("printf half; exit 3", false)] {
            let mut child = Command::new("sh")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .expect("sh is everywhere");
            let stdout = child.stdout.take().expect("piped");
            let pieces: Result<Vec<Bytes>, _> = output_of(Running { child, unit: None }, stdout).try_collect().await;
            assert_eq!(pieces.is_ok(), fine, "{script}");
        }
    }

    #[tokio::test]
    async fn a_dropped_script_cleans_up_behind_itself() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (ready, cleaned) = (dir.path().join("ready"), dir.path().join("cleaned"));
        let script = format!(
            "trap 'touch {}' EXIT; trap 'exit 143' TERM; touch {}; sleep 60",
            cleaned.display(),
            ready.display()
        );
        let child = Command::new("bash").args(["-c", &script]).process_group(0).spawn().expect("bash is there");
        let running = Running { child, unit: None };
        let appears = async |path: &std::path::Path| {
            for _ in 0..100 {
                if path.exists() {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            false
        };
        assert!(appears(&ready).await);
        drop(running);
        assert!(appears(&cleaned).await);
    }

    #[test]
    fn a_script_gets_its_environment_unseen_and_nothing_it_runs_reads_on() {
        let login = "http://u:it's$HOME@p:3128".to_owned();
        let script = "trap 'printf end' EXIT\ncat\nprintf '%s ' \"$http_proxy\"";
        let text = input(script, &[("http_proxy".to_owned(), login.clone())]);
        let mut child = shell(None).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash is there");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        let out = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{login} end"));
        let unit = shell(Some("x"));
        let argv: Vec<_> = unit.get_args().map(|arg| arg.to_string_lossy()).collect();
        assert!(argv.join(" ").ends_with("--pipe --unit=x bash -s"), "{argv:?}");
    }
}
