//! Firewall rule of the host that keeps other hosts out of the lab's subnet.
//!
//! Engines before 28 publish a port on loopback by a service that other hosts cannot reach, and leave the container's own
//! address open: whoever is on the same network and sets a route to the lab's subnet speaks to every port in it, published or
//! not. The rule drops what comes to the subnet from anywhere but the lab's own bridge; what the host itself sends does not
//! pass there. It stands in the `raw` table, before anything is translated, so ports published for others work as before.
//!
//! The commands to be run are decided from what the firewall lists, pure; running them has no opinion.

use std::{process::Stdio, time::Duration};

use tokio::{process::Command, time::Instant};

use crate::engine::docker::{DockerEngine, LabNetwork};

/// First version of the engine whose own rules do this.
pub(crate) const ENGINE_DOES_IT: u32 = 28;

/// Time between two checks while the rule is there: others reload the firewall and do not know of it.
const CALM: Duration = Duration::from_secs(20);
/// Time between two checks while the lab's network does not exist yet.
const EAGER: Duration = Duration::from_secs(1);
/// Longest wait for the firewall's program, which others may be using.
const PATIENCE: Duration = Duration::from_secs(10);
/// Paths of the program. A daemon's path may lack the second.
const PROGRAMS: [&str; 3] = ["iptables", "/usr/sbin/iptables", "/sbin/iptables"];

/// Whether labd looks after the rule: for an engine before 28 that runs as root, on networks of the host.
pub(crate) fn needed(engine_version: &str, rootless: bool) -> bool {
    let major: Option<u32> = engine_version.split('.').next().and_then(|major| major.parse().ok());
    !rootless && major.is_none_or(|major| major < ENGINE_DOES_IT)
}

/// Comment that marks a lab's rules.
fn mark(lab: &str) -> String {
    format!("labd:{lab}")
}

/// The rule, as the firewall's program takes it.
fn rule(lab: &str, network: &LabNetwork) -> Vec<String> {
    ["-d", &network.subnet, "!", "-i", &network.bridge, "-m", "comment", "--comment", &mark(lab), "-j", "DROP"]
        .map(str::to_owned)
        .into()
}

/// Commands to be run, given the rules that are listed (`iptables -t raw -S PREROUTING`) and the lab's network, if it
/// exists.
fn steps(listed: &str, lab: &str, network: Option<&LabNetwork>) -> Vec<Vec<String>> {
    let wanted = network.map(|network| rule(lab, network));
    let mark = mark(lab);
    let ours: Vec<Vec<String>> = listed
        .lines()
        .map(|line| line.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect::<Vec<_>>())
        .filter(|words| words.contains(&mark) && words.first().is_some_and(|w| w == "-A"))
        .map(|words| words[2..].to_vec())
        .collect();
    let put = |verb: &str, rule: &[String]| {
        [verb.to_owned(), "PREROUTING".to_owned()].into_iter().chain(rule.iter().cloned()).collect::<Vec<_>>()
    };
    let mut steps = Vec::new();
    // The new one first: there is no moment without.
    if let Some(wanted) = wanted.as_ref().filter(|wanted| !ours.contains(wanted)) {
        steps.push(put("-I", wanted));
    }
    steps.extend(ours.iter().filter(|rule| Some(*rule) != wanted.as_ref()).map(|rule| put("-D", rule)));
    steps
}

/// Whether the rules that are listed keep others out of the network.
pub(crate) fn stands(listed: &str, lab: &str, network: &LabNetwork) -> bool {
    steps(listed, lab, Some(network)).is_empty()
}

/// Rules of the table; the error says in one line why there are none to be seen.
pub(crate) async fn listed() -> Result<String, String> {
    iptables(&["-S".to_owned(), "PREROUTING".to_owned()]).await
}

async fn iptables(args: &[String]) -> Result<String, String> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.args(["-w", "5", "-t", "raw"]).args(args).stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(PATIENCE, command.output()).await {
            Err(_) => return Err(format!("iptables does not answer within {} s", PATIENCE.as_secs())),
            // Not there: perhaps at the next place.
            Ok(Err(_)) => {}
            Ok(Ok(done)) if done.status.success() => return Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
            Ok(Ok(done)) => {
                let said = String::from_utf8_lossy(&done.stderr).into_owned();
                return Err(said.lines().next().unwrap_or("iptables failed without a word").to_owned());
            }
        }
    }
    Err("there is no iptables on this machine".to_owned())
}

/// Brings the firewall into the wanted state. The error is one line.
async fn put_up(lab: &str, network: Option<&LabNetwork>) -> Result<(), String> {
    for step in steps(&listed().await?, lab, network) {
        iptables(&step).await?;
    }
    Ok(())
}

/// Removes the lab's rules, once the lab is down.
pub(crate) async fn take_down(lab: &str) {
    // Where there is no firewall there is no rule either.
    let _ = put_up(lab, None).await;
}

/// Looks after the rule for as long as labd runs. Trouble is said once, until it changes.
pub(crate) async fn keep(engine: DockerEngine) {
    let mut told = String::new();
    // Whether the rule is needed, as the engine said when it was last asked, and when that was.
    let mut asked: Option<(Instant, bool)> = None;
    loop {
        // Asked no more often while the network is missing, which is looked for each second.
        if asked.is_none_or(|(at, _)| at.elapsed() >= CALM) {
            asked = engine.check().await.ok().map(|info| (Instant::now(), needed(&info.version, info.rootless)));
        }
        let network = match asked {
            Some((_, false)) => {
                // One that was upgraded under a running labd.
                take_down(engine.lab()).await;
                tokio::time::sleep(CALM).await;
                continue;
            }
            Some((_, true)) => engine.lab_network().await.unwrap_or_default(),
            None => None,
        };
        let done = match &network {
            Some(network) => put_up(engine.lab(), Some(network)).await,
            None => Ok(()),
        };
        let trouble = done.err().unwrap_or_default();
        if trouble != told {
            if !trouble.is_empty() {
                tracing::warn!("other hosts can reach the lab's subnet: {trouble}; `labd doctor` says what helps");
            }
            told = trouble;
        }
        tokio::time::sleep(if network.is_some() { CALM } else { EAGER }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(bridge: &str) -> LabNetwork {
        LabNetwork { subnet: "198.18.100.0/24".into(), bridge: bridge.into() }
    }

    const OTHERS: &str = "-P PREROUTING ACCEPT\n-A PREROUTING -d 198.18.101.0/24 ! -i br-2 -m comment --comment \
                          \"labd:other\" -j DROP\n-A PREROUTING -i eth0 -j ACCEPT\n";
    const OURS: &str = "-A PREROUTING -d 198.18.100.0/24 ! -i br-1 -m comment --comment \"labd:lab\" -j DROP\n";

    #[test]
    fn a_rule_is_put_up_once_and_follows_the_network() {
        let said = |listed: &str, network: Option<&LabNetwork>| {
            steps(listed, "lab", network).iter().map(|step| step.join(" ")).collect::<Vec<_>>()
        };
        let rule = |bridge: &str| format!("-d 198.18.100.0/24 ! -i {bridge} -m comment --comment labd:lab -j DROP");
        let (one, both) = (network("br-1"), format!("{OTHERS}{OURS}"));
        assert_eq!(said(OTHERS, Some(&one)), [format!("-I PREROUTING {}", rule("br-1"))]);
        assert!(said(&both, Some(&one)).is_empty() && stands(&both, "lab", &one));
        // A network that was recreated has another bridge.
        let moved = [format!("-I PREROUTING {}", rule("br-9")), format!("-D PREROUTING {}", rule("br-1"))];
        assert_eq!(said(&both, Some(&network("br-9"))), moved);
        assert_eq!(said(&both, None), [format!("-D PREROUTING {}", rule("br-1"))], "and nobody else's");
        assert!(said(OTHERS, None).is_empty());
    }

    #[test]
    fn engines_from_28_on_do_it_themselves() {
        assert!(needed("20.10.24+dfsg1", false) && needed("27.5.1", false) && needed("", false));
        assert!(!needed("28.0.0", false) && !needed("29.1", false) && !needed("20.10.24", true));
    }
}
