// What a person would tell of the journal: one line for a death and its recovery, not six. Pure.

// States that are news by themselves: the rest is told by the incident, the command or the job that they belong to.
const TOLD_STATES = new Set(['crash-loop', 'blocked', 'unavailable', 'unhealthy']);
const WORD = { incident: 'died', job: 'job', gpu: 'GPU', person: 'person', config: 'settings', image: 'image', daemon: 'labd' };
const LOOK = { incident: 'warn', job: 'idle', gpu: 'warn', person: 'busy', config: 'idle', image: 'idle', daemon: 'idle' };

export function isTold(event) {
  if (event.kind === 'state') return TOLD_STATES.has(event.what);
  if (event.kind === 'action') return false;
  return event.kind in WORD;
}

function look(event) {
  if (event.kind === 'state') return event.what === 'unhealthy' ? 'warn' : 'bad';
  if (event.kind === 'incident') return { asked: 'idle', training: 'good' }[event.what] || 'warn';
  if (event.kind === 'job') return { failed: 'bad', lost: 'warn', succeeded: 'good' }[event.what] || 'idle';
  return LOOK[event.kind];
}

function word(event) {
  if (event.kind === 'state') return event.what;
  if (event.kind === 'incident') return { 'asked': 'on request', 'oom-inside': 'out of memory', 'training': 'trains again' }[event.what] || 'died';
  if (event.kind === 'job') return event.what;
  return WORD[event.kind];
}

const line = (event) => ({ key: event.seq, at: event.at, who: event.service || 'labd', word: word(event), look: look(event), text: event.reason });

// Lines of a timeline, newest first: what is told of `events`, and the deaths that are not over yet, which the journal has
// only when they are.
export function lines(events, { incidents = [], services }, all) {
  const told = events.filter((event) => all || isTold(event)).map((event) => (all && !isTold(event)
    ? { key: event.seq, at: event.at, who: event.service || 'labd', word: event.what, look: 'idle', text: event.reason }
    : line(event)));
  // Newest first: an older one of the same service was cut short by this one.
  const newest = incidents.filter((i, n) => incidents.findIndex((other) => other.service === i.service) === n);
  const isOpen = (i) => !i.ready_at && i.cause !== 'oom-inside'
    && services.some((s) => s.name === i.service && !['ready', 'held', 'off'].includes(s.state));
  const open = newest.filter(isOpen).map((i) => ({
    key: `${i.service}-${i.died_at}`, at: i.died_at, who: i.service, word: 'coming back', look: 'busy',
    text: `${i.why}; ${i.running_at ? 'its container runs again' : 'labd starts it again'}`,
  }));
  return [...open, ...told];
}

// Lines since `since` (ISO or null), at most `most`; how many more there are.
export function sinceThen(all, since, most) {
  const fresh = since ? all.filter((l) => Date.parse(l.at) > since) : all;
  return { fresh: fresh.slice(0, most), more: Math.max(0, fresh.length - most) };
}

// The same day's lines under one heading.
export function byDay(all) {
  const days = [];
  for (const l of all) {
    const day = new Date(l.at).toLocaleDateString(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
    if (!days.length || days.at(-1).day !== day) days.push({ day, lines: [] });
    days.at(-1).lines.push(l);
  }
  return days;
}
