//! Reading the journal. Each query has a read-only connection of its own, so that no reader ever waits for the writer.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, Row, params};

use super::Kind;
use super::{RECOVERY_BOUNDS, Totals};
use crate::{
    db,
    incident::{Cause, Incident, KEPT},
    snapshot::Event,
    time::Timestamp,
};

/// Query for events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// Only events with a higher number.
    pub after_seq: Option<i64>,
    /// Only events of this service.
    pub service: Option<String>,
    /// Only events of this kind.
    pub kind: Option<Kind>,
    /// Largest number of events.
    pub limit: usize,
    /// Which events are returned when there are more than `limit`: true for the newest, false for the oldest.
    pub newest: bool,
}

impl EventQuery {
    fn wants(&self, event: &Event) -> bool {
        self.after_seq.is_none_or(|after| event.seq > after)
            && self.service.as_ref().is_none_or(|service| event.service.as_ref() == Some(service))
            && self.kind.is_none_or(|kind| event.kind == kind.as_str())
    }

    /// Events from the database and from memory, as one list in order.
    pub(super) fn merge(&self, stored: Vec<Event>, ring: &VecDeque<Event>) -> Vec<Event> {
        let mut all: BTreeMap<i64, Event> = ring.iter().filter(|e| self.wants(e)).map(|e| (e.seq, e.clone())).collect();
        all.extend(stored.into_iter().map(|e| (e.seq, e)));
        let skip = if self.newest { all.len().saturating_sub(self.limit) } else { 0 };
        all.into_values().skip(skip).take(self.limit).collect()
    }
}

/// Runs a query against the file.
pub(super) fn events(path: &Path, query: &EventQuery) -> rusqlite::Result<Vec<Event>> {
    select(&db::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?, query)
}

/// Runs a query; the order is that of the numbers, unless `newest`, then the reverse.
pub(super) fn select(db: &Connection, query: &EventQuery) -> rusqlite::Result<Vec<Event>> {
    let order = if query.newest { "DESC" } else { "ASC" };
    let only = if query.service.is_some() { "service = ?2" } else { "?2 IS NULL" };
    let sql = format!(
        "SELECT seq, at_ms, service, kind, what, reason FROM events WHERE seq > ?1 AND {only} AND (?4 IS NULL OR kind = ?4) ORDER BY seq {order} \
         LIMIT ?3"
    );
    let after = query.after_seq.unwrap_or(i64::MIN);
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    db.prepare(&sql)?.query_map(params![after, query.service, limit, query.kind.map(Kind::as_str)], event)?.collect()
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        seq: row.get(0)?,
        at: Timestamp::from_millis(row.get(1)?),
        service: row.get(2)?,
        kind: row.get(3)?,
        what: row.get(4)?,
        reason: row.get(5)?,
    })
}

/// Number of restarts per service.
pub(super) fn restarts(db: &Connection) -> rusqlite::Result<BTreeMap<String, u32>> {
    db.prepare(
        "SELECT service, count(*) FROM events WHERE kind = 'action' AND what = 'restart' AND service IS NOT NULL \
         GROUP BY service",
    )?
    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
    .collect()
}

/// Contents of the memory table.
pub(super) fn memory(db: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
    db.prepare("SELECT key, value FROM memory")?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The highest number in use, 0 when there is none.
pub(super) fn last_seq(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))
}

/// The newest incidents. One that this labd cannot read is left out.
pub(super) fn incidents(db: &Connection) -> rusqlite::Result<Vec<Incident>> {
    let limit = u32::try_from(KEPT).unwrap_or(u32::MAX);
    let mut newest = db.prepare("SELECT body FROM incidents ORDER BY died_at_ms DESC, service LIMIT ?1")?;
    let bodies: Vec<String> = newest.query_map([limit], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(bodies.iter().filter_map(|body| serde_json::from_str(body).ok()).collect())
}

/// Incidents that nobody asked for, newest first, from this place on. One that this labd cannot read is left out.
pub(super) fn older_incidents(
    path: &Path,
    than: Option<&(Timestamp, String)>,
    most: usize,
) -> rusqlite::Result<Vec<Incident>> {
    let db = db::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let (at, service) = than.map_or((i64::MAX, ""), |(at, service)| (at.as_millis(), service.as_str()));
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let mut older = db.prepare(
        "SELECT body FROM incidents WHERE cause != ?4 AND (died_at_ms, service) < (?1, ?2) \
         ORDER BY died_at_ms DESC, service DESC LIMIT ?3",
    )?;
    let asked = Cause::Asked.as_str();
    let bodies = older.query_map(params![at, service, most, asked], |row| row.get::<_, String>(0))?;
    let bodies: Vec<String> = bodies.collect::<rusqlite::Result<_>>()?;
    Ok(bodies.iter().filter_map(|body| serde_json::from_str(body).ok()).collect())
}

/// Incidents by service and cause.
pub(super) fn incident_totals(db: &Connection) -> rusqlite::Result<BTreeMap<(String, Cause), Totals>> {
    let within: String = RECOVERY_BOUNDS.map(|s| format!(", coalesce(sum(recovery_ms <= {s}000), 0)")).concat();
    let mut sums = db.prepare(&format!(
        "SELECT service, cause, count(*), count(recovery_ms), coalesce(sum(recovery_ms), 0){within} FROM incidents \
         GROUP BY service, cause",
    ))?;
    let rows = sums.query_map([], |row| {
        let (service, cause): (String, String) = (row.get(0)?, row.get(1)?);
        let count = |column| row.get::<_, i64>(column).map(|n| u64::try_from(n).unwrap_or(0));
        let recovery = Duration::from_millis(count(4)?);
        let mut total = Totals { incidents: count(2)?, recovered: count(3)?, recovery, ..Totals::default() };
        for (i, within) in total.within.iter_mut().enumerate() {
            *within = count(5 + i)?;
        }
        Ok(Cause::ALL.into_iter().find(|c| c.as_str() == cause).map(|cause| ((service, cause), total)))
    })?;
    rows.filter_map(Result::transpose).collect()
}
