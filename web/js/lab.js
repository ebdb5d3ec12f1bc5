// The lab as labd tells it: who looks, the snapshot and the events, each streamed. Nothing here draws; `onChange` does.
const EVENTS_KEPT = 400;
// labd says `alive`, with its time, every 5 s; three missed ones mean that nobody is there.
const SILENCE_MS = 16_000;
export const AGAIN_MS = 3000;
// Longest wait for an answer that is no stream.
export const ANSWER_MS = 30_000;
// Token that commands must carry. labd tells it once, at the login, to this page alone.
const CSRF = 'labd-csrf';
const ME = '/api/v1/me';
const LOGIN = '/api/v1/login';

export const lab = {
  snapshot: null,
  events: [],
  // Whether labd has told what happened before.
  knowsEvents: false,
  // Who looks: name, role, and whether this page may command; null until labd said so.
  me: null,
  // Whether somebody must log in first, or wants to, and what went wrong with that.
  login: false,
  wantsLogin: false,
  trouble: '',
  said: '',
  lastHeard: 0,
  connected: false,
  // Ages are counted on labd's clock, not on the visitor's.
  clockOffset: 0,
};

let changed = () => {};
// The stream that is open.
let opened = null;
// Counts the starts: what an earlier one still waits for is nobody's any more.
let turn = 0;

export function onChange(callback) {
  changed = callback;
}

export const now = () => Date.now() + lab.clockOffset;
export const mayCommand = () => lab.me !== null && lab.me.may_command;
export const isKnown = () => lab.me !== null && Boolean(lab.me.name);

export function connection() {
  const silent = lab.lastHeard > 0 && Date.now() - lab.lastHeard > SILENCE_MS;
  if (lab.connected && !silent) return 'live';
  return lab.lastHeard === 0 ? 'waiting' : 'lost';
}

// A refusal in words: labd's problem details have a `detail`, Prometheus' answers an `error`.
export const troubleOf = (answer, told) => told.detail || told.error || `labd answered ${answer.status}`;

export async function send(method, path, body) {
  const headers = {};
  const token = sessionStorage.getItem(CSRF);
  if (token) headers['X-Labd-Csrf'] = token;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  try {
    const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal: AbortSignal.timeout(ANSWER_MS) });
    const told = await answer.json().catch(() => ({}));
    // The session is over: who looks is asked anew. That question is no reason for itself, nor is a wrong password.
    if (answer.status === 401 && isKnown() && path !== ME && !path.startsWith(LOGIN)) start();
    return { status: answer.status, told, trouble: answer.ok ? '' : troubleOf(answer, told) };
  } catch {
    return { status: 0, told: {}, trouble: 'labd did not answer' };
  }
}

export function announce(text) {
  lab.said = text;
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => { lab.said = ''; changed(); }, 8000);
  changed();
}

function heard() {
  lab.lastHeard = Date.now();
  lab.connected = true;
  changed();
}

// The session may be over: who looks is asked anew, at once unless that was just asked.
function lost(mine) {
  if (mine !== turn) return;
  lab.connected = false;
  changed();
  setTimeout(() => { if (mine === turn) start(); }, Math.max(0, startedAt + AGAIN_MS - Date.now()));
}

// One connection for all of it. Who may hear of it is told what happens, too; what happened before is asked for once the stream
// is there, so that nothing falls in between.
function stream(mine) {
  const source = new EventSource(`/api/v1/stream?deltas=true${isKnown() ? '&events=true' : ''}`);
  source.onopen = () => { if (isKnown()) fetchEvents(mine); };
  source.addEventListener('event', (message) => {
    addEvents([JSON.parse(message.data)]);
    changed();
  });
  source.addEventListener('snapshot', (message) => {
    lab.snapshot = JSON.parse(message.data);
    heard();
  });
  source.addEventListener('delta', (message) => {
    if (lab.snapshot) lab.snapshot = { ...lab.snapshot, ...JSON.parse(message.data) };
    heard();
  });
  source.addEventListener('alive', (message) => {
    lab.clockOffset = Date.parse(message.data) - Date.now();
    heard();
  });
  source.onerror = () => lost(mine);
  opened = source;
}

function addEvents(list) {
  const known = new Set(lab.events.map((e) => e.seq));
  const all = [...lab.events, ...list.filter((e) => !known.has(e.seq))];
  lab.events = all.sort((a, b) => b.seq - a.seq).slice(0, EVENTS_KEPT);
}

// Time from which on the page knows what happened; null where it knows all of it.
export const knownSince = () => (lab.events.length < EVENTS_KEPT ? null : lab.events.at(-1).at);

async function fetchEvents(mine) {
  const answer = await send('GET', `/api/v1/events?limit=${EVENTS_KEPT}`);
  if (mine !== turn) return;
  if (answer.status !== 200) {
    setTimeout(() => { if (mine === turn) fetchEvents(mine); }, AGAIN_MS);
    return;
  }
  addEvents(answer.told);
  lab.knowsEvents = true;
  changed();
}

function closeStream() {
  opened?.close();
  opened = null;
}

let startedAt = 0;

// A browser opens six connections to one origin, whatever the number of tabs, and each tab's stream holds one: one that nobody
// looks at gives it back, and one that nobody has looked at yet takes none. A screen on a wall is always looked at.
document.addEventListener('visibilitychange', () => {
  if (!startedAt) return;
  if (!document.hidden) start();
  else if (opened) {
    turn += 1;
    closeStream();
  }
});

// A connection that is half open never says so: the silence does, and it is begun anew.
export function revive() {
  const silent = lab.lastHeard > 0 && Date.now() - Math.max(lab.lastHeard, startedAt) > SILENCE_MS;
  if (silent && !document.hidden && lab.me) start();
}

// Asks who looks, and shows the lab, or the login.
export async function start() {
  closeStream();
  startedAt = Date.now();
  turn += 1;
  const mine = turn;
  const answer = await send('GET', ME);
  if (mine !== turn) return;
  if (answer.status === 0 || answer.status >= 500) {
    lab.connected = false;
    changed();
    setTimeout(() => { if (mine === turn) start(); }, AGAIN_MS);
    return;
  }
  if (answer.status !== 200) {
    sessionStorage.removeItem(CSRF);
    Object.assign(lab, { me: null, snapshot: null, events: [], knowsEvents: false, lastHeard: 0, connected: false, login: true });
    changed();
    return;
  }
  // Who is about to log in goes on with that.
  Object.assign(lab, { me: answer.told, login: lab.wantsLogin }, lab.wantsLogin ? {} : { trouble: '' });
  changed();
  if (!document.hidden) stream(mine);
}

export function askLogin(wants) {
  Object.assign(lab, { wantsLogin: wants, login: wants, trouble: '' });
  changed();
}

async function enter(path, body) {
  const answer = await send('POST', path, body);
  if (answer.status !== 200) return answer.trouble;
  sessionStorage.setItem(CSRF, answer.told.csrf);
  lab.wantsLogin = false;
  await start();
  return '';
}

export async function logIn(name, password) {
  lab.trouble = await enter(LOGIN, { name, password });
  changed();
}

export async function logOut() {
  const answer = await send('POST', '/api/v1/logout');
  sessionStorage.removeItem(CSRF);
  await start();
  lab.trouble = answer.trouble;
  changed();
}

// A link of `labd open`: its token is in the part of the address that browsers send to nobody, and good once.
export async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get('link');
  if (token) {
    history.replaceState(null, '', location.pathname);
    const trouble = await enter(`${LOGIN}/link`, { token });
    if (!trouble) return;
    await start();
    lab.trouble = trouble;
    if (lab.login) changed();
    else announce(trouble);
    return;
  }
  await start();
}
