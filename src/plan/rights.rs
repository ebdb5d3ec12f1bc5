//! What each container may do beyond its own files and processes: as little as it needs.
//!
//! | container | capabilities | processes | own files |
//! |---|---|---|---|
//! | Ray's nodes, JupyterLab | `CHOWN DAC_OVERRIDE FOWNER KILL SETGID SETUID` | 16,384 | written |
//! | MinIO | none | 4,096 | read-only |
//! | Prometheus | `DAC_OVERRIDE` | 2,048 | written |
//! | Grafana | none | 2,048 | written |
//! | front door | none | 64 | read-only |
//!
//! None gets more rights by running a set-id file (`no-new-privileges`), none can make one, and none has raw sockets, device
//! nodes or file capabilities.

use super::spec::{Kind, Rights};

/// Version of the system calls that containers may make; another one recreates them.
pub(crate) const SYSCALLS: u32 = 1;

/// For what people run: `apt` and `pip` as root, which give files away and become other users.
const PEOPLE: &[&str] = &["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"];
/// For an image of somebody else's, which may prepare its data as root and then become another user.
const FOREIGN: &[&str] = &["CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"];

/// The rights of a container. `foreign` is whether its image is not labd's own.
pub(super) fn of(kind: Kind, foreign: bool) -> Rights {
    let rights = |capabilities: &[&str], pids, read_only_root| Rights {
        capabilities: capabilities.iter().map(|&c| c.to_owned()).collect(),
        pids,
        read_only_root,
        syscalls: SYSCALLS,
    };
    match kind {
        // A worker has dozens of processes, each with a thread per core for each library that computes. The bound is for
        // what forks without end: half of what a small machine has in all.
        Kind::RayHead | Kind::RayDriver | Kind::RayWorker | Kind::Jupyter => rights(PEOPLE, 16_384, false),
        Kind::Minio if foreign => rights(FOREIGN, 4_096, false),
        // A thread per request that waits for the disk.
        Kind::Minio => rights(&[], 4_096, true),
        Kind::Prometheus if foreign => rights(FOREIGN, 2_048, false),
        // Its volume belongs to the image's own user, its token to root. Files are put into it, so it is no read-only one.
        Kind::Prometheus => rights(&["DAC_OVERRIDE"], 2_048, false),
        // The image's user is not root.
        Kind::Grafana => rights(&[], 2_048, false),
        Kind::FrontDoor => rights(&[], 64, true),
    }
}
