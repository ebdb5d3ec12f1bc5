//! Runs `nvidia-smi` once a second and passes its answers on; see [`labd_gpu::smi`].
//!
//! One at a time: one that hangs is killed, and one that hangs in the kernel, where it cannot be killed, is waited for before
//! there is another. A line comes each second all the same.

use std::{env, ffi::OsString, io, path::Path, process::Stdio, time::Duration};

use labd_gpu::{
    line::{Hello, LIBRARY_MISSING, Line, Source, Trouble},
    nvidia_driver,
    smi::{self, Asked, Extra, FIELDS, FORMAT, Found, Known},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

/// Variable with the command's path, for tests and unusual machines. Else it is looked for in `PATH`.
const COMMAND: &str = "LABD_NVIDIA_SMI";

/// Time between two rounds, and the longest time without a line.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest time it may take before it is killed.
const LIMIT: Duration = Duration::from_secs(4);
/// Longest time before its first answer: it starts all GPUs where nothing else did, which takes seconds for each.
const FIRST_LIMIT: Duration = Duration::from_mins(1);
/// Time for which its last output is waited for after its death: something that it started may hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Time between two questions for remapped rows, which change once in a GPU's life if ever.
const ROWS_EVERY: Duration = Duration::from_mins(1);

/// Code of [`Trouble`] when it hangs.
const HANGS: &str = "nvidia-smi-hangs";

/// Prints lines until standard input ends. Fails when nobody reads.
pub(super) async fn run() -> io::Result<()> {
    let root = crate::node::root();
    let command = env::var_os(COMMAND).unwrap_or_else(|| OsString::from("nvidia-smi"));
    let hello = Hello { source: Source::NvidiaSmi, driver: nvidia_driver::version(&root), library: None };
    let mut probe = Probe { command, hello, answered: false, told: Instant::now() };
    tokio::select! {
        ended = probe.run(&root) => ended,
        () = end_of_input() => Ok(()),
    }
}

async fn end_of_input() {
    let (mut input, mut buffer) = (tokio::io::stdin(), [0; 256]);
    while matches!(input.read(&mut buffer).await, Ok(n) if n > 0) {}
}

struct Probe {
    command: OsString,
    hello: Hello,
    /// Whether it has ever answered.
    answered: bool,
    /// Moment at which the last line was printed.
    told: Instant,
}

/// Result of one call.
enum Said {
    /// Output, whatever its exit code: with a lost GPU it fails and still names the others.
    Text(String),
    /// Hang, so that it had to be killed.
    Hung,
    /// Start that failed.
    NotStarted(io::Error),
}

impl Probe {
    async fn run(&mut self, root: &Path) -> io::Result<()> {
        self.hello()?;
        let (mut fields, mut known, mut extra) = (FIELDS.to_vec(), Known::default(), Extra::default());
        let mut rows_at: Option<Instant> = None;
        let mut rounds = interval(PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let asked = known.to_ask(root);
            let ids = match &asked {
                Asked::All => None,
                Asked::Only(pcis) => Some(format!("--id={pcis}")),
            };
            if matches!(&asked, Asked::Only(pcis) if pcis.is_empty()) {
                for line in known.lines(root, &asked, Found::default(), &extra) {
                    self.tell(&line)?;
                }
                continue;
            }
            let with_ids = |query: &str| -> Vec<String> {
                [query, FORMAT].into_iter().map(str::to_owned).chain(ids.clone()).collect()
            };
            let query = format!("--query-gpu={}", fields.join(","));
            let text = match self.ask(&with_ids(&query)).await? {
                Said::Text(text) => text,
                Said::Hung => continue,
                Said::NotStarted(e) => {
                    let text = format!("nvidia-smi cannot be started: {e}; install NVIDIA's driver");
                    return self.tell(&Line::Trouble(Trouble { code: LIBRARY_MISSING.to_owned(), text }));
                }
            };
            if let Some(unknown) = smi::unknown_field(&text)
                && let Some(at) = fields.iter().position(|f| *f == unknown)
            {
                fields.remove(at);
                rounds.reset_immediately();
                continue;
            }
            let found = match Found::parse(&fields, &text) {
                Ok(found) => found,
                Err(trouble) => {
                    self.tell(&Line::Trouble(trouble))?;
                    continue;
                }
            };
            self.answered = true;
            self.driver(found.driver.as_ref())?;
            // What is not answered this time was answered before, or is absent.
            if known.lists(root, &asked, &found)
                && let Said::Text(text) = self.ask(&["-L".to_owned()]).await?
                && text.contains("(UUID: ")
            {
                extra.partitions = smi::partitions(&text);
                known.listed(root, &found);
            }
            extra.instance_processes.clear();
            if found.divided() {
                let query: Vec<String> =
                    smi::INSTANCE_PROCESSES.into_iter().map(str::to_owned).chain(ids.clone()).collect();
                if let Said::Text(text) = self.ask(&query).await? {
                    extra.instance_processes = smi::instance_processes(&text);
                }
            }
            if let Said::Text(text) = self.ask(&with_ids(smi::PROCESSES)).await? {
                extra.processes = smi::processes(&text);
            }
            if rows_at.is_none_or(|at| at.elapsed() >= ROWS_EVERY) {
                rows_at = Some(Instant::now());
                if let Said::Text(text) = self.ask(&with_ids(smi::ROWS)).await? {
                    extra.rows = smi::rows(&text);
                }
            }
            for line in known.lines(root, &asked, found, &extra) {
                self.tell(&line)?;
            }
        }
    }

    fn tell(&mut self, line: &Line) -> io::Result<()> {
        self.told = Instant::now();
        line.write(&mut io::stdout().lock())
    }

    fn hello(&mut self) -> io::Result<()> {
        self.tell(&Line::Hello(self.hello.clone()))
    }

    /// Prints the driver's version if it is another than before.
    fn driver(&mut self, version: Option<&String>) -> io::Result<()> {
        if version.is_some() && self.hello.driver.as_ref() != version {
            self.hello.driver = version.cloned();
            self.hello()?;
        }
        Ok(())
    }

    /// Runs it once. Meanwhile a line is printed each second: a hello, which changes nothing, and trouble once it is
    /// killed.
    async fn ask(&mut self, args: &[String]) -> io::Result<Said> {
        let mut command = Command::new(&self.command);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => return Ok(Said::NotStarted(e)),
        };
        let (output, errors) = (read(child.stdout.take()), read(child.stderr.take()));
        let limit = if self.answered { LIMIT } else { FIRST_LIMIT };
        let kill = sleep(limit);
        tokio::pin!(kill);
        let mut killed = false;
        loop {
            tokio::select! {
                ended = child.wait() => {
                    ended?;
                    break;
                }
                () = &mut kill, if !killed => {
                    killed = true;
                    // It may have ended in this moment.
                    let _ = child.start_kill();
                    self.tell(&hangs(limit))?;
                }
                () = sleep_until(self.told + PERIOD) => if killed { self.tell(&hangs(limit))? } else { self.hello()? },
            }
        }
        if killed {
            return Ok(Said::Hung);
        }
        let both = async { (output.await, errors.await) };
        let (output, errors) = timeout(LAST_WORDS, both).await.unwrap_or((Ok(String::new()), Ok(String::new())));
        Ok(Said::Text(output.unwrap_or_default() + &errors.unwrap_or_default()))
    }
}

fn hangs(limit: Duration) -> Line {
    let text = format!(
        "nvidia-smi did not answer within {} s and was killed; see `dmesg | grep NVRM`, and reboot if it happens again",
        limit.as_secs()
    );
    Line::Trouble(Trouble { code: HANGS.to_owned(), text })
}

/// Reads all that comes out of a pipe.
fn read(pipe: Option<impl AsyncRead + Unpin + Send + 'static>) -> tokio::task::JoinHandle<String> {
    tokio::spawn(async move {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes).await;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
