//! The command line, defined once: parsing, help, completions and the man page come from here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};

use crate::{accounts::Role, config::DEFAULT_PATH, spec::ImageName};

/// Default path of the daemon's socket.
pub const DEFAULT_SOCKET: &str = "/run/labd/labd.sock";

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed; the line on stderr says why
  2   the command line is wrong
  3   the daemon does not run
  4   no permission, such as for the daemon's socket
  5   it took longer than --timeout
  6   no such service or job
  78  labd.toml is wrong";

/// Runs a lab's GPU machine: Ray, MinIO, metrics and Jupyter are up and stay up.
#[derive(Debug, Parser)]
#[command(name = "labd", version, max_term_width = 100, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", env = "LABD_CONFIG", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// The daemon's socket
    #[arg(long, global = true, value_name = "PATH", env = "LABD_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start the daemon if needed, wait until the lab is ready, print the links
    #[command(
        after_help = "Examples:\n  labd up\n  labd up --simulate-gpus 2    # no GPU needed\n\nBuilding the images takes some minutes the first time. After Ctrl-C the lab keeps starting."
    )]
    Up(Up),
    /// Stop and remove every container and end the daemon; volumes and images are kept
    #[command(after_help = "Examples:\n  labd down")]
    Down(Down),
    /// Show the node, its services, GPUs and jobs
    #[command(
        after_help = "Examples:\n  labd status\n  labd status --watch\n  labd status --json | jq '.services[] | {name, state}'"
    )]
    Status(Status),
    /// Show jobs with every attempt at them, or one job; stop one
    #[command(
        after_help = "Examples:\n  labd jobs\n  labd jobs food11\n  labd jobs food11 --json | jq '.attempts[] | {submission_id, message}'\n  labd jobs food11 --csv >food11.csv    # its training curve\n  labd jobs stop food11    # whichever attempt runs, also one that waits for resources\n\nA job that was lost and resubmitted is one job: its first id stands for it."
    )]
    Jobs(Jobs),
    /// Show GPU hours by user and job, and GPUs that are held but idle
    #[command(
        after_help = "Examples:\n  labd usage\n  labd usage --days 1\n  labd usage --days 90 --csv >usage.csv\n  labd usage --json | jq '.weeks[0].users'\n\nWho submits a job may say who they are: ray job submit --metadata-json '{\"labd.user\": \"anna\"}'"
    )]
    Usage(Usage),
    /// Show what a service prints
    #[command(after_help = "Examples:\n  labd logs ray-head\n  labd logs ray-worker-0 -f\n  labd logs minio -n 20")]
    Logs(Logs),
    /// Show what happened, and why
    #[command(after_help = "Examples:\n  labd events\n  labd events -f\n  labd events --service ray-worker-0 -n 10")]
    Events(Events),
    /// Start a service that was stopped by hand, or try a failing one now
    #[command(after_help = "Examples:\n  labd start ray-worker-0")]
    Start(Service),
    /// Stop a service and keep it stopped
    #[command(after_help = "Examples:\n  labd stop ray-worker-0    # until `labd start ray-worker-0`")]
    Stop(Service),
    /// Stop a service gracefully and start it again
    #[command(after_help = "Examples:\n  labd restart jupyter")]
    Restart(Service),
    /// Show the GPUs, and release a quarantined one
    #[command(
        subcommand,
        after_help = "Examples:\n  labd gpu list\n  labd gpu release ray-worker-3\n  labd gpu faults          # what labd does about which fault, and what you must do\n  dmesg | labd gpu faults --explain\n  labd gpu drill SIM-0 xid-79    # only with simulated GPUs"
    )]
    Gpu(Gpu),
    /// Make the daemon read labd.toml again; a broken one is refused
    #[command(after_help = "Examples:\n  labd config check && labd reload")]
    Reload,
    /// Recreate now the containers that wait for changed settings, even while jobs run in them
    #[command(after_help = "Examples:\n  labd plan --diff\n  labd apply")]
    Apply,
    /// Show the plan that follows from labd.toml and this machine
    #[command(after_help = "Examples:\n  labd plan\n  labd plan --diff\n  labd plan --simulate-gpus 4 --json")]
    Plan(Plan),
    /// Log in to the page: print a link that works once
    #[command(
        after_help = "Examples:\n  labd open\n\nThe link is good for 10 min. Over SSH, forward the page's port: ssh -L 8600:localhost:8600 HOST"
    )]
    Open(Open),
    /// Say who may log in to the page
    #[command(
        subcommand,
        after_help = "Examples:\n  labd user add anna --role viewer\n  labd user list\n  labd user passwd anna <password.txt\n  labd user remove anna    # and end its sessions"
    )]
    User(User),
    /// Show who is told what happens to the lab, and send a test message
    #[command(
        subcommand,
        after_help = "Examples:\n  labd notify list\n  labd notify test        # every target of labd.toml\n  labd notify test ops\n\nExits 1 when a target was not told. Of addresses and secrets nothing is shown."
    )]
    Notify(Notify),
    /// Show the users, passwords and tokens for logging in to the services
    #[command(
        after_help = "Examples:\n  sudo labd credentials\n  export RAY_AUTH_TOKEN=$(sudo labd credentials --json | jq -r '.[0].secret')"
    )]
    Credentials(Json),
    /// List, build, pull or prune the images
    #[command(
        subcommand,
        after_help = "Examples:\n  labd images list\n  labd images build ray\n  labd images prune    # those of earlier settings"
    )]
    Images(Images),
    /// Check or show the configuration
    #[command(subcommand, after_help = "Examples:\n  labd config check\n  labd config check ./new.toml")]
    Config(Config),
    /// Check everything that may be wrong with this machine, and show how to fix it
    #[command(
        after_help = "Examples:\n  sudo labd doctor\n  labd doctor --json | jq '.checks[] | select(.verdict == \"fail\")'\n\nNeeds no daemon and changes nothing. Each finding comes with the commands that fix it, for a root shell.\nExits 1 when something failed; a warning is not a failure."
    )]
    Doctor(Json),
    /// Install this executable, its systemd unit and a commented labd.toml, and start labd
    #[command(
        after_help = "Examples:\n  sudo ./labd install\n  sudo ./labd install --no-start\n  ./labd install --root ./package    # files only\n\nA second time it says `unchanged`. An upgrade restarts the daemon; containers keep running.\nA labd.toml that is there stays as it is."
    )]
    Install(Install),
    /// Remove what `labd install` installed; data, labd.toml, volumes and images are kept
    #[command(after_help = "Examples:\n  sudo labd down && sudo labd uninstall")]
    Uninstall(Uninstall),
    /// Run the daemon in the foreground; systemd does this
    #[command(
        after_help = "Examples:\n  labd run\n  labd run --simulate-gpus 2\n\nSIGHUP reads labd.toml again. SIGTERM ends the daemon and leaves every container running."
    )]
    Run(Run),
    /// Print what a source says of the GPUs, a line a second; the daemon runs this
    #[command(subcommand, hide = true, after_help = "Examples:\n  labd probe kernel </dev/null    # once")]
    Probe(Probe),
    /// Print the version
    #[command(after_help = "Examples:\n  labd version --json")]
    Version(Json),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  labd completions bash >/etc/bash_completion.d/labd")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page
    #[command(after_help = "Examples:\n  labd man | man -l -")]
    Man,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Run {
    /// Simulate N GPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=16))]
    pub(super) simulate_gpus: Option<u32>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum Probe {
    /// The kernel's own files on AMD's GPUs
    Kernel,
    /// NVIDIA's command, where its library cannot be asked
    NvidiaSmi,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Up {
    #[command(flatten)]
    pub(super) run: Run,
    /// Longest wait in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub(super) timeout: u64,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Down {
    /// Longest wait in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(super) timeout: u64,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Status {
    /// Print the snapshot
    #[arg(long, conflicts_with = "watch")]
    pub(super) json: bool,
    /// Keep showing the status
    #[arg(long, short)]
    pub(super) watch: bool,
}

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Jobs {
    /// One job, by the id of any of its attempts; all when absent
    pub(super) id: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print the job's training curve as CSV
    #[arg(long, requires = "id", conflicts_with = "json")]
    pub(super) csv: bool,
    #[command(subcommand)]
    pub(super) command: Option<JobsCommand>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Usage {
    /// Number of days, today included
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..=400))]
    pub(super) days: u32,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print CSV, a line for each day, job, user and GPU
    #[arg(long, conflicts_with = "json")]
    pub(super) csv: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum JobsCommand {
    /// Stop a job for good, whichever of its attempts runs
    Stop {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Clone, Args)]
pub(super) struct Logs {
    /// Name of the service, such as `ray-head`
    pub(super) service: String,
    /// Keep printing new lines
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Number of last lines to print
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 200)]
    pub(super) tail: usize,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Events {
    /// Keep printing new events
    #[arg(long, short)]
    pub(super) follow: bool,
    /// One JSON object per line
    #[arg(long)]
    pub(super) json: bool,
    /// Only events of this service
    #[arg(long, value_name = "NAME")]
    pub(super) service: Option<String>,
    /// Number of last events to print
    #[arg(short = 'n', long = "last", value_name = "COUNT", default_value_t = 50)]
    pub(super) last: usize,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Service {
    /// Name of the service, such as `ray-worker-0`
    pub(super) service: String,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Open {
    /// Print the link and nothing else
    #[arg(long)]
    pub(super) print: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum User {
    /// Add an account; the password is asked for, or read from the standard input
    Add {
        /// Name to log in with
        name: String,
        /// What it may do: look, or everything
        #[arg(long, default_value = "viewer")]
        role: Role,
    },
    /// List the accounts
    List(Json),
    /// Give an account another password, and end its sessions
    Passwd {
        /// Its name
        name: String,
    },
    /// Change what an account may do
    Role {
        /// Its name
        name: String,
        /// The new role
        role: Role,
    },
    /// Remove an account, and end its sessions
    Remove {
        /// Its name
        name: String,
    },
    /// List who is logged in
    Sessions(Json),
    /// End a session
    End {
        /// Its id, as `labd user sessions` shows it
        session: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Notify {
    /// List the targets, what they are told of, and what they were not told yet
    List(Json),
    /// Send a test message to one target, or to all
    Test {
        /// Its name
        name: Option<String>,
        #[command(flatten)]
        json: Json,
    },
}

impl ValueEnum for Role {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Viewer, Self::Admin]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Viewer => "Look",
            Self::Admin => "Everything but what needs the machine",
        };
        Some(PossibleValue::new(self.as_str()).help(help))
    }
}

#[derive(Debug, Clone, Args)]
pub(super) struct Plan {
    /// Show which containers would be recreated, when and why
    #[arg(long)]
    pub(super) diff: bool,
    #[command(flatten)]
    pub(super) run: Run,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Install {
    /// Install below this folder, for packaging: files only, without telling systemd
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Do not start or restart the daemon
    #[arg(long)]
    pub(super) no_start: bool,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Uninstall {
    /// Remove from below this folder: files only, without telling systemd
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Json {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Gpu {
    /// List the GPUs, their readings and their faults
    List(Json),
    /// Put a quarantined GPU back to work, or forget one that is gone for good
    Release {
        /// Its id, the beginning of it, or its worker, such as `ray-worker-3`
        gpu: String,
    },
    /// List the faults, or explain kernel log lines that somebody sends
    #[command(
        after_help = "Examples:\n  labd gpu faults\n  labd gpu faults --explain 'NVRM: Xid (PCI:0000:05:00): 79, pid=1234'\n  dmesg | labd gpu faults --explain\n  journalctl -k -b | labd gpu faults --explain --json | jq 'select(.code)'\n\nNeeds no daemon, and no GPU: paste what a colleague sends."
    )]
    Faults(Faults),
    /// Give a simulated GPU a fault, to see what happens
    Drill {
        /// Its id or its worker
        gpu: String,
        /// The fault, such as `xid-79`
        fault: String,
    },
}

#[derive(Debug, Clone, Args)]
pub(super) struct Faults {
    /// Explain kernel log lines, given here or by the standard input
    #[arg(long)]
    pub(super) explain: bool,
    /// Lines, as `dmesg`, the journal or `/dev/kmsg` has them
    #[arg(value_name = "LINE", requires = "explain")]
    pub(super) lines: Vec<String>,
    /// Print JSON; with --explain one object per line, null where unknown
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Images {
    /// List the images and where they come from
    List(Json),
    /// Build images now, and rebuild present ones
    Build(ImageNames),
    /// Pull images that labd.toml names by reference
    Pull(ImageNames),
    /// Remove images that labd built for earlier settings
    #[command(
        after_help = "Examples:\n  labd images prune\n  labd images prune --json | jq '.removed[].reference'\n\nKept are what labd.toml and a running daemon want, and what any container uses, also a stopped one.\nAnother lab on this machine whose containers are removed builds its images again."
    )]
    Prune(Json),
}

#[derive(Debug, Clone, Args)]
pub(super) struct ImageNames {
    /// Images: ray, minio, prometheus, grafana; all that apply when none is named
    #[arg(value_parser = image_name)]
    pub(super) names: Vec<ImageName>,
}

fn image_name(text: &str) -> Result<ImageName, String> {
    ImageName::ALL.into_iter().find(|n| n.as_str() == text).ok_or_else(|| {
        let known: Vec<&str> = ImageName::ALL.iter().map(|n| n.as_str()).collect();
        format!("there are: {}", known.join(", "))
    })
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Check a file, and name the line that is wrong
    Check {
        /// The file; --config when absent
        file: Option<PathBuf>,
    },
    /// Print the configuration in use, defaults included
    Show(Json),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn it_is_consistent_and_every_command_has_an_example() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:") || command.get_name() == "help", "{}", command.get_name());
        }
    }
}
