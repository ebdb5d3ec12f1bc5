//! Shared memory that ended processes left behind. A file in `/dev/shm` outlives whoever made it: those that remove it
//! themselves cannot when they are killed, and the workers share one `/dev/shm`, which lives on with the others. Left alone it
//! fills up, over nights, until a process that writes to it dies of SIGBUS.
//!
//! What is removed is old, has a name as libraries give it, and is open in no process of any container that shares the
//! directory. Data that somebody put there on purpose has a name of its own and stays. [`sweep`] asks; the rest is pure.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::Bytes,
    engine::{Engine, Patience, Ran},
};

/// Time after a service's return at which is looked: a run that has just come back needs the CPU.
pub(super) const LATER: Duration = Duration::from_secs(30);
/// Longest time for one container's answer.
const PATIENCE: Patience = Patience { begin: Some(Duration::from_mins(1)), run: Duration::from_secs(20) };
/// Most segments that are removed at once: their names are arguments of one command.
const MOST: usize = 1_000;

/// Script that prints size and name of the old segments that no process of its container has open or mapped, and a last line
/// that says that it came to its end. Names are those of Python's and PyTorch's shared memory, of NCCL, and of POSIX's named
/// semaphores; a plain file of a person has none of them. An hour is long enough for a name that one process passes on and
/// another is about to open.
const LIST: &str = r#"
used=$( { cat /proc/[0-9]*/maps; ls -l /proc/[0-9]*/fd; } 2>/dev/null | grep -o '/dev/shm/[^ ]*' | sort -u)
find /dev/shm -maxdepth 1 -type f -mmin +60 \
    \( -name 'psm_*' -o -name 'torch_*' -o -name 'nccl-*' -o -name 'sem.*' \) -printf '%s %f\n' |
while read -r size name; do
    case $name in *[!A-Za-z0-9_.-]*) continue ;; esac
    printf '%s\n' "$used" | grep -qxF "/dev/shm/$name" || echo "$size $name"
done
echo done
"#;
/// Script that removes the segments that are its arguments.
const REMOVE: &str = r#"cd /dev/shm && rm -f -- "$@""#;

/// Segments that were removed: how many, and their size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swept {
    number: usize,
    bytes: u64,
}

impl Swept {
    pub(super) fn in_words(self) -> String {
        let (number, s) = (self.number, if self.number == 1 { "" } else { "s" });
        format!("removed {number} segment{s} ({}) that ended processes had left in /dev/shm", Bytes::new(self.bytes))
    }
}

/// Removes what is left behind in the `/dev/shm` that these containers share, which are all that do and run. Nothing where one
/// of them has no answer: a segment may be in use there.
pub(super) async fn sweep<E: Engine>(engine: &E, containers: &[String]) -> Option<Swept> {
    let mut answers = Vec::new();
    for id in containers {
        answers.push(segments(engine.run(id, &command(LIST, &[]), PATIENCE).await.ok()?)?);
    }
    let left: Vec<(String, u64)> = in_all(answers).into_iter().take(MOST).collect();
    let (first, names) = (containers.first()?, left.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    if names.is_empty() {
        return None;
    }
    let ran = engine.run(first, &command(REMOVE, &names), PATIENCE).await.ok()?;
    let swept = Swept { number: left.len(), bytes: left.iter().map(|(_, bytes)| bytes).sum() };
    matches!(ran, Ran::Ended { code: 0, .. }).then_some(swept)
}

fn command(script: &str, arguments: &[String]) -> Vec<String> {
    let words = ["sh", "-c", script, "labd-segments"].into_iter().map(str::to_owned);
    words.chain(arguments.iter().cloned()).collect()
}

/// Names and sizes of an answer; `None` for one that is not whole.
fn segments(answer: Ran) -> Option<BTreeMap<String, u64>> {
    let Ran::Ended { code: 0, output } = answer else { return None };
    let lines = output.trim_end().strip_suffix("done")?.lines();
    let segment =
        |line: &str| line.split_once(' ').and_then(|(size, name)| Some((name.to_owned(), size.parse().ok()?)));
    Some(lines.filter_map(segment).collect())
}

/// Segments that all answers have.
fn in_all(answers: Vec<BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut answers = answers.into_iter();
    let mut left = answers.next().unwrap_or_default();
    for answer in answers {
        left.retain(|name, _| answer.contains_key(name));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(output: &str) -> Option<BTreeMap<String, u64>> {
        segments(Ran::Ended { code: 0, output: output.into() })
    }

    #[test]
    fn only_what_no_container_uses_is_left_behind() {
        let here = answer("4096 psm_a\n8192 torch_1_2_3\ndone\n").expect("whole");
        let there = answer("8192 torch_1_2_3\n1 nccl-x\ndone\n").expect("whole");
        assert_eq!(in_all(vec![here.clone(), there]), BTreeMap::from([("torch_1_2_3".to_owned(), 8_192)]));
        assert_eq!(in_all(vec![here, answer("done\n").expect("whole")]), BTreeMap::new());
        assert_eq!(in_all(Vec::new()), BTreeMap::new());
    }

    #[test]
    fn an_answer_that_is_not_whole_says_nothing() {
        assert_eq!(answer("4096 psm_a\n"), None, "it was cut off");
        assert_eq!(answer(""), None);
        assert_eq!(segments(Ran::Ended { code: 127, output: "done".into() }), None);
        assert_eq!(segments(Ran::Unfinished), None);
    }

    #[test]
    fn it_is_told_in_words() {
        let told = Swept { number: 2, bytes: 3 << 30 }.in_words();
        assert_eq!(told, "removed 2 segments (3.0 GiB) that ended processes had left in /dev/shm");
    }
}
