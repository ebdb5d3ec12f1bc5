// How things are said: ages, sizes, spans, and the look of every state. Words and units are those of `labd status`.

const SERVICE_LOOK = {
  'ready': 'good',
  'preparing': 'busy', 'waiting': 'busy', 'starting': 'busy', 'stopping': 'busy',
  'unhealthy': 'warn', 'backoff': 'warn',
  'crash-loop': 'bad', 'blocked': 'bad',
  'off': 'idle', 'held': 'idle', 'unavailable': 'bad',
};
// What cannot be had is bad news, unless the lab does without it.
const isDoneWithout = (s) => s.state === 'unavailable' && s.optional;
export const lookOf = (s) => (isDoneWithout(s) ? 'idle' : SERVICE_LOOK[s.state]);
export const JOB_LOOK = { SUCCEEDED: 'good', RUNNING: 'busy', PENDING: 'busy', FAILED: 'bad', STOPPED: 'idle' };
export const GPU_LOOK = { 'ok': 'good', 'missing': 'warn', 'quarantined': 'bad' };
export const RUN_LOOK = {
  FINISHED: 'good', ERRORED: 'bad', ABORTED: 'idle', RESTARTING: 'warn',
  RUNNING: 'busy', INITIALIZING: 'busy', SCHEDULING: 'busy', RESIZING: 'busy',
};
export const INSTALL_LOOK = { resolving: 'busy', installing: 'busy', waiting: 'busy', done: 'good', failed: 'bad' };
export const CHECK_LOOK = { ok: 'good', skipped: 'idle', warn: 'warn', fail: 'bad' };

export function age(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 5) return 'just now';
  if (s < 60) return `${Math.floor(s / 5) * 5} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min ago`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h ago`;
}

export function exact(iso) {
  return new Date(iso).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'long' });
}

// A time of day, with the day where that is not today's.
export function clock(at) {
  const then = new Date(at);
  const time = then.toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit' });
  return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString(undefined, { day: 'numeric', month: 'short' })}, ${time}`;
}

// A span as `labd status` says it: 0.4 s, 12 s, 3 min 20 s, 5 h 10 min.
export function span(ms) {
  if (ms < 0) return '0 s';
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i += 1; }
  return `${n >= 100 || i === 0 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

export function rounded(value, unit) {
  return value === undefined || value === null ? '–' : `${Math.round(value)} ${unit}`;
}

// Text without a terminal's colours.
// oxlint-disable-next-line no-control-regex
export const plain = (text) => text.replace(/\x1b\[[0-9;]*[A-Za-z]/g, '');

export function plural(n, one, many = `${one}s`) {
  return `${n} ${n === 1 ? one : many}`;
}

// A number of a training script: four digits that matter.
export function number(value) {
  if (value === null || value === undefined) return '–';
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

const mostOf = (looks) => ['bad', 'warn', 'busy'].find((look) => looks.includes(look));

// Work of the GPUs, in a sentence.
function work(s) {
  const jobs = s.jobs.filter((j) => j.status === 'RUNNING' && !j.resubmitted_as);
  const busy = new Set(jobs.flatMap((j) => j.workers || []));
  const gpus = s.gpus.filter((g) => g.worker).length;
  if (gpus === 0) return 'No GPU.';
  if (jobs.length === 0) return `${plural(gpus, 'GPU')}, no job.`;
  return `${busy.size} of ${plural(gpus, 'GPU')} ${busy.size === 1 ? 'works' : 'work'} for ${plural(jobs.length, 'job')}.`;
}

// GPUs that do not work, in sentences.
function kept(s) {
  return ['quarantined', 'missing'].flatMap((state) => {
    const found = s.gpus.filter((g) => g.state === state);
    if (found.length === 1) return [`${found[0].worker ? `The GPU of ${found[0].worker}` : `GPU ${found[0].id}`} is ${state}.`];
    return found.length ? [`${found.length} GPUs are ${state}.`] : [];
  });
}

// The lab in one sentence, and how that looks.
export function verdict(s) {
  // What is switched off is no part of it, nor what cannot be had and is not needed.
  const on = s.services.filter((x) => x.state !== 'off' && !isDoneWithout(x));
  const ready = on.filter((x) => x.state === 'ready').length;
  const worst = s.engine.state === 'unreachable' ? 'bad' : mostOf([...on.map(lookOf), ...s.gpus.map((g) => GPU_LOOK[g.state])]);
  const services = ready === on.length ? `All ${on.length} services ready.` : `${ready} of ${on.length} services ready.`;
  return [[services, ...kept(s), work(s)].join(' '), worst || (ready === on.length ? 'good' : 'idle')];
}
