//! Which points of a full curve go. Pure.

use std::cmp::Reverse;

use crate::time::Timestamp;

/// Point as far as thinning is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Time of the report.
    pub(super) at: Timestamp,
    /// Whether a checkpoint came with it.
    pub(super) has_checkpoint: bool,
}

/// Places of the points that go, ascending, so that at most half of `most` stay. `points` are in order of time.
///
/// Of points at even distances every other one goes. Otherwise those go first that stand closest together, so that a curve that
/// was thinned often is as dense at its beginning as at its end. The first and the newest stay; a point with a checkpoint goes
/// only when there is nothing else to drop.
pub(super) fn dropped(points: &[Mark], most: usize) -> Vec<usize> {
    if points.len() <= most {
        return Vec::new();
    }
    let goal = (most / 2).max(2);
    let mut stays = vec![true; points.len()];
    let (mut before, mut after): (Vec<usize>, Vec<usize>) =
        (0..points.len()).map(|i| (i.saturating_sub(1), i + 1)).unzip();
    let mut left = points.len();
    for checkpoints_too in [false, true] {
        while left > goal {
            let may_go = |i: &usize| stays[*i] && (checkpoints_too || !points[*i].has_checkpoint);
            let gap = |i: &usize| points[after[*i]].at.since(points[before[*i]].at);
            // Of equal ones the newest: at even distances the newest but one goes, then the one two before it.
            let Some(gone) = (1..points.len() - 1).filter(may_go).min_by_key(|i| (gap(i), Reverse(*i))) else { break };
            stays[gone] = false;
            let (previous, next) = (before[gone], after[gone]);
            (after[previous], before[next]) = (next, previous);
            left -= 1;
        }
    }
    stays.iter().enumerate().filter(|(_, stays)| !**stays).map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(s: i64, has_checkpoint: bool) -> Mark {
        Mark { at: Timestamp::from_millis(s * 1_000), has_checkpoint }
    }

    fn left(points: &[Mark], most: usize) -> Vec<i64> {
        let gone = dropped(points, most);
        let kept = points.iter().enumerate().filter(|(i, _)| !gone.contains(i));
        kept.map(|(_, p)| p.at.as_millis() / 1_000).collect()
    }

    #[test]
    fn every_other_point_goes_and_never_the_first_nor_the_newest() {
        let even: Vec<Mark> = (0..9).map(|s| point(s, false)).collect();
        assert_eq!(left(&even, 9), [0, 1, 2, 3, 4, 5, 6, 7, 8], "it fits");
        assert_eq!(left(&even, 8), [0, 2, 4, 8]);
        assert_eq!(left(&even[..3], 2), [0, 2]);
        assert!(dropped(&[], 4).is_empty());
    }

    #[test]
    fn a_point_with_a_checkpoint_stays_while_others_can_go() {
        let points: Vec<Mark> = (0..9).map(|s| point(s, s % 2 == 1)).collect();
        assert_eq!(left(&points, 8).len(), 4);
        let few: Vec<Mark> = (0..9).map(|s| point(s, s == 1 || s == 4)).collect();
        assert!([1, 4].iter().all(|s| left(&few, 8).contains(s)), "{:?}", left(&few, 8));
        let all: Vec<Mark> = (0..100).map(|s| point(s, true)).collect();
        let kept = left(&all, 20);
        assert!(kept.len() == 10 && kept[0] == 0 && kept[9] == 99, "bounded all the same: {kept:?}");
    }

    #[test]
    fn a_curve_that_is_thinned_often_is_as_dense_at_its_beginning_as_at_its_end() {
        let mut points: Vec<Mark> = Vec::new();
        for s in 0..10_000 {
            points.push(point(s, false));
            let gone = dropped(&points, 400);
            let mut place = 0;
            points.retain(|_| {
                place += 1;
                !gone.contains(&(place - 1))
            });
        }
        assert!(points.len() <= 400);
        let early = points.iter().filter(|p| p.at.as_millis() < 3_000_000).count();
        let later = points.iter().filter(|p| (3_000_000..6_000_000).contains(&p.at.as_millis())).count();
        assert!(early * 2 > later && later * 2 > early, "{early} and {later}");
    }
}
