//! Slots: which worker has which GPU. Pure.
//!
//! A worker's number is its slot. A GPU keeps its slot for as long as the lab knows it: one that is late at boot, or falls
//! off the bus and returns, gets its own worker back, and no other worker is touched by that.

use std::collections::{BTreeMap, BTreeSet};

use labd_gpu::Device;
use serde::{Deserialize, Serialize};

/// Slots by worker number. An empty one is filled by the next new GPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Slots(Vec<Option<Device>>);

impl Slots {
    /// Each GPU with its worker's number.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Device)> {
        self.0.iter().enumerate().filter_map(|(slot, device)| Some((slot, device.as_ref()?)))
    }

    /// The GPU with this id.
    pub fn get(&self, id: &str) -> Option<(usize, &Device)> {
        self.iter().find(|(_, device)| device.id == id)
    }

    /// Forgets a GPU: its slot is free.
    pub fn forget(&mut self, id: &str) {
        for slot in &mut self.0 {
            if slot.as_ref().is_some_and(|device| device.id == id) {
                *slot = None;
            }
        }
        self.trim();
    }

    /// Brings the slots up to date with all GPUs that are there now.
    ///
    /// What is not there keeps its slot, unless it was a partition of a GPU that is divided otherwise now, a GPU that is
    /// divided now, or another GPU is in its place (at the same PCI address).
    pub fn update(&mut self, found: &[Device]) {
        let mut new: Vec<&Device> = found.iter().filter(|d| !d.divided).collect();
        for slot in &mut self.0 {
            let Some(known) = slot else { continue };
            if let Some(i) = new.iter().position(|d| d.id == known.id) {
                *slot = Some(new.swap_remove(i).clone());
            } else if redivided(known, found) {
                *slot = None;
            }
        }
        new.sort_by(|a, b| order(a).cmp(&order(b)));
        for device in new {
            let replaced = |known: &Device| {
                known.pci.is_some()
                    && known.pci == device.pci
                    && known.parent.is_none()
                    && device.parent.is_none()
                    && !found.iter().any(|d| d.id == known.id)
            };
            let place = self.0.iter_mut().position(|slot| slot.as_ref().is_some_and(replaced));
            match place.or_else(|| self.0.iter().position(Option::is_none)) {
                Some(i) => self.0[i] = Some(device.clone()),
                None => self.0.push(Some(device.clone())),
            }
        }
        self.trim();
    }

    /// GPUs that are divided otherwise in what is found now, in words: what they were divided into, and are.
    pub fn divided_otherwise(&self, found: &[Device]) -> Vec<String> {
        let known: Vec<&Device> = self.iter().map(|(_, d)| d).collect();
        let new: Vec<&Device> = found.iter().filter(|d| !d.divided).collect();
        let gpus: BTreeSet<&str> = known.iter().chain(&new).filter_map(|d| d.parent.as_deref()).collect();
        let of = |all: &[&Device], gpu: &str| -> Vec<Device> {
            let own = all.iter().filter(|d| d.parent.as_deref() == Some(gpu) || (d.parent.is_none() && d.id == gpu));
            own.map(|&d| d.clone()).collect()
        };
        let what =
            |parts: &[Device]| parts.iter().map(|d| (d.id.clone(), d.partition.clone())).collect::<BTreeSet<_>>();
        gpus.into_iter()
            .filter_map(|gpu| {
                let (before, now) = (of(&known, gpu), of(&new, gpu));
                // New to the lab, or gone as a whole.
                let there = found.iter().any(|d| d.id == gpu || d.parent.as_deref() == Some(gpu));
                let news = !before.is_empty() && there && what(&before) != what(&now);
                news.then(|| format!("GPU {gpu} is divided otherwise: {} before, {} now", parts(&before), parts(&now)))
            })
            .collect()
    }

    fn trim(&mut self) {
        while self.0.last().is_some_and(Option::is_none) {
            self.0.pop();
        }
    }
}

/// Partitions in words, such as `2 × 1g.10gb, 1 × 3g.40gb`.
fn parts(devices: &[Device]) -> String {
    if devices.is_empty() {
        return "nothing".to_owned();
    }
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for device in devices {
        let kind = if device.parent.is_none() { "whole" } else { device.partition.as_deref().unwrap_or("part") };
        *kinds.entry(kind).or_default() += 1;
    }
    let word = |(kind, count): (&&str, &usize)| {
        if *kind == "whole" { "whole".to_owned() } else { format!("{count} × {kind}") }
    };
    kinds.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// GPUs that are divided into nothing, and therefore have no worker.
pub fn divided_into_nothing(found: &[Device]) -> impl Iterator<Item = &Device> {
    found.iter().filter(|d| d.divided && !found.iter().any(|part| part.parent.as_ref() == Some(&d.id)))
}

/// Whether a GPU that is not found is gone because somebody divided it, or divided its parent in another way.
fn redivided(known: &Device, found: &[Device]) -> bool {
    let divided = found.iter().any(|d| d.divided && d.id == known.id);
    divided || known.parent.as_ref().is_some_and(|parent| found.iter().any(|d| d.id == *parent))
}

fn order(d: &Device) -> (labd_gpu::Vendor, Option<&str>, u32, &str) {
    (d.vendor, d.pci.as_deref(), d.index, &d.id)
}

#[cfg(test)]
pub(super) mod tests {
    use labd_gpu::Vendor;
    use proptest::prelude::*;

    use super::*;

    pub(in crate::gpus) fn device(id: &str, pci: &str) -> Device {
        Device {
            id: id.to_owned(),
            vendor: Vendor::Nvidia,
            name: "H100".to_owned(),
            index: 0,
            memory_bytes: 80 << 30,
            pci: Some(pci.to_owned()),
            parent: None,
            partition: None,
            instance: None,
            divided: false,
            numa_node: None,
            cpu_list: None,
            nodes: Vec::new(),
        }
    }

    fn part(id: &str, of: &str, pci: &str) -> Device {
        Device { parent: Some(of.to_owned()), partition: Some("1g.10gb".to_owned()), ..device(id, pci) }
    }

    fn ids(slots: &Slots) -> Vec<Option<&str>> {
        slots.0.iter().map(|s| s.as_ref().map(|d| d.id.as_str())).collect()
    }

    fn after(rounds: &[&[Device]]) -> Slots {
        let mut slots = Slots::default();
        for found in rounds {
            slots.update(found);
        }
        slots
    }

    #[test]
    fn a_gpu_keeps_its_worker_whatever_the_others_do() {
        let (a, b, c) = (device("a", "01"), device("b", "02"), device("c", "03"));
        let all = [b.clone(), a.clone()];
        assert_eq!(ids(&after(&[&all])), [Some("a"), Some("b")], "in the order of the bus");
        assert_eq!(ids(&after(&[&all, std::slice::from_ref(&b)])), [Some("a"), Some("b")], "gone is not forgotten");
        assert_eq!(ids(&after(&[&all, &[], &[b.clone(), c.clone()]])), [Some("a"), Some("b"), Some("c")]);
        let mut slots = after(&[&all]);
        slots.forget("a");
        assert_eq!(ids(&slots), [None, Some("b")], "no other worker is touched");
        slots.update(&[b, c]);
        assert_eq!(ids(&slots), [Some("c"), Some("b")]);
    }

    #[test]
    fn a_card_in_anothers_place_takes_its_worker() {
        let slots = after(&[&[device("old", "01"), device("b", "02")], &[device("new", "01"), device("b", "02")]]);
        assert_eq!(ids(&slots), [Some("new"), Some("b")]);
    }

    #[test]
    fn dividing_a_gpu_gives_its_worker_to_a_part() {
        let (a, b) = (device("a", "01"), device("b", "02"));
        let whole = Device { divided: true, ..a.clone() };
        let parts = [whole.clone(), part("m1", "a", "01"), part("m2", "a", "01"), b.clone()];
        let slots = after(&[&[a.clone(), b.clone()], &parts]);
        assert_eq!(ids(&slots), [Some("m1"), Some("b"), Some("m2")]);
        // Divided otherwise, and undivided again.
        let other = [whole, part("m3", "a", "01"), b.clone()];
        assert_eq!(ids(&after(&[&[a.clone(), b.clone()], &parts, &other])), [Some("m3"), Some("b")]);
        assert_eq!(ids(&after(&[&[a.clone(), b.clone()], &parts, &[a, b]])), [Some("a"), Some("b")]);
    }

    #[test]
    fn a_changed_division_is_told_in_words() {
        let (a, b) = (device("a", "01"), device("b", "02"));
        let whole = Device { divided: true, ..a.clone() };
        let wide = |id: &str| Device { partition: Some("3g.40gb".to_owned()), ..part(id, "a", "01") };
        let parts = [whole.clone(), part("m1", "a", "01"), part("m2", "a", "01"), b.clone()];
        let told = |before: &[Device], now: &[Device]| after(&[before]).divided_otherwise(now);
        let undivided = [a.clone(), b.clone()];
        assert_eq!(told(&[], &parts), Vec::<String>::new(), "new to the lab");
        assert_eq!(told(&parts, &parts), Vec::<String>::new());
        assert_eq!(told(&parts, std::slice::from_ref(&b)), Vec::<String>::new(), "it fell off the bus");
        assert_eq!(told(&undivided, &parts), ["GPU a is divided otherwise: whole before, 2 × 1g.10gb now"]);
        assert_eq!(told(&parts, &undivided), ["GPU a is divided otherwise: 2 × 1g.10gb before, whole now"]);
        let other = [whole.clone(), part("m3", "a", "01"), wide("m4"), b.clone()];
        assert_eq!(
            told(&parts, &other),
            ["GPU a is divided otherwise: 2 × 1g.10gb before, 1 × 1g.10gb, 1 × 3g.40gb now"]
        );
        assert_eq!(told(&parts, &[whole.clone(), b]), ["GPU a is divided otherwise: 2 × 1g.10gb before, nothing now"]);
        let ids = |found: &[Device]| divided_into_nothing(found).map(|d| d.id.clone()).collect::<Vec<_>>();
        assert_eq!((ids(&parts), ids(&[whole])), (Vec::<String>::new(), vec!["a".to_owned()]));
        // AMD's first partition has its GPU's id.
        let amd = |id: &str, mode: &str| Device { partition: Some(mode.to_owned()), ..part(id, "0x1", "05") };
        let (spx, cpx) = ([device("0x1", "05")], [amd("0x1", "CPX"), amd("0x1.1", "CPX")]);
        assert_eq!(told(&spx, &cpx), ["GPU 0x1 is divided otherwise: whole before, 2 × CPX now"]);
        assert_eq!(told(&cpx, &spx), ["GPU 0x1 is divided otherwise: 2 × CPX before, whole now"]);
    }

    #[test]
    fn parts_of_a_gpu_that_fell_off_the_bus_are_waited_for() {
        let whole = Device { divided: true, ..device("a", "01") };
        let parts = [whole, part("m1", "a", "01"), part("m2", "a", "01")];
        assert_eq!(ids(&after(&[&parts, &[]])), [Some("m1"), Some("m2")]);
    }

    proptest! {
        #[test]
        fn every_found_gpu_has_exactly_one_slot_and_nobody_moves(
            rounds in prop::collection::vec(prop::collection::btree_set(0_u8..8, 0..8), 1..8)
        ) {
            let mut slots = Slots::default();
            for found in rounds {
                let before: Vec<(usize, String)> = slots.iter().map(|(i, d)| (i, d.id.clone())).collect();
                let found: Vec<Device> = found.iter().map(|n| device(&format!("g{n}"), &format!("{n:02}"))).collect();
                slots.update(&found);
                for d in &found {
                    prop_assert_eq!(slots.iter().filter(|(_, s)| s.id == d.id).count(), 1);
                }
                for (slot, id) in before {
                    prop_assert_eq!(slots.get(&id).map(|(i, _)| i), Some(slot));
                }
            }
        }
    }
}
