//! System calls that a container may make, as a profile that the engine hands to the kernel. Pure.
//!
//! In place of the engine's own profile for one reason: a container's root is the host's, and what it writes to a folder of
//! the host stays there. A set-user-id file in such a folder makes every local user root, whatever the container itself may
//! do with it. No mount option helps here, as engines have none for `nosuid` and the host reaches the folder by its own path,
//! also while labd does not run. So no container can make such a file in the first place: no call that sets a mode may set
//! these two bits, calls whose arguments the kernel cannot look at from here do not exist, and file capabilities, the other
//! way to the same, need a capability that no container has.
//!
//! Everything else is what Linux 6.1 has, less what administers a machine. A call that is newer is refused.

use serde_json::{Value, json};

/// Mode bits for set-user-id and set-group-id.
const SET_ID: u64 = 0o6000;
/// Flags `O_CREAT` and `O_TMPFILE`: with neither, `open` has no mode and its place holds anything.
const CREATES: u64 = 0o100 | 0o20_000_000;
/// Flags for every kind of namespace that `clone` makes: in one of its own, a process is root of much more.
const NAMESPACES: u64 = 0x7e02_0000;
/// Error `ENOSYS`: programs then do it the older way.
const MISSING: u32 = 38;
/// Socket family `AF_ALG`: families below it are allowed, and SMC for RDMA. vsock, which leads to a hypervisor, is not.
const FAMILIES: u64 = 38;
const SMC: u64 = 43;
/// Values of `personality` that change nothing of a program's safety.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const ALLOWED: &str = "\
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chown clock_adjtime \
    clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range dup dup2 dup3 epoll_create \
    epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group \
    faccessat faccessat2 fadvise64 fallocate fchdir fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork \
    fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake \
    futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups \
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit \
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch \
    inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit \
    ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown \
    lgetxattr link linkat listen listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise \
    map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mlock mlock2 mlockall mmap \
    modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl \
    msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat pause pidfd_open pidfd_send_signal \
    pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_vm_readv \
    process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom \
    recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler \
    sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list \
    set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid \
    setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget \
    shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx symlink symlinkat sync \
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat \
    utime utimensat utimes vfork vmsplice wait4 waitid write writev";

/// Calls that make or change a file, and the argument that is the mode.
const MODES: [(&str, u32); 7] =
    [("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("creat", 1), ("mknod", 1), ("mknodat", 2)];
/// Calls that may make a file, and the argument that is the flags; the mode is next to them.
const OPENS: [(&str, u32); 2] = [("open", 1), ("openat", 2)];

/// Profile in the notation that engines know.
pub(super) fn profile() -> String {
    let mut rules = vec![json!({"names": ALLOWED.split_whitespace().collect::<Vec<_>>(), "action": ALLOW})];
    for (name, mode) in MODES {
        rules.push(allow(name, &without(mode, SET_ID)));
    }
    for (name, flags) in OPENS {
        rules.push(allow(name, &without(flags, CREATES)));
        rules.push(allow(name, &without(flags + 1, SET_ID)));
    }
    rules.push(allow("clone", &without(0, NAMESPACES)));
    rules.push(allow("socket", &compare(0, "SCMP_CMP_LT", FAMILIES, 0)));
    rules.push(allow("socket", &compare(0, "SCMP_CMP_EQ", SMC, 0)));
    rules.extend(PERSONALITIES.map(|value| allow("personality", &compare(0, "SCMP_CMP_EQ", value, 0))));
    rules.push(json!({"names": ["clone3", "openat2"], "action": REFUSE, "errnoRet": MISSING}));
    let profile = json!({
        "defaultAction": REFUSE,
        "archMap": [
            // Without their 32-bit kinds, whose calls have other numbers.
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    });
    profile.to_string()
}

const ALLOW: &str = "SCMP_ACT_ALLOW";
const REFUSE: &str = "SCMP_ACT_ERRNO";

fn allow(name: &str, argument: &Value) -> Value {
    json!({"names": [name], "action": ALLOW, "args": [argument]})
}

/// Condition that an argument has none of these bits.
fn without(index: u32, bits: u64) -> Value {
    compare(index, "SCMP_CMP_MASKED_EQ", bits, 0)
}

fn compare(index: u32, how: &str, value: u64, with: u64) -> Value {
    json!({"index": index, "value": value, "valueTwo": with, "op": how})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::SYSCALLS;

    /// Whether one of the profile's rules lets a call through.
    fn allowed(name: &str, args: &[u64]) -> bool {
        let profile: Value = serde_json::from_str(&profile()).expect("JSON");
        profile["syscalls"].as_array().expect("rules").iter().any(|rule| {
            rule["action"] == ALLOW
                && rule["names"].as_array().expect("names").contains(&json!(name))
                && rule["args"].as_array().is_none_or(|all| {
                    all.iter().all(|a| {
                        let of = |key: &str| a[key].as_u64().expect("a number");
                        let given = args.get(of("index") as usize).copied().unwrap_or(0);
                        match a["op"].as_str().expect("a word") {
                            "SCMP_CMP_MASKED_EQ" => given & of("value") == of("valueTwo"),
                            "SCMP_CMP_EQ" => given == of("value"),
                            "SCMP_CMP_LT" => given < of("value"),
                            other => panic!("{other}"),
                        }
                    })
                })
        })
    }

    #[test]
    fn no_call_makes_a_set_id_file() {
        const CREAT: u64 = 0o100;
        const TMPFILE: u64 = 0o20_200_000;
        for bits in [0o4000, 0o2000, 0o6000] {
            let mode = 0o755 | bits;
            for (name, args) in [
                ("chmod", vec![0, mode]),
                ("fchmod", vec![3, mode]),
                ("fchmodat", vec![3, 0, mode]),
                ("fchmodat2", vec![3, 0, mode, 0]),
                ("creat", vec![0, mode]),
                ("mknod", vec![0, 0o100_000 | mode]),
                ("mknodat", vec![3, 0, 0o100_000 | mode]),
                ("open", vec![0, CREAT | 1, mode]),
                ("open", vec![0, TMPFILE | 2, mode]),
                ("openat", vec![3, 0, CREAT | 1, mode]),
                ("openat", vec![3, 0, TMPFILE | 2, mode]),
            ] {
                assert!(!allowed(name, &args), "{name} with {mode:o}");
                let plain: Vec<u64> = args.iter().map(|a| a & !0o6000).collect();
                assert!(allowed(name, &plain), "{name} with {:o}", mode & 0o777);
            }
        }
        // What stands in the mode's place without a new file is nobody's business.
        assert!(allowed("open", &[0, 0, 0o7777]) && allowed("openat", &[3, 0, 2, 0o7777]));
        // Their arguments are in memory, where nobody can hold them to what was looked at.
        for name in ["openat2", "io_uring_setup", "clone3"] {
            assert!(!allowed(name, &[]), "{name}");
        }
    }

    #[test]
    fn a_container_neither_administers_the_machine_nor_has_namespaces() {
        for name in
            ["mount", "bpf", "keyctl", "unshare", "setns", "perf_event_open", "open_by_handle_at", "init_module"]
        {
            assert!(!allowed(name, &[]), "{name}");
        }
        assert!(allowed("clone", &[0x0001_0f00]) && !allowed("clone", &[0x1000_0000]));
        assert!(allowed("socket", &[2]) && !allowed("socket", &[40]) && !allowed("socket", &[38]));
        for name in ["read", "execve", "ptrace", "futex", "setxattr", "mkdir", "memfd_create", "statx", "rseq"] {
            assert!(allowed(name, &[]), "{name}");
        }
    }

    /// Checks that a changed profile has another version, since it makes another container.
    #[test]
    fn a_changed_profile_has_another_version() {
        let is = &crate::secret::hex(&<sha2::Sha256 as sha2::Digest>::digest(profile().as_bytes()))[..16];
        assert_eq!((SYSCALLS, is), (1, "efb2de60c09dae05"));
    }
}
