//! What one target was not told yet, and when it is: folded, rate-limited, tried again. Pure.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::decide::News;
use crate::{
    config::NotifyEvent,
    time::{Moment, Now, Timestamp},
};

/// Time that a notification waits for others: what breaks together is told together.
pub(super) const GATHER: Duration = Duration::from_secs(5);
/// Shortest time between two messages to one target.
pub(super) const GAP: Duration = Duration::from_mins(1);
/// Largest number of messages to one target in an hour. Chosen, not measured: one every two minutes is read by nobody.
pub(super) const HOURLY: usize = 30;
/// Largest number of messages in an hour after which what is no bad news waits: bad news has a third for itself.
pub(super) const HOURLY_MINOR: usize = 20;
/// Time in which [`HOURLY`] is counted.
const HOUR: Duration = Duration::from_hours(1);
/// Largest number of notifications in one message: a screen.
pub(super) const FOLDED: usize = 20;
/// Largest number of notifications that wait for one target; the oldest go first, and those that are no bad news before. At
/// most 30 KB of text.
pub(super) const MOST: usize = 100;
/// Wait after the first failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(30);
/// Longest wait between two tries, jitter aside; also of what a target asks for.
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// Longest time for which a target can ask not to be sent anything.
const LONGEST_ASKED: Duration = Duration::from_hours(1);
/// Age at which a notification that could not be delivered is given up.
pub(super) const GIVEN_UP: Duration = Duration::from_hours(24);

/// Notification on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Event.
    pub(super) event: NotifyEvent,
    /// Time at which it was seen.
    pub(super) at: Timestamp,
    /// Text.
    pub(super) text: String,
    came: Moment,
}

impl Line {
    /// Whether it can wait for bad news, and be dropped for it.
    fn is_minor(&self) -> bool {
        matches!(self.event, NotifyEvent::RunEnded | NotifyEvent::GpuIdle)
    }
}

/// Message: notifications that are told together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Message {
    /// Notifications, oldest first, those that are no bad news behind the others.
    pub(super) lines: Vec<Line>,
    /// Number of notifications that were dropped before.
    pub(super) dropped: u32,
    /// Whether a person asked for it, to see whether it arrives: nothing has happened.
    pub(super) test: bool,
}

impl Message {
    /// Message of one line.
    pub(super) fn of(event: NotifyEvent, text: String, now: Now) -> Self {
        Self { lines: vec![Line { event, at: now.wall, text, came: now.moment }], dropped: 0, test: false }
    }
}

/// Memory for the next labd.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    waiting: Vec<(NotifyEvent, Timestamp, String)>,
    dropped: u32,
    bad: bool,
    sent: Vec<Timestamp>,
}

/// Notifications for one target.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Line>,
    /// Number that was dropped since the last message.
    dropped: u32,
    /// Message that is being sent.
    flying: Option<Message>,
    /// Whether it was told of something bad, and not yet that the lab is whole again.
    bad: bool,
    /// Moments of the messages of the last hour.
    sent: VecDeque<Moment>,
    failures: u32,
    next_try: Option<Moment>,
    /// Reason why it is not told, in one line.
    trouble: Option<String>,
}

impl Outbox {
    /// Outbox as the labd before left it.
    pub(super) fn restore(memory: Memory, now: Now) -> Self {
        let line = |(event, at, text)| Line { event, at, text, came: now.moment_of(at) };
        let mut outbox = Self {
            waiting: memory.waiting.into_iter().map(line).collect(),
            dropped: memory.dropped,
            bad: memory.bad,
            sent: memory.sent.into_iter().map(|at| now.moment_of(at)).collect(),
            ..Self::default()
        };
        outbox.bound();
        outbox
    }

    /// Memory for the next labd. What is being sent may not arrive, so it is kept, too.
    pub(super) fn memory(&self, now: Now) -> Memory {
        let flying = self.flying.iter().flat_map(|message| &message.lines);
        Memory {
            waiting: flying.chain(&self.waiting).map(|l| (l.event, l.at, l.text.clone())).collect(),
            dropped: self.dropped + self.flying.as_ref().map_or(0, |message| message.dropped),
            bad: self.bad,
            sent: self.sent.iter().map(|&at| now.wall_at(at)).collect(),
        }
    }

    /// Number of notifications that were not delivered yet.
    pub(super) fn undelivered(&self) -> usize {
        self.waiting.len() + self.flying.as_ref().map_or(0, |message| message.lines.len())
    }

    /// Reason why it is not told, in one line; absent while it is.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Takes a notification, if the target wants its event. Returns whether it did.
    pub(super) fn push(&mut self, wanted: &[NotifyEvent], news: &News, now: Now) -> bool {
        if !wanted.contains(&news.event) {
            return false;
        }
        match news.event {
            NotifyEvent::LabWhole if !std::mem::take(&mut self.bad) => return false,
            NotifyEvent::LabWhole | NotifyEvent::RunEnded | NotifyEvent::JobLost | NotifyEvent::GpuIdle => {}
            NotifyEvent::GpuQuarantined | NotifyEvent::CrashLoop | NotifyEvent::DiskFull => self.bad = true,
        }
        self.waiting.push_back(Line { event: news.event, at: news.at, text: news.text.clone(), came: now.moment });
        self.bound();
        true
    }

    /// Moment from which on a message may be sent; absent while there is none, or one is being sent.
    pub(super) fn due(&self) -> Option<Moment> {
        let first = self.oldest().filter(|_| self.flying.is_none())?;
        let gap = self.sent.back().map(|last| last.plus(GAP));
        let most = if self.waiting.iter().all(Line::is_minor) { HOURLY_MINOR } else { HOURLY };
        let hourly = self.sent.len().checked_sub(most).and_then(|i| self.sent.get(i)).map(|at| at.plus(HOUR));
        [Some(first.plus(GATHER)), gap, hourly, self.next_try].into_iter().flatten().max()
    }

    /// Moment at which the oldest is given up.
    pub(super) fn gives_up(&self) -> Option<Moment> {
        self.oldest().map(|came| came.plus(GIVEN_UP))
    }

    fn oldest(&self) -> Option<Moment> {
        self.waiting.iter().map(|line| line.came).min()
    }

    /// Message that is to be sent now. It stays here until [`Self::delivered`] or [`Self::failed`] is called.
    pub(super) fn take(&mut self, now: Moment) -> Option<Message> {
        self.due().filter(|&due| due <= now)?;
        // In order as before but for that: the sort is stable.
        self.waiting.make_contiguous().sort_by_key(Line::is_minor);
        let lines = self.waiting.drain(..self.waiting.len().min(FOLDED)).collect();
        let message = Message { lines, dropped: std::mem::take(&mut self.dropped), test: false };
        self.flying = Some(message.clone());
        Some(message)
    }

    /// Notes that the message arrived. Returns whether the tries before had failed.
    pub(super) fn delivered(&mut self, now: Moment) -> bool {
        self.flying = None;
        self.sent.push_back(now);
        while self.sent.len() > HOURLY {
            self.sent.pop_front();
        }
        (self.failures, self.next_try) = (0, None);
        self.trouble.take().is_some()
    }

    /// Notes that the message did not arrive, and when it is tried again. Returns whether that is the first failure.
    pub(super) fn failed(&mut self, now: Moment, why: String, asked: Option<Duration>, seed: f64) -> bool {
        if let Some(message) = self.flying.take() {
            self.dropped += message.dropped;
            for line in message.lines.into_iter().rev() {
                self.waiting.push_front(line);
            }
            self.bound();
        }
        let doubled = FIRST_WAIT.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let wait = doubled.min(LONGEST_WAIT).mul_f64(0.8 + 0.4 * seed.clamp(0.0, 1.0));
        self.next_try = Some(now.plus(wait.max(asked.unwrap_or_default().min(LONGEST_ASKED))));
        self.failures = self.failures.saturating_add(1);
        self.trouble.replace(why).is_none()
    }

    /// Forgets that it failed, since the target is another one now.
    pub(super) fn changed(&mut self) {
        (self.failures, self.next_try, self.trouble) = (0, None, None);
    }

    /// Gives up what is too old, and returns how many that were.
    pub(super) fn give_up(&mut self, now: Moment) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|line| now.since(line.came) < GIVEN_UP);
        before - self.waiting.len()
    }

    fn bound(&mut self) {
        while self.waiting.len() > MOST {
            let first = self.waiting.iter().position(Line::is_minor).unwrap_or(0);
            self.waiting.remove(first);
            self.dropped = self.dropped.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[NotifyEvent] = &NotifyEvent::ALL;

    fn at(s: i64) -> Now {
        Timestamp::from_millis(1_800_000_000_000 + s * 1_000).into()
    }

    fn news(event: NotifyEvent, text: &str) -> News {
        News { event, at: at(0).wall, text: text.into() }
    }

    fn push(outbox: &mut Outbox, text: &str, s: i64) {
        assert!(outbox.push(ALL, &news(NotifyEvent::RunEnded, text), at(s)));
    }

    fn texts(message: &Message) -> Vec<&str> {
        message.lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn what_comes_together_is_one_message_and_the_next_waits_a_minute() {
        let mut outbox = Outbox::default();
        push(&mut outbox, "a", 0);
        push(&mut outbox, "b", 4);
        assert_eq!(outbox.take(at(4).moment), None);
        assert_eq!(texts(&outbox.take(at(5).moment).expect("due")), ["a", "b"]);
        push(&mut outbox, "c", 6);
        assert_eq!(outbox.take(at(100).moment), None, "one at a time");
        assert!(!outbox.delivered(at(10).moment));
        assert_eq!(outbox.take(at(69).moment), None);
        assert_eq!(texts(&outbox.take(at(70).moment).expect("due")), ["c"]);
    }

    #[test]
    fn there_are_at_most_thirty_messages_in_an_hour_and_twenty_while_nothing_is_bad() {
        for (event, hourly) in [(NotifyEvent::JobLost, HOURLY), (NotifyEvent::GpuIdle, HOURLY_MINOR)] {
            let mut outbox = Outbox::default();
            let mut sent = 0;
            for s in 0..7_200 {
                outbox.push(ALL, &news(event, "x"), at(s));
                if outbox.take(at(s).moment).is_some() {
                    outbox.delivered(at(s).moment);
                    sent += 1;
                }
                if s == 3_600 {
                    assert_eq!(sent, hourly);
                }
            }
            assert_eq!((sent, outbox.undelivered()), (2 * hourly, MOST));
        }
    }

    #[test]
    fn bad_news_finds_room_whatever_else_waits_and_is_told_first() {
        let mut outbox = Outbox::default();
        for s in 0..1_500 {
            push(&mut outbox, "x", s);
            if outbox.take(at(s).moment).is_some() {
                outbox.delivered(at(s).moment);
            }
        }
        assert_eq!((outbox.undelivered(), outbox.take(at(1_600).moment)), (MOST, None));
        outbox.push(ALL, &news(NotifyEvent::DiskFull, "full"), at(1_600));
        for _ in 0..200 {
            push(&mut outbox, "y", 1_601);
        }
        outbox.push(ALL, &news(NotifyEvent::LabWhole, "whole"), at(1_602));
        let message = outbox.take(at(1_610).moment).expect("due, though twenty were told in this hour");
        assert_eq!((message.lines.len(), &texts(&message)[..3]), (FOLDED, &["full", "whole", "y"][..]));
        outbox.failed(at(1_610).moment, "away".into(), None, 0.0);
        assert_eq!(outbox.gives_up(), Some(at(1_600).moment.plus(GIVEN_UP)));
    }

    #[test]
    fn what_fails_is_tried_again_ever_later_and_given_up_after_a_day() {
        let mut outbox = Outbox::default();
        push(&mut outbox, "a", 0);
        let mut waits = Vec::new();
        let mut now = 5;
        for n in 0..6 {
            assert!(outbox.take(at(now).moment).is_some());
            assert_eq!(outbox.failed(at(now).moment, "away".into(), None, 0.5), n == 0, "said once");
            let due = outbox.due().expect("tried again").since(at(now).moment).as_secs();
            waits.push(due);
            now += i64::try_from(due).expect("small");
        }
        assert_eq!((waits, outbox.trouble()), (vec![30, 60, 120, 240, 300, 300], Some("away")));
        // A target that asks for more gets more, but not forever.
        outbox.take(at(now).moment);
        outbox.failed(at(now).moment, "away".into(), Some(Duration::from_hours(99)), 0.5);
        assert_eq!(outbox.due(), Some(at(now + 3_600).moment));
        assert_eq!((outbox.give_up(at(86_399).moment), outbox.give_up(at(86_400).moment)), (0, 1));
        assert_eq!(outbox.due(), None);
        push(&mut outbox, "b", 90_000);
        assert!(outbox.take(at(90_005).moment).is_some());
        assert!(outbox.delivered(at(90_006).moment) && outbox.trouble().is_none());
    }

    #[test]
    fn too_much_is_bounded_and_said() {
        let mut outbox = Outbox::default();
        for n in 0..130 {
            push(&mut outbox, &n.to_string(), 0);
        }
        let first = outbox.take(at(5).moment).expect("due");
        assert_eq!((first.lines.len(), first.dropped, first.lines[0].text.as_str()), (FOLDED, 30, "30"));
        for n in 130..140 {
            push(&mut outbox, &n.to_string(), 6);
        }
        outbox.failed(at(7).moment, "away".into(), None, 0.0);
        assert_eq!(outbox.undelivered(), MOST);
        let again = outbox.take(at(60).moment).expect("due");
        assert_eq!((again.dropped, again.lines[0].text.as_str()), (40, "40"));
    }

    #[test]
    fn whole_again_is_told_only_to_whom_something_bad_was() {
        let whole = news(NotifyEvent::LabWhole, "whole");
        let mut outbox = Outbox::default();
        assert!(!outbox.push(ALL, &whole, at(0)));
        push(&mut outbox, "a run ended", 1);
        assert!(!outbox.push(ALL, &whole, at(2)));
        assert!(outbox.push(ALL, &news(NotifyEvent::CrashLoop, "bad"), at(3)));
        assert!(outbox.push(ALL, &whole, at(4)) && !outbox.push(ALL, &whole, at(5)));
        let mut choosy = Outbox::default();
        assert!(!choosy.push(&[NotifyEvent::LabWhole], &news(NotifyEvent::CrashLoop, "bad"), at(3)));
        assert!(!choosy.push(&[NotifyEvent::LabWhole], &whole, at(4)));
    }

    #[test]
    fn the_next_labd_knows_what_was_not_delivered_and_how_much_was() {
        let mut outbox = Outbox::default();
        outbox.push(ALL, &news(NotifyEvent::CrashLoop, "a"), at(0));
        outbox.take(at(5).moment).expect("due");
        outbox.delivered(at(5).moment);
        push(&mut outbox, "b", 6);
        outbox.take(at(65).moment).expect("due");
        push(&mut outbox, "c", 66);
        let text = serde_json::to_string(&outbox.memory(at(70))).expect("plain data");
        let mut next = Outbox::restore(serde_json::from_str(&text).expect("just written"), at(80));
        let message = next.take(at(80).moment).expect("due");
        assert_eq!((texts(&message), next.sent.len()), (vec!["b", "c"], 1));
        assert!(next.push(ALL, &news(NotifyEvent::LabWhole, "whole"), at(81)));
    }
}
