//! Reasons for which an AMD GPU runs slower, out of the driver's binary file `gpu_metrics`. Its header tells the layout.
//!
//! Layouts are those of Linux's `drivers/gpu/drm/amd/include/kgd_pp_interface.h`: `gpu_metrics_v1_0` (2020) to `v1_8` (2025-03) and
//! `v1_9` (2025-09), `v2_2` to `v2_4` and `v3_0`. What differs from them in version or length is not read. There are three kinds:
//!
//! * bits of this moment, the same for all chips (`indep_throttle_status`, since 2021-06): Instinct MI100 and MI200, Radeon;
//! * bits of this moment, the chip's own (`throttle_status`): only the Vega 20 (MI50, MI60) still has nothing else. MI300
//!   leaves them 0 in `v1_4` and `v1_5`, and has no others there;
//! * counters of the time spent at each limit: MI300 since `v1_6`, and graphics of a CPU (Strix, Strix Halo) in `v3_0`.
//!   They are compared with those of the look before.
//!
//! Before it fills a table the driver sets all its bits: what is all ones was not reported.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    path::Path,
};

use super::readings;
use crate::{Throttle, files};

/// Largest part of the file that is read. The longest of the fixed layouts has 3872 bytes.
const LONGEST: u64 = 64 << 10;

/// Share of the time, in percent, from which on a counted limit is a reason. AMD's tools call a GPU throttled from 1 % on.
const SHARE_PERCENT: u64 = 1;

/// Bits of `indep_throttle_status` (`SMU_THROTTLER_*_BIT` in `drivers/gpu/drm/amd/pm/swsmu/inc/amdgpu_smu.h`), by the groups that
/// they have there. Left out are those of a CPU's cores (`TEMP_CORE`, `PROCHOT_CPU`), which slow down these and not the GPU, and
/// the group "other" (`PPM`, `FIT`), of which the header does not say what they mean.
const BITS: Bits = Bits {
    // PPT0 to PPT3, SPL, FPPT, SPPT, SPPT_APU; and the limits of current: TDC, EDC, APCC.
    power: 0x00ff_00ff,
    // TEMP_*, VRHOT0, VRHOT1, PROCHOT_GFX.
    thermal: 0xbffd_0000_0000,
};

/// Bit `TEMP_HOTSPOT`. Radeons of RDNA 3 and 4 set it almost always, also when idle at 37 °C (rocm-systems#11781): it counts
/// where the hottest place is at its limit.
const HOTSPOT: u64 = 1 << 36;

/// Bits of Vega 20's `throttle_status` (`THROTTLER_STATUS_*_BIT` in `drivers/gpu/drm/amd/pm/powerplay/inc/smu11_driver_if.h`).
const VEGA20: Bits = Bits {
    // TDC_GFX, TDC_SOC, PPT.
    power: 0x3800,
    // TEMP_EDGE to TEMP_SKIN.
    thermal: 0x07fe,
};

/// PCI device ids of Vega 20, as in `amdgpu_drv.c`. The first kernels with such a table had it for other chips too, with bits of their own.
const VEGA20_IDS: std::ops::RangeInclusive<u64> = 0x66a0..=0x66af;

/// Ids of attributes in `v1_9` (`enum amdgpu_metrics_attr_id`): cycles, then the counters in the order of [`INSTINCT`].
const ATTRIBUTES: [u64; 6] = [9, 10, 11, 12, 13, 14];

/// Counters of MI300, in their order behind the number of cycles: `prochot`, `ppt`, `socket_thm`, `vr_thm`, `hbm_thm`.
const INSTINCT: [Throttle; 5] =
    [Throttle::Thermal, Throttle::PowerCap, Throttle::Thermal, Throttle::Thermal, Throttle::Thermal];

/// Counters of a CPU's graphics, in their order: `prochot`, `spl`, `fppt`, `sppt`, `thm_core`, `thm_gfx`, `thm_soc`. What the heat
/// of the CPU's cores slows down are these.
const APU: [Option<Throttle>; 7] = [
    Some(Throttle::Thermal),
    Some(Throttle::PowerCap),
    Some(Throttle::PowerCap),
    Some(Throttle::PowerCap),
    None,
    Some(Throttle::Thermal),
    Some(Throttle::Thermal),
];

/// Bits that mean the same.
struct Bits {
    power: u64,
    thermal: u64,
}

impl Bits {
    fn reasons(&self, status: u64) -> BTreeSet<Throttle> {
        [(self.power, Throttle::PowerCap), (self.thermal, Throttle::Thermal)]
            .into_iter()
            .filter(|(mask, _)| status & mask != 0)
            .map(|(_, why)| why)
            .collect()
    }
}

/// Place of what is told in a table, from its beginning.
enum Place {
    /// Bits of this moment, the same for all chips.
    Bits(usize),
    /// Bits of this moment, the chip's own.
    ChipBits(usize),
    /// Number of cycles, and behind it the counters of [`INSTINCT`].
    Instinct(usize),
    /// Counters of [`APU`].
    Apu(usize),
    /// Attributes one behind the other, each with its kind.
    Attributes,
}

/// Place in a table of this version and length, header included. Version 1.6 has two: the earlier one holds
/// the loads of the engines and `throttle_status`, too.
fn place(version: (u8, u8), size: usize) -> Option<Place> {
    match (version, size) {
        ((1, 0), 80) => Some(Place::ChipBits(68)),
        ((1, 3), 120) => Some(Place::Bits(112)),
        ((2, 2), 128) | ((2, 3), 152) | ((2, 4), 168) => Some(Place::Bits(120)),
        ((1, 6), 384) => Some(Place::Instinct(104)),
        ((1, 6), 1664) => Some(Place::Instinct(32)),
        ((1, 7), 2208) | ((1, 8), 3872) => Some(Place::Instinct(40)),
        ((1, 9), _) => Some(Place::Attributes),
        ((3, 0), 264) => Some(Place::Apu(228)),
        _ => None,
    }
}

/// Time that was spent at limits since the driver was loaded.
struct Counts {
    /// All of the time, in the same unit; absent where the table does not tell it.
    cycles: Option<u64>,
    /// Time at each limit, in an order that is always the same; absent where it was not reported.
    limits: Vec<(Throttle, Option<u64>)>,
}

impl Counts {
    /// Reasons in the time since `before`. A counter that went back (the GPU was reset, or it is full) says nothing.
    fn reasons_since(&self, before: &Self) -> BTreeSet<Throttle> {
        let grown = |now: Option<u64>, before: Option<u64>| now?.checked_sub(before?);
        let cycles = grown(self.cycles, before.cycles);
        if self.cycles.is_some() && cycles.is_none() {
            return BTreeSet::new();
        }
        let counts = self.limits.iter().zip(&before.limits);
        counts
            .filter(|((_, now), (_, before))| {
                let grown = grown(*now, *before).unwrap_or(0);
                let plausible =
                    cycles.is_none_or(|all| grown <= all && grown.saturating_mul(100) >= all * SHARE_PERCENT);
                grown > 0 && plausible
            })
            .map(|((why, _), _)| *why)
            .collect()
    }
}

/// Content of a table.
enum Told {
    /// Reasons at this moment.
    Now(BTreeSet<Throttle>),
    /// Counters.
    Counted(Counts),
}

/// Counters of the look before, by the GPU's PCI address.
#[derive(Default)]
pub(super) struct Throttling {
    before: BTreeMap<String, Counts>,
}

impl Throttling {
    /// Reasons for which the GPU runs slower now, or did since it was asked before. Asks the GPU: not for one that sleeps.
    pub(super) fn reasons(&mut self, pci: &str, dir: &Path) -> Vec<Throttle> {
        let told = contents(dir).and_then(|table| told(&table, dir));
        let reasons = match told {
            None => {
                self.before.remove(pci);
                BTreeSet::new()
            }
            Some(Told::Now(reasons)) => reasons,
            Some(Told::Counted(now)) => {
                let before = self.before.remove(pci);
                let reasons = before.map(|before| now.reasons_since(&before)).unwrap_or_default();
                self.before.insert(pci.to_owned(), now);
                reasons
            }
        };
        reasons.into_iter().collect()
    }

    /// Forgets the counters of all GPUs but these: what was long ago says nothing about now.
    pub(super) fn keep(&mut self, asked: impl Fn(&str) -> bool) {
        self.before.retain(|pci, _| asked(pci));
    }
}

fn contents(dir: &Path) -> Option<Vec<u8>> {
    let mut table = Vec::new();
    File::open(dir.join("gpu_metrics")).ok()?.take(LONGEST).read_to_end(&mut table).ok()?;
    Some(table)
}

/// Content of a table, of the GPU in this directory.
fn told(table: &[u8], dir: &Path) -> Option<Told> {
    let size = number(table, 0, 2)? as usize;
    let version = (*table.get(2)?, *table.get(3)?);
    let table = table.get(..size)?;
    let reported = |at, width| number(table, at, width).filter(|n| *n != all_ones(width));
    Some(match place(version, size)? {
        Place::Bits(at) => {
            let status = reported(at, 8)?;
            let hot = status & HOTSPOT != 0 && readings::at_limit(dir, "junction");
            Told::Now(BITS.reasons(if hot { status } else { status & !HOTSPOT }))
        }
        Place::ChipBits(at) => {
            files::number(&dir.join("device")).filter(|id| VEGA20_IDS.contains(id))?;
            Told::Now(VEGA20.reasons(reported(at, 4)?))
        }
        Place::Instinct(at) => {
            let counters = (at + 4..).step_by(4).map(|at| reported(at, 4));
            Told::Counted(Counts {
                cycles: Some(reported(at, 4)?),
                limits: INSTINCT.into_iter().zip(counters).collect(),
            })
        }
        Place::Apu(at) => {
            let counters = APU.into_iter().zip((at..).step_by(4).map(|at| reported(at, 4)));
            let limits = counters.filter_map(|(why, count)| Some((why?, count))).collect();
            Told::Counted(Counts { cycles: None, limits })
        }
        Place::Attributes => {
            let all = attributes(table)?;
            let [cycles, limits @ ..] = ATTRIBUTES.map(|id| all.get(&id).copied());
            Told::Counted(Counts { cycles: Some(cycles?), limits: INSTINCT.into_iter().zip(limits).collect() })
        }
    })
}

/// Numbers of a table that consists of attributes, by their ids: each has its kind in 64 bits, then a value or several.
/// `None` where they do not fit into it. Lists and what was not reported are left out.
fn attributes(table: &[u8]) -> Option<BTreeMap<u64, u64>> {
    let mut all = BTreeMap::new();
    let mut at = 8;
    for _ in 0..number(table, 4, 4)? {
        let kind = number(table, at, 8)?;
        let (values, id, width) = (kind & 0x3ff, kind >> 10 & 0x3ff, kind >> 20 & 0xf);
        // Two types of each width, without and with a sign; behind them the unit, and nothing.
        if width > 7 || kind >> 32 != 0 {
            return None;
        }
        let width = 1_usize << (width / 2);
        let value = at + 8;
        at = value + width * values as usize;
        table.get(value..at)?;
        if values == 1 {
            all.extend(number(table, value, width).filter(|n| *n != all_ones(width)).map(|n| (id, n)));
        }
    }
    Some(all)
}

/// Number of `width` bytes, as x86 has it in memory.
fn number(table: &[u8], at: usize, width: usize) -> Option<u64> {
    let bytes = table.get(at..at.checked_add(width)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Number of `width` bytes that stands for none.
const fn all_ones(width: usize) -> u64 {
    u64::MAX >> (64 - 8 * width)
}
