//! The command line: a client of the daemon, and the daemon's own start.
//!
//! * [`args`]: the command line, defined once.
//! * [`exit`]: exit codes and the one line on stderr.
//! * `client`: HTTP over the daemon's Unix socket.
//! * `status`: the snapshot as text, pure.
//! * `text`: the only way to the terminal.
//! * `log`: where the daemon logs.
//! * `doctor`, `follow`, `gpu`, `install`, `jobs`, `local`, `notify`, `probe`, `up`, `usage`, `user`: the
//!   commands.

pub mod args;
mod client;
mod doctor;
pub mod exit;
mod follow;
mod gpu;
mod install;
mod jobs;
mod local;
mod log;
mod notify;
mod probe;
mod status;
mod text;
mod up;
mod usage;
mod user;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use self::{
    args::{Cli, Command},
    client::Client,
    exit::{Exit, Failure},
    text::Out,
};
use crate::snapshot::{SCHEMA, Snapshot};

/// Largest number of threads that tasks run on: labd waits most of the time, and a thread for each CPU of a large machine would
/// only cost memory. Chosen, not measured; what blocks has threads of its own.
const THREADS: usize = 4;

/// Runs one command and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let threads = std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(THREADS));
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(Failure::new(Exit::Failure, format!("cannot start: {e}"))),
    };
    // The daemon has its own way to end.
    let (daemon, up) = (matches!(cli.command, Command::Run(_)), matches!(cli.command, Command::Up(_)));
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = dispatch(cli) => ended,
            failure = interrupted(up), if !daemon => Err(failure),
        }
    });
    // Nothing that still runs may keep the command from ending.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(failure),
    }
}

fn fail(failure: Failure) -> ExitCode {
    if failure.line.is_empty() {
        return if failure.exit == Exit::Failure { ExitCode::SUCCESS } else { failure.into() };
    }
    text::complain(&failure.line);
    failure.into()
}

/// Failure of a command that Ctrl-C ended; `up` is the command that leaves something behind.
async fn interrupted(up: bool) -> Failure {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    text::restore_terminal();
    Failure::new(Exit::Interrupted, if up { "the lab keeps starting in the background; see `labd status`" } else { "" })
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let client = Client::new(&global);
    let mut out = Out::new(global.color);
    match command {
        Command::Run(args) => local::run(&global, &args).await,
        Command::Up(args) => up::up(&global, &args, &mut out).await,
        Command::Down(args) => up::down(&global, &args, &mut out).await,
        Command::Status(args) if args.watch => follow::watch(&client, &mut out).await,
        Command::Status(args) if args.json => {
            let snapshot: serde_json::Value = client.json("/api/v1/snapshot").await?;
            out.json(&snapshot)
        }
        Command::Status(_) => {
            let snapshot: Snapshot = client.json("/api/v1/snapshot").await?;
            let text = status::render(&snapshot, crate::time::Timestamp::now(), out.style());
            out.text(&text)
        }
        Command::Jobs(args) => jobs::run(&client, &args, &mut out).await,
        Command::Usage(args) => usage::run(&client, &args, &mut out).await,
        Command::Logs(args) => follow::logs(&client, &args, &mut out).await,
        Command::Events(args) => follow::events(&client, &args, &mut out).await,
        Command::Start(args) => command_to(&client, &args.service, "start", &mut out).await,
        Command::Stop(args) => command_to(&client, &args.service, "stop", &mut out).await,
        Command::Restart(args) => command_to(&client, &args.service, "restart", &mut out).await,
        Command::Gpu(command) => gpu::run(&client, command, &mut out).await,
        Command::Reload => {
            let line = client.command("/api/v1/reload").await?;
            out.line(&line)
        }
        Command::Apply => {
            let line = client.command("/api/v1/apply").await?;
            out.line(&line)
        }
        Command::Plan(args) if args.diff => local::diff(&global, &args, &mut out).await,
        Command::Plan(args) => local::plan(&global, &args, &mut out).await,
        Command::User(command) => user::run(&client, command, &mut out).await,
        Command::Open(args) => user::open(&client, args.print, &mut out).await,
        Command::Notify(command) => notify::run(&client, command, &mut out).await,
        Command::Credentials(args) => credentials(&client, args.json, &mut out).await,
        Command::Images(command) => local::images(&global, command, &mut out).await,
        Command::Config(command) => local::config(&global, command, &mut out),
        Command::Probe(source) => probe::run(source).await,
        Command::Doctor(args) => doctor::doctor(&global, args.json, &mut out).await,
        Command::Install(args) => install::install(&global, &args, &mut out).await,
        Command::Uninstall(args) => install::uninstall(&global, &args, &mut out).await,
        Command::Version(args) => version(args.json, &mut out),
        Command::Completions { shell } => out.bytes(&completion(shell)),
        Command::Man => out.bytes(&man_page()?),
    }
}

fn completion(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "labd", &mut script);
    script
}

fn man_page() -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(page)
}

async fn command_to(client: &Client<'_>, service: &str, verb: &str, out: &mut Out) -> Result<(), Failure> {
    let line = client.command(&format!("/api/v1/services/{}/{verb}", path_segment(service)?)).await?;
    out.line(&line)
}

/// Service's name as part of a path. What cannot be one is refused here, since it would ask for something else.
fn path_segment(name: &str) -> Result<&str, Failure> {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if plain { Ok(name) } else { Err(Failure::new(Exit::NoService, format!("no service {name:?}; see `labd status`"))) }
}

async fn credentials(client: &Client<'_>, json: bool, out: &mut Out) -> Result<(), Failure> {
    let all: serde_json::Value = client.json("/api/v1/credentials").await?;
    if json {
        return out.json(&all);
    }
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<Vec<String>> = all
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| vec![text(&c["name"]), text(&c["user"]), text(&c["secret"]), text(&c["url"])])
        .collect();
    out.text(&status::table(&["FOR", "USER", "PASSWORD OR TOKEN", "WHERE"], &rows))
}

fn version(json: bool, out: &mut Out) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        return out.json(&serde_json::json!({ "version": version, "schema": SCHEMA }));
    }
    out.line(&format!("labd {version} (snapshot schema {SCHEMA})"))
}
