//! The last hour, a value a second, in memory. Pure.
//!
//! It counts the seconds of the clock that is never set, so that setting the other one moves nothing in it.

use std::sync::Arc;

use super::series::{EMPTY, Packed, Values, pack, unpack};

/// Number of seconds that are shown: an hour.
pub(super) const SECONDS: i64 = 3_600;
/// Seconds of a minute.
const MINUTE: i64 = 60;
/// Number of minutes that are kept: an hour's, and the one under way.
const MINUTES: i64 = SECONDS / MINUTE + 1;
/// Number of GPUs that have an hour in memory, at most 30 KB each; a machine with more of them or with more partitions shows
/// those beyond by the minute only.
const MOST: usize = 64;

/// Values of the last hour.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Second that was written last.
    last: Option<i64>,
    tracks: Vec<Track>,
}

/// Values of one GPU, by second.
#[derive(Debug)]
struct Track {
    gpu: Arc<str>,
    /// Minutes, each where something is known of it: nothing is held for what is yet to come, nor for a GPU that sleeps.
    minutes: [Option<Box<[Packed; MINUTE as usize]>>; MINUTES as usize],
}

/// Place of a minute, by its number.
fn place(minute: i64) -> usize {
    minute.rem_euclid(MINUTES) as usize
}

/// Number of a second's minute, and the second's place in it.
fn split(second: i64) -> (i64, usize) {
    (second.div_euclid(MINUTE), second.rem_euclid(MINUTE) as usize)
}

impl Ring {
    /// Begins another second: those since the last one are gaps until something is put there.
    pub(super) fn begin(&mut self, second: i64) {
        let (minute, _) = split(second);
        let entered = self.last.map_or(0, |last| minute - split(last).0).clamp(0, MINUTES);
        self.last = Some(second);
        if entered == 0 {
            return;
        }
        for track in &mut self.tracks {
            for past in 0..entered {
                track.minutes[place(minute - past)] = None;
            }
        }
        self.tracks.retain(|track| track.minutes.iter().any(Option::is_some));
    }

    /// Puts a GPU's values at the second that began last.
    pub(super) fn put(&mut self, gpu: &str, values: &Values) {
        let Some(second) = self.last else { return };
        let packed = pack(values);
        if packed == EMPTY {
            return;
        }
        let at = match self.tracks.iter().position(|track| *track.gpu == *gpu) {
            Some(at) => at,
            None if self.tracks.len() < MOST => {
                self.tracks.push(Track { gpu: gpu.into(), minutes: [const { None }; MINUTES as usize] });
                self.tracks.len() - 1
            }
            None => return,
        };
        let (minute, cell) = split(second);
        let seconds = self.tracks[at].minutes[place(minute)].get_or_insert_with(|| Box::new([EMPTY; MINUTE as usize]));
        seconds[cell] = packed;
    }

    /// Shows each value there is: GPU, second, values.
    pub(super) fn each(&self, mut show: impl FnMut(&str, i64, &Values)) {
        let Some(last) = self.last else { return };
        for track in &self.tracks {
            for second in last - SECONDS + 1..=last {
                let (minute, cell) = split(second);
                let packed = track.minutes[place(minute)].as_ref().map_or(EMPTY, |seconds| seconds[cell]);
                if packed != EMPTY {
                    show(&track.gpu, second, &unpack(packed));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ring: &Ring) -> Vec<(String, i64, u32)> {
        let mut all = Vec::new();
        ring.each(|gpu, second, values| all.push((gpu.to_owned(), second, values[0].expect("a use").round() as u32)));
        all
    }

    fn put(ring: &mut Ring, second: i64, gpus: &[(&str, f32)]) {
        ring.begin(second);
        for (gpu, used) in gpus {
            ring.put(gpu, &[Some(*used), None, None, None]);
        }
    }

    #[test]
    fn an_hour_is_kept_and_what_nobody_measured_is_a_gap() {
        let mut ring = Ring::default();
        assert!(shown(&ring).is_empty());
        put(&mut ring, -5, &[("a", 1.0)]);
        put(&mut ring, 10, &[("a", 2.0), ("b", 3.0)]);
        put(&mut ring, 10, &[("a", 4.0)]);
        assert_eq!(shown(&ring), [("a".into(), -5, 1), ("a".into(), 10, 4), ("b".into(), 10, 3)]);
        put(&mut ring, 3_594, &[("a", 5.0)]);
        assert_eq!(
            shown(&ring),
            [("a".into(), -5, 1), ("a".into(), 10, 4), ("a".into(), 3_594, 5), ("b".into(), 10, 3)]
        );
        put(&mut ring, 3_595, &[("a", 6.0)]);
        assert_eq!(shown(&ring)[0], ("a".into(), 10, 4), "its place was taken");
        put(&mut ring, 3_610, &[("a", 7.0)]);
        assert!(shown(&ring).iter().all(|(gpu, ..)| gpu == "a"), "b is gone for an hour");
        put(&mut ring, 1_000_000, &[]);
        assert!(shown(&ring).is_empty(), "nobody looked for days");
    }

    #[test]
    fn it_stays_small_however_many_gpus_there_are() {
        let mut ring = Ring::default();
        ring.begin(1);
        for n in 0..500 {
            ring.put(&n.to_string(), &[Some(1.0); 4]);
        }
        assert_eq!(ring.tracks.len(), MOST);
        let held = |ring: &Ring| ring.tracks.iter().flat_map(|track| &track.minutes).flatten().count();
        assert_eq!(held(&ring), MOST, "nothing for the rest of the hour");
        for second in 2..4 * SECONDS {
            ring.begin(second);
            ring.put("0", &[Some(1.0); 4]);
            ring.put("asleep", &[None; 4]);
            assert!(held(&ring) <= MOST * MINUTES as usize);
        }
        assert_eq!((ring.tracks.len(), held(&ring)), (1, MINUTES as usize), "what is older than an hour is gone");
        let bytes = SECONDS as usize * size_of::<Packed>();
        assert!(16 * bytes < 500_000, "{bytes} each");
    }
}
