//! Tests over tables that are laid out here as C does it, from the widths of their fields.

use std::fs;

use super::super::{Reader, inventory, tests::tree};
use crate::Throttle::{PowerCap, Thermal};
use crate::{Reading, Throttle};

/// Table under construction. What is not filled in is all ones, as the driver leaves it.
struct Table {
    version: (u8, u8),
    bytes: Vec<u8>,
}

impl Table {
    fn of(major: u8, minor: u8) -> Self {
        Self { version: (major, minor), bytes: vec![0xff; 4] }
    }

    /// Fields of so many bytes each, where C has them.
    fn fields(mut self, width: usize, values: &[u64]) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(width), 0xff);
        for value in values {
            self.bytes.extend(&value.to_le_bytes()[..width]);
        }
        self
    }

    fn unfilled(self, width: usize, count: usize) -> Self {
        self.fields(width, &vec![u64::MAX; count])
    }

    /// Table with its header. `width`: the widest of its fields.
    fn done(mut self, width: usize) -> Vec<u8> {
        self.bytes.resize(self.bytes.len().next_multiple_of(width), 0xff);
        let size = u16::try_from(self.bytes.len()).expect("short").to_le_bytes();
        self.bytes[..4].copy_from_slice(&[size[0], size[1], self.version.0, self.version.1]);
        self.bytes
    }
}

/// `gpu_metrics_v1_3`, of Instinct MI100 and MI200 and of Radeon, with this `indep_throttle_status`.
fn of_a_card(status: u64) -> Vec<u8> {
    let table = Table::of(1, 3).unfilled(2, 10).unfilled(8, 2).unfilled(2, 14).fields(4, &[u64::MAX]).unfilled(2, 4);
    table.unfilled(4, 2).unfilled(2, 4).unfilled(8, 1).unfilled(2, 4).fields(8, &[status]).done(8)
}

/// `gpu_metrics_v1_0` of 2020, with this `throttle_status`.
fn of_an_old_driver(status: u64) -> Vec<u8> {
    let table = Table::of(1, 0).unfilled(8, 1).unfilled(2, 10).unfilled(4, 1).unfilled(2, 14).fields(4, &[status]);
    table.unfilled(2, 1).unfilled(1, 2).done(8)
}

/// `gpu_metrics_v2_2` to `v2_4`, of a CPU's graphics, with this `indep_throttle_status`.
fn of_a_cpu(minor: u8, status: u64) -> Vec<u8> {
    let table = Table::of(2, minor).unfilled(2, 14).unfilled(8, 1).unfilled(2, 34).fields(4, &[0]).unfilled(2, 4);
    let table = table.fields(8, &[status]);
    table.unfilled(2, [0, 12, 18][usize::from(minor) - 2]).done(8)
}

/// `gpu_metrics_v3_0`, of a Strix Halo, with its seven counters.
fn of_a_strix_halo(counters: [u64; 7]) -> Vec<u8> {
    let table = Table::of(3, 0)
        .unfilled(2, 18 + 1 + 2 + 8 + 16 + 4)
        .unfilled(8, 1)
        .unfilled(4, 1)
        .unfilled(2, 1)
        .unfilled(4, 4);
    table.unfilled(2, 16 + 3 + 8 + 16 + 2).fields(4, &counters).unfilled(4, 1).done(8)
}

/// `gpu_metrics_v1_6` to `v1_9`, of an MI300, with the number of cycles and the five counters.
fn of_an_mi300(minor: u8, counters: [u64; 6]) -> Vec<u8> {
    if minor == 9 {
        let kind = |id: u64, number: u64, values: u64| number << 20 | id << 10 | values;
        // 16 bits, then a list, then the counters in 64 bits, then one of the link in 32.
        let mut packed = vec![(8, kind(0, 2, 1)), (2, 45), (8, kind(33, 2, 3)), (2, 1), (2, 2), (2, 3)];
        packed.extend((9..).zip(counters).flat_map(|(id, value)| [(8, kind(id, 6, 1)), (8, value)]));
        packed.extend([(8, kind(15, 4, 1)), (4, 0)]);
        let mut table = Table::of(1, 9).fields(4, &[9]);
        for (width, value) in packed {
            table.bytes.extend(&u64::to_le_bytes(value)[..width]);
        }
        return table.done(1);
    }
    let table = Table::of(1, minor).unfilled(2, 6).unfilled(8, if minor == 6 { 2 } else { 3 }).fields(4, &counters);
    let table = table.unfilled(4, 1).unfilled(2, 4).unfilled(4, 2).unfilled(8, 5).unfilled(4, 2).unfilled(8, 16);
    let mut table = if minor == 6 { table } else { table.unfilled(2, 8 + 1) };
    table = table.unfilled(8, 1).unfilled(2, 8 + 3 * 4 + 2);
    for _ in 0..8 {
        let jpeg = if minor == 8 { 40 } else { 32 };
        table = table.unfilled(4, 8).unfilled(2, jpeg + 4).unfilled(8, 8 * [1, 2, 5][usize::from(minor) - 6]);
    }
    table.unfilled(4, 1).done(8)
}

/// Form of `gpu_metrics_v1_6` that came first.
fn of_an_early_mi300(counters: [u64; 6]) -> Vec<u8> {
    let table = Table::of(1, 6).unfilled(2, 6 + 4 + 32).unfilled(8, 2).fields(4, &counters).fields(4, &[0, 0]);
    let table = table.unfilled(2, 4).unfilled(4, 2).unfilled(8, 5).unfilled(4, 2).unfilled(8, 16 + 1);
    table.unfilled(2, 8 + 3 * 4 + 2).done(8)
}

/// A machine whose GPUs tell tables.
struct Machine {
    root: tempfile::TempDir,
    reader: Reader,
}

impl Machine {
    fn with(tree_of: &str) -> Self {
        Self { root: tree(tree_of), reader: Reader::default() }
    }

    fn mi100() -> Self {
        Self::with(include_str!("../trees/mi100-bmc.tree"))
    }

    fn tells(&self, pci: &str, table: &[u8]) {
        let file = self.root.path().join("sys/bus/pci/devices").join(pci).join("gpu_metrics");
        fs::write(file, table).expect("a file");
    }

    fn readings(&mut self) -> Vec<Reading> {
        let devices = inventory(self.root.path());
        self.reader.readings(self.root.path(), &devices)
    }

    /// Reasons of the first GPU, which tells this table.
    fn throttled(&mut self, pci: &str, table: &[u8]) -> Vec<Throttle> {
        self.tells(pci, table);
        self.readings().remove(0).throttled
    }
}

const MI300X: &str = include_str!("../trees/mi300x-spx.tree");
const MI100: &str = "0000:c3:00.0";
const MI300: [&str; 2] = ["0000:05:00.0", "0000:27:00.0"];
const APU: &str = "0000:0a:00.0";

#[test]
fn a_card_says_at_once_that_it_is_too_hot_or_at_its_power_limit() {
    let mut machine = Machine::mi100();
    assert_eq!(machine.readings()[0].throttled, [], "no such file");
    for (bit, why) in [
        (0, Some(PowerCap)),
        (7, Some(PowerCap)),
        // Limits of current.
        (16, Some(PowerCap)),
        (23, Some(PowerCap)),
        (32, Some(Thermal)),
        (34, Some(Thermal)),
        (35, Some(Thermal)),
        (45, Some(Thermal)),
        (47, Some(Thermal)),
        // Of a CPU's cores, of no group with a meaning, and of nothing.
        (33, None),
        (46, None),
        (56, None),
        (57, None),
        (12, None),
        (63, None),
    ] {
        let told = machine.throttled(MI100, &of_a_card(1 << bit));
        assert_eq!(told, why.into_iter().collect::<Vec<_>>(), "bit {bit}");
    }
    assert_eq!(machine.throttled(MI100, &of_a_card(1 << 34 | 1 << 35 | 1 | 1 << 17)), [Thermal, PowerCap]);
    assert_eq!(machine.throttled(MI100, &of_a_card(0)), []);
    assert_eq!(machine.throttled(MI100, &of_a_card(u64::MAX)), [], "not reported");
}

#[test]
fn the_hottest_place_counts_only_near_its_limit_since_some_radeons_call_it_too_hot_when_idle() {
    let mut machine = Machine::mi100();
    let sensors = machine.root.path().join("sys/bus/pci/devices").join(MI100).join("hwmon/hwmon4");
    let file = |name: &str, text: &str| fs::write(sensors.join(name), text).expect("a file");
    file("temp2_label", "junction\n");
    for (now, limit, why) in [
        ("37000\n", "110000\n", vec![]),
        ("95000\n", "110000\n", vec![]),
        ("104999\n", "110000\n", vec![]),
        ("105000\n", "110000\n", vec![Thermal]),
        ("112000\n", "110000\n", vec![Thermal]),
        ("112000\n", "0\n", vec![]),
        ("-1\n", "110000\n", vec![]),
        ("", "", vec![]),
    ] {
        file("temp2_input", now);
        file("temp2_crit", limit);
        assert_eq!(machine.throttled(MI100, &of_a_card(1 << 36)), why, "{now} {limit}");
        assert_eq!(machine.throttled(MI100, &of_a_card(1 << 36 | 1 << 34)), [Thermal], "its memory is");
    }
}

#[test]
fn graphics_of_a_cpu_says_it_too() {
    let mut machine = Machine::with(include_str!("../trees/apu-alone.tree"));
    for minor in 2..=4 {
        assert_eq!(machine.throttled(APU, &of_a_cpu(minor, 1 << 37)), [Thermal], "version 2.{minor}");
        assert_eq!(machine.throttled(APU, &of_a_cpu(minor, 1 << 4)), [PowerCap]);
        assert_eq!(machine.throttled(APU, &of_a_cpu(minor, 0)), []);
    }
}

#[test]
fn an_mi50_is_understood_in_its_own_bits_and_no_other_old_chip_is() {
    let hot = of_an_old_driver(1 << 2);
    assert_eq!(Machine::mi100().throttled(MI100, &hot), [], "what these bits are of an MI100 is not known");
    let mut machine = Machine::mi100();
    fs::write(machine.root.path().join("sys/bus/pci/devices").join(MI100).join("device"), "0x66a1\n").expect("a file");
    for (status, why) in [
        (1 << 2, vec![Thermal]),
        (1 << 10, vec![Thermal]),
        (1 << 11, vec![PowerCap]),
        (1 << 13 | 1 << 4, vec![Thermal, PowerCap]),
        (1 | 1 << 14 | 1 << 15, vec![]),
        (u64::from(u32::MAX), vec![]),
    ] {
        assert_eq!(machine.throttled(MI100, &of_an_old_driver(status)), why, "{status:#x}");
    }
}

#[test]
fn an_mi300_is_throttled_for_what_was_counted_since_the_last_look() {
    let tables: [fn([u64; 6]) -> Vec<u8>; 5] = [
        of_an_early_mi300,
        |counters| of_an_mi300(6, counters),
        |counters| of_an_mi300(7, counters),
        |counters| of_an_mi300(8, counters),
        |counters| of_an_mi300(9, counters),
    ];
    for (i, table) in tables.into_iter().enumerate() {
        let mut machine = Machine::with(MI300X);
        let mut look = |counters: [u64; 6]| machine.throttled(MI300[0], &table(counters));
        assert_eq!(look([10_000, 9_000, 9_000, 9_000, 9_000, 9_000]), [], "table {i}: whenever that was");
        assert_eq!(look([11_000, 9_000, 9_000, 9_000, 9_000, 9_000]), []);
        assert_eq!(look([12_000, 9_000, 9_900, 9_000, 9_000, 9_000]), [PowerCap]);
        assert_eq!(look([13_000, 9_000, 9_900, 9_010, 9_000, 9_000]), [Thermal], "1 % of the time");
        assert_eq!(look([14_000, 9_000, 9_900, 9_019, 9_000, 9_000]), [], "less");
        assert_eq!(look([15_000, 9_000, 9_900, 9_019, 9_500, 9_000]), [Thermal], "regulators");
        assert_eq!(look([16_000, 9_000, 9_900, 9_019, 9_500, 9_500]), [Thermal], "memory");
        assert_eq!(look([17_000, 9_400, 9_990, 9_019, 9_500, 9_500]), [Thermal, PowerCap], "emergency");
        assert_eq!(look([17_000, 9_400, 9_990, 9_019, 9_500, 9_500]), [], "the same table");
    }
}

#[test]
fn counters_that_cannot_be_say_nothing() {
    let mut machine = Machine::with(MI300X);
    let ones = u64::from(u32::MAX);
    let mut look = |counters: [u64; 6]| machine.throttled(MI300[0], &of_an_mi300(8, counters));
    look([50_000, 0, 0, 20_000, 0, 0]);
    assert_eq!(look([1_000, 0, 0, 500, 0, 0]), [], "it was reset");
    assert_eq!(look([2_000, 0, 0, 1_000, 0, 0]), [Thermal]);
    assert_eq!(look([3_000, 0, 0, 9_000, 0, 0]), [], "more than there was");
    assert_eq!(look([4_000, 0, 500, ones, 0, 0]), [PowerCap], "one is not reported");
    assert_eq!(look([5_000, 0, 500, 9_500, 0, 0]), []);
    assert_eq!(look([ones, 0, 900, 9_900, 0, 0]), []);
    assert_eq!(look([7_000, 0, 900, 9_900, 0, 0]), [], "none to compare with");
    assert_eq!(look([7_000, 0, 1_000, 9_990, 0, 0]), [], "no time went by");
}

#[test]
fn all_partitions_of_an_mi300_are_throttled_with_it_and_the_other_one_is_not() {
    let mut machine = Machine::with(include_str!("../trees/mi300x-cpx.tree"));
    let mut look = |cycles, hot| {
        machine.tells(MI300[0], &of_an_mi300(6, [cycles, 0, 0, hot, 0, 0]));
        machine.tells(MI300[1], &of_an_mi300(6, [cycles, 0, 0, 0, 0, 0]));
        machine.readings().into_iter().map(|r| r.throttled).collect::<Vec<_>>()
    };
    look(1_000, 0);
    assert_eq!(look(2_000, 300), [vec![Thermal], vec![Thermal], vec![Thermal], vec![], vec![], vec![]]);
}

#[test]
fn a_strix_halo_is_throttled_when_its_counters_grow() {
    let mut machine = Machine::with(include_str!("../trees/apu-alone.tree"));
    let mut look = |counters| machine.throttled(APU, &of_a_strix_halo(counters));
    assert_eq!(look([7; 7]), []);
    assert_eq!(look([7; 7]), []);
    assert_eq!(look([7, 7, 8, 7, 7, 7, 7]), [PowerCap]);
    assert_eq!(look([7, 7, 8, 7, 900, 7, 7]), [], "its CPU's cores are too hot");
    assert_eq!(look([7, 7, 8, 7, 900, 50, 7]), [Thermal]);
    assert_eq!(look([8, 8, 8, 7, 900, 50, 7]), [Thermal, PowerCap]);
    assert_eq!(look([0; 7]), [], "it was reset");
}

#[test]
fn a_gpu_that_sleeps_is_not_asked_and_what_was_counted_before_is_forgotten() {
    let mut machine = Machine::with(MI300X);
    let power = machine.root.path().join("sys/bus/pci/devices").join(MI300[0]).join("power");
    fs::create_dir_all(&power).expect("a folder");
    let status = |text: &str| fs::write(power.join("runtime_status"), text).expect("a file");
    let hot = |cycles| of_an_mi300(7, [cycles, 0, 0, cycles, 0, 0]);
    machine.throttled(MI300[0], &hot(1_000));
    assert_eq!(machine.throttled(MI300[0], &hot(2_000)), [Thermal]);
    status("suspended\n");
    assert_eq!(machine.throttled(MI300[0], &hot(3_000)), []);
    status("active\n");
    assert_eq!(machine.throttled(MI300[0], &hot(9_000)), []);
    assert_eq!(machine.throttled(MI300[0], &hot(10_000)), [Thermal]);
}

#[test]
fn no_table_that_is_short_unknown_or_absurd_tells_anything() {
    let hot = of_a_card(1 << 35);
    let mut machine = Machine::mi100();
    assert_eq!(machine.throttled(MI100, &hot), [Thermal]);
    for length in 0..hot.len() {
        assert_eq!(machine.throttled(MI100, &hot[..length]), [], "{length} bytes");
    }
    let longer: Vec<u8> = hot.iter().copied().chain([1; 5000]).collect();
    assert_eq!(machine.throttled(MI100, &longer), [Thermal], "the header tells the length");
    for (at, byte) in [(0, 119), (0, 121), (1, 1), (2, 0), (2, 2), (2, 4), (3, 4), (3, 99)] {
        let mut other = longer.clone();
        other[at] = byte;
        assert_eq!(machine.throttled(MI100, &other), [], "byte {at} is {byte}");
    }
    for byte in [0, 0x7f, 0xff] {
        assert_eq!(machine.throttled(MI100, &vec![byte; 1 << 20]), []);
    }
    // Attributes that are not there, of a width that there is not, or longer than the table.
    let whole = of_an_mi300(9, [1, 0, 0, 0, 0, 0]);
    let changed = |at: usize, with: &[u8]| {
        let mut other = whole.clone();
        other[at..at + with.len()].copy_from_slice(with);
        other
    };
    for table in [
        changed(4, &[0xff; 4]),
        changed(4, &[0x7f; 4]),
        changed(8, &[0xff; 8]),
        changed(8 + 2, &[0x80]),
        changed(8, &[0xff, 0x03]),
        changed(8 + 4, &[1]),
        whole[..whole.len() - 1].to_vec(),
    ] {
        assert_eq!(machine.throttled(MI100, &table), []);
    }
    // A directory in its place.
    let file = machine.root.path().join("sys/bus/pci/devices").join(MI100).join("gpu_metrics");
    fs::remove_file(&file).expect("it was there");
    fs::create_dir(&file).expect("a folder");
    assert_eq!(machine.readings()[0].throttled, []);
}
