//! Faults of a simulated lab.

use std::time::Duration;

use super::world::{Container, Dice, Power, Run, World, now};
use crate::{snapshot::GpuState, time::simulated};

/// Fault, at the moment it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Crash(String, i64),
    OutOfMemory(String),
    /// SIGSTOP; with a time, SIGCONT after it.
    Freeze(String, Option<Duration>),
    DockerStop(String),
    DockerStart(String),
    DockerKill(String, i32),
    DockerRestart(String),
    DockerRemove(String),
    /// `docker pause`, with the time until it is unpaused.
    DockerPause(String, Duration),
    /// Somebody calls a living node dead; with `true` its container goes on.
    Unregister(String, bool),
    /// `systemctl daemon-reload`: the attached GPU cannot be opened any more.
    GpuGone(String),
    /// A worker's GPU is quarantined, until a person releases it.
    Quarantine(String, Duration),
    /// A worker's GPU is missing for a while.
    GpuMissing(String, Duration),
    /// The driver healed a worker's GPU: what was on it is gone, though its processes go on.
    GpuHealed(String),
    /// labd starts anew, as after a boot, and a worker's GPU is found so much later; for half of that time labd does not
    /// know which GPUs there are.
    GpuLate(String, Duration),
    /// The token is wrong from now on: the node is out of the cluster and never joins again.
    WrongToken(String),
    /// The head's state is gone when it comes back.
    HeadWithoutState,
    StartFails(String, u32),
    CreateFails(String, u32),
    /// A worker trains for so long.
    Works(String, Duration),
    /// A create that the engine carries out and does not answer.
    CreateLost(String, u32),
    StopFails(String, u32),
    RemoveFails(String, u32),
    /// `docker network prune`, or somebody's `docker network rm`: nothing is started without it.
    NetworkGone,
    /// A container of somebody else takes the name, where there is none; goes after a while.
    Foreign(String, Duration),
    /// The engine ends with its containers, and is back after a while.
    EngineRestart(Duration),
    /// The engine ends, its containers go on.
    LiveRestore(Duration),
    /// The engine accepts calls and does not answer.
    EngineMute(Duration),
    SlowCalls(Duration),
    Busy(Duration),
    EventsLost(Duration),
    /// labd is killed and started again after a while.
    KillLabd(Duration),
    /// Everything ends at once. The fields say whether containers are still there afterwards, and when engine and labd
    /// are back.
    PowerCut(bool, Duration, Duration),
    LabdStop(String),
    LabdStart(String),
    LabdRestart(String),
    /// `labd.toml` changes.
    Reload,
    /// Somebody, or the time service, sets the wall clock, by so many milliseconds.
    ClockSet(i64),
}

impl Fault {
    /// Random fault.
    pub(super) fn any(dice: &mut Dice, services: &[String]) -> Self {
        let s = dice.pick(services);
        let node = dice.pick(&["ray-driver", "ray-worker-0", "ray-worker-1"]).to_owned();
        let worker = dice.pick(&["ray-worker-0", "ray-worker-1"]).to_owned();
        let long = dice.ms(1_000, 40_000);
        let short = dice.ms(200, 8_000);
        match dice.between(0, 44) {
            0..=4 => Self::Crash(s, dice.pick(&[137, 1, 0, 139])),
            5 => Self::OutOfMemory(s),
            6 if s.starts_with("ray-worker-") => Self::GpuGone(s),
            6 | 7 => Self::Freeze(s, None),
            8 => Self::Freeze(s, Some(long)),
            9 | 10 => Self::DockerStop(s),
            11 => Self::DockerStart(s),
            12 => Self::DockerKill(s, dice.pick(&[9, 15, 1])),
            13 => Self::DockerRestart(s),
            14 => Self::DockerRemove(s),
            15 => Self::DockerPause(s, long),
            16 => Self::Unregister(node, dice.one_in(2)),
            17 => Self::WrongToken(node),
            18 => Self::HeadWithoutState,
            19 => Self::StartFails(s, dice.between(1, 4) as u32),
            20 => Self::CreateFails(s, dice.between(1, 4) as u32),
            21 => Self::Foreign(s, long),
            22 => Self::EngineRestart(long),
            23 => Self::LiveRestore(long),
            24 => Self::EngineMute(long),
            25 => Self::SlowCalls(long),
            26 => Self::Busy(long),
            27 => Self::EventsLost(long),
            28 => Self::KillLabd(short),
            29 => Self::PowerCut(dice.one_in(2), short, dice.ms(100, 9_000)),
            30 => Self::LabdStop(s),
            31 => Self::LabdStart(s),
            32 => Self::LabdRestart(s),
            33 => Self::StopFails(s, dice.between(1, 5) as u32),
            34 => Self::RemoveFails(s, dice.between(1, 5) as u32),
            35 => Self::NetworkGone,
            36 => Self::CreateLost(s, dice.between(1, 4) as u32),
            37 | 38 => Self::Works(worker, long * 3),
            39 => Self::Quarantine(worker, long * 2),
            40 => Self::GpuMissing(worker, long),
            41 => Self::GpuHealed(worker),
            42 => Self::GpuLate(worker, long),
            _ => Self::Reload,
        }
    }

    /// Random step of the clock: an hour either way, or a little more than what is awaited here and there.
    pub(super) fn clock(dice: &mut Dice) -> Self {
        Self::ClockSet(dice.pick(&[3_600_000, -3_600_000, 3_600_000, -3_600_000, 40_000, -40_000]))
    }

    /// Applies what happens to the world at once; the rest is the caller's.
    pub(super) fn strike(&self, w: &mut World) {
        let now = now();
        match self {
            Self::Crash(s, code) => w.exit(s, *code, false),
            Self::OutOfMemory(s) => w.exit(s, 137, true),
            Self::Freeze(s, _) => {
                if let Some(c) = w.of_mut(s).filter(|c| c.running().is_some()) {
                    c.frozen = true;
                }
            }
            Self::DockerStop(s) => {
                w.touched.insert(s.clone(), now);
                w.begin_stop(s, true);
            }
            Self::DockerStart(s) => {
                if w.of(s).is_some_and(|c| c.ours && matches!(c.run, Run::Exited { .. } | Run::Created)) {
                    w.touched.insert(s.clone(), now);
                    w.held.remove(s);
                    let _ = w.begin_start(s);
                }
            }
            Self::DockerKill(s, signal) => w.signal(s, *signal),
            Self::DockerRestart(s) => {
                w.touched.insert(s.clone(), now);
                w.begin_stop(s, false);
            }
            Self::DockerRemove(s) => w.remove(s),
            Self::DockerPause(s, _) => {
                if let Some(c) = w.of_mut(s).filter(|c| c.running().is_some()) {
                    c.paused = true;
                }
            }
            Self::Unregister(s, lingers) => w.unregister_by_hand(s, *lingers),
            Self::GpuGone(s) => {
                if let Some(c) = w.of_mut(s).filter(|c| c.running().is_some()) {
                    c.blind = true;
                }
            }
            Self::Quarantine(s, _) => w.set_gpu(s, GpuState::Quarantined),
            Self::GpuMissing(s, _) => w.set_gpu(s, GpuState::Missing),
            Self::GpuHealed(s) => w.heal_gpu(s),
            Self::GpuLate(s, d) => {
                w.set_gpu(s, GpuState::Missing);
                w.check_gpus_at(now.plus(*d / 2));
            }
            Self::WrongToken(s) => {
                w.unregister_by_hand(s, true);
                if let Some(c) = w.of_mut(s) {
                    c.deaf = true;
                }
            }
            Self::HeadWithoutState => {
                w.exit("ray-head", 137, false);
                w.lose_cluster();
            }
            Self::StartFails(s, n) => {
                w.start_fails.insert(s.clone(), *n);
            }
            Self::CreateFails(s, n) => {
                w.create_fails.insert(s.clone(), *n);
            }
            Self::StopFails(s, n) => {
                w.stop_fails.insert(s.clone(), *n);
            }
            Self::RemoveFails(s, n) => {
                w.remove_fails.insert(s.clone(), *n);
            }
            Self::Works(s, d) => {
                w.works.insert(s.clone(), (now, now.plus(*d)));
            }
            Self::CreateLost(s, n) => {
                w.create_lost.insert(s.clone(), *n);
            }
            Self::NetworkGone => w.network = None,
            Self::Foreign(s, _) => {
                if w.of(s).is_none()
                    && let Some(spec) = w.plan.service(s).map(|s| s.container.clone())
                {
                    w.add(s, &spec, false);
                    let _ = w.begin_start(s);
                }
            }
            Self::EngineRestart(_) => {
                w.power = Power::PlannedStop;
                let running: Vec<String> =
                    w.containers.iter().filter(|c| c.running().is_some()).map(|c| c.service.clone()).collect();
                for s in running {
                    w.begin_stop(&s, false);
                }
            }
            Self::LiveRestore(_) => w.power_off(),
            Self::EngineMute(_) => w.power = Power::Mute,
            Self::SlowCalls(d) => w.slow_until = now.plus(*d),
            Self::Busy(d) => w.busy_until = now.plus(*d),
            Self::EventsLost(d) => w.deaf_until = now.plus(*d),
            Self::PowerCut(stay, ..) => {
                for s in w.plan.services.iter().map(|s| s.name.clone()).collect::<Vec<_>>() {
                    w.exit(&s, 255, false);
                }
                w.power_off();
                // Said a moment ago, and nobody is left who could have kept it.
                w.held.retain(|_, since| now.since(*since) >= Duration::from_secs(5));
                if !stay {
                    w.containers.retain(|c| !c.ours);
                }
            }
            Self::KillLabd(_) | Self::LabdStop(_) | Self::LabdStart(_) | Self::LabdRestart(_) | Self::Reload => {}
            Self::ClockSet(ms) => {
                w.clock_steps.push(now);
                simulated::set_by(*ms);
            }
        }
    }

    /// End of a fault that ends by itself, and when it comes.
    pub(super) fn relief(&self) -> Option<(Duration, Relief)> {
        match self {
            Self::Freeze(s, Some(d)) => Some((*d, Relief::Thaw(s.clone()))),
            Self::DockerPause(s, d) => Some((*d, Relief::Unpause(s.clone()))),
            Self::DockerRestart(s) => Some((Duration::from_millis(100), Relief::StartWhenStopped(s.clone()))),
            Self::Foreign(s, d) => Some((*d, Relief::RemoveForeign(s.clone()))),
            Self::Quarantine(s, d) | Self::GpuMissing(s, d) | Self::GpuLate(s, d) => {
                Some((*d, Relief::GpuBack(s.clone())))
            }
            Self::EngineRestart(d) => Some((*d, Relief::EngineEnds)),
            Self::LiveRestore(d) | Self::EngineMute(d) | Self::PowerCut(_, d, _) => Some((*d, Relief::EngineOn)),
            _ => None,
        }
    }
}

/// End of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Relief {
    Thaw(String),
    Unpause(String),
    StartWhenStopped(String),
    RemoveForeign(String),
    GpuBack(String),
    /// The engine that was ending is gone, and then back.
    EngineEnds,
    EngineOn,
}

impl Relief {
    /// Takes effect; returns what follows, and after how long.
    pub(super) fn strike(self, w: &mut World) -> Option<(Duration, Self)> {
        match self {
            Self::Thaw(s) => {
                if let Some(c) = w.of_mut(&s) {
                    c.frozen = false;
                }
            }
            Self::Unpause(s) => {
                if let Some(c) = w.of_mut(&s) {
                    c.paused = false;
                }
            }
            Self::StartWhenStopped(s) => {
                if w.of(&s).is_some_and(Container::stopping) {
                    return Some((Duration::from_millis(50), Self::StartWhenStopped(s)));
                }
                if w.power == Power::On {
                    w.held.remove(&s);
                    let _ = w.begin_start(&s);
                }
            }
            Self::RemoveForeign(s) => {
                if w.of(&s).is_some_and(|c| !c.ours) {
                    w.remove(&s);
                }
            }
            Self::GpuBack(s) => w.set_gpu(&s, GpuState::Ok),
            Self::EngineEnds => {
                // What did not end in time is killed.
                let running: Vec<String> =
                    w.containers.iter().filter(|c| c.running().is_some()).map(|c| c.service.clone()).collect();
                for s in running {
                    w.exit(&s, 137, false);
                }
                w.power_off();
                let away = w.dice.ms(300, 20_000);
                return Some((away, Self::EngineOn));
            }
            Self::EngineOn => {
                w.power = Power::On;
                w.say("the engine answers");
            }
        }
        None
    }
}
