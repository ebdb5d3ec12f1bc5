//! Journal keys and values that the next labd reads.

use super::{decide::Hold, oom};
use crate::journal::Journal;

/// Journal key for the time of the last engine event that was heard: what happens while labd is away is asked for
/// afterwards.
pub const EVENTS_HEARD: &str = "engine:events-heard";

/// Journal key for the time since which a container has differed from the wanted one.
pub(super) fn change_key(service: &str) -> String {
    format!("change:{service}")
}

pub(super) fn disk_key(mount: &str) -> String {
    format!("disk:{mount}")
}

/// Journal key for memory that ran out in a service.
pub(super) fn shortage_key(service: &str) -> String {
    format!("oom:{service}")
}

pub(super) fn keep_shortage(journal: &Journal, service: &str, shortage: &oom::Shortage) {
    if let Ok(text) = serde_json::to_string(shortage) {
        journal.set_memory(shortage_key(service), text);
    }
}

pub(super) fn held_key(service: &str) -> String {
    format!("held:{service}")
}

/// Journal key for a stop of labd's own that is under way.
pub(super) fn stopping_key(service: &str) -> String {
    format!("stopping:{service}")
}

/// Journal key for the fault of a worker's GPU that was known when labd last started the container.
pub(super) fn started_after_key(service: &str) -> String {
    format!("started-after:{service}")
}

pub(super) fn held_word(hold: Option<Hold>) -> &'static str {
    match hold {
        None => "no",
        Some(Hold::Asked) => "yes",
        Some(Hold::Stopped) => "stopped",
        Some(Hold::ByHand) => "by-hand",
    }
}

pub(super) fn held_before(journal: &Journal, service: &str) -> Option<Hold> {
    let word = journal.memory(&held_key(service))?;
    [Hold::Asked, Hold::Stopped, Hold::ByHand].into_iter().find(|&hold| held_word(Some(hold)) == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_journal_remembers_stays_where_the_next_labd_looks_for_it() {
        assert_eq!(EVENTS_HEARD, "engine:events-heard");
        assert_eq!(
            [
                change_key("x"),
                disk_key("/x"),
                shortage_key("x"),
                held_key("x"),
                stopping_key("x"),
                started_after_key("x")
            ],
            ["change:x", "disk:/x", "oom:x", "held:x", "stopping:x", "started-after:x"]
        );
        let words = [None, Some(Hold::Asked), Some(Hold::Stopped), Some(Hold::ByHand)].map(held_word);
        assert_eq!(words, ["no", "yes", "stopped", "by-hand"]);
        let levels = crate::node::disk_guard::Level::ALL.map(crate::node::disk_guard::Level::as_str);
        assert_eq!(levels, ["disk-fine", "disk-low", "disk-full"]);
    }
}
