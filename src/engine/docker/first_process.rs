//! End of a container as the kernel reports it: the engine says `die` only after it has taken the network and the file
//! system down, some 0.4 s later.

use std::future::pending;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::unix::pipe::Receiver;

use crate::engine::ObservedContainer;

/// Waits until the first process of a container has ended: the kernel has killed all others by then. Waits forever
/// where its number means something else here, as in a labd that runs in a container itself, and where the kernel
/// (before 5.3) or its rules do not let a process be watched.
pub(super) async fn ended(container: &ObservedContainer) {
    let watched = async {
        let pid = container.pid?;
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
        // Read once the handle is there, which no later process of that number can get.
        let group = tokio::fs::read_to_string(format!("/proc/{pid}/cgroup")).await.ok()?;
        if container.id.is_empty() || !group.contains(&container.id) {
            return None;
        }
        // Nothing is read of it: tokio's pipe is what takes a descriptor to wait for without `unsafe`.
        Receiver::from_owned_fd_unchecked(handle).ok()?.readable().await.ok()
    };
    if watched.await.is_none() {
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, process::Stdio, time::Duration};

    use super::*;
    use crate::{engine::RunState, time::Timestamp};

    fn container(id: &str, pid: Option<i32>) -> ObservedContainer {
        ObservedContainer {
            id: id.to_owned(),
            hard_hash: String::new(),
            spec_hash: String::new(),
            run: RunState::Running { started_at: Timestamp::from_millis(1) },
            last_end: None,
            pid,
            ports: BTreeMap::new(),
            address: None,
        }
    }

    #[tokio::test]
    async fn a_process_is_watched_only_where_it_is_the_containers() {
        let mut child = tokio::process::Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat");
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        // Every process is in a control group, whose path begins with a slash; none has this id in it.
        let watch = |container: ObservedContainer| tokio::spawn(async move { ended(&container).await });
        let mut its_own = watch(container("/", pid));
        let others = [("0123456789abcdef0123", pid), ("", pid), ("/", None)].map(|(id, pid)| watch(container(id, pid)));
        let soon = Duration::from_millis(50);
        // Long enough for it to have looked whose process it is.
        assert!(tokio::time::timeout(Duration::from_secs(2), &mut its_own).await.is_err(), "it lives");
        child.kill().await.expect("killed");
        tokio::time::timeout(Duration::from_secs(10), its_own).await.expect("in time").expect("it has ended");
        for other in others {
            assert!(tokio::time::timeout(soon, other).await.is_err(), "it is another's");
        }
    }
}
