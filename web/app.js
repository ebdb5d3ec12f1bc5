// The status page. It renders the snapshot that labd streams, nothing else: no state of its own that labd does not have.
// All text goes through textContent, so that nothing a job or a container says can become markup.
'use strict';

const LOOK = {
  'ready': 'good',
  'preparing': 'busy', 'waiting': 'busy', 'starting': 'busy', 'stopping': 'busy',
  'unhealthy': 'warn', 'backoff': 'warn',
  'crash-loop': 'bad', 'blocked': 'bad',
  'off': 'idle', 'held': 'idle', 'unavailable': 'idle',
};
const JOB_LOOK = { SUCCEEDED: 'good', RUNNING: 'busy', PENDING: 'busy', FAILED: 'bad', STOPPED: 'idle' };
const GPU_LOOK = { 'ok': 'good', 'missing': 'warn', 'quarantined': 'bad' };
const RUN_LOOK = {
  FINISHED: 'good', ERRORED: 'bad', ABORTED: 'idle', RESTARTING: 'warn',
  RUNNING: 'busy', INITIALIZING: 'busy', SCHEDULING: 'busy', RESIZING: 'busy',
};
const INSTALL_LOOK = { resolving: 'busy', installing: 'busy', waiting: 'busy', done: 'good', failed: 'bad' };
const EVENTS_SHOWN = 30;
const INCIDENTS_SHOWN = 8;
// labd says `alive`, with its time, every 5 s; three missed ones mean that nobody is there.
const SILENCE_MS = 16000;

const byId = (id) => document.getElementById(id);
let snapshot = null;
let events = [];
let lastHeard = 0;
let connected = false;
// Ages are counted on labd's clock, not on the visitor's.
let clockOffset = 0;
// Who looks: name and role; null until labd said so.
let me = null;
let sources = [];
// Counts the starts: what an earlier one still waits for is nobody's any more.
let turn = 0;
// Token that commands must carry. labd tells it once, at the login, to this page alone.
const CSRF = 'labd-csrf';

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  for (const child of children) {
    if (child !== undefined && child !== null) node.append(typeof child === 'string' ? document.createTextNode(child) : child);
  }
  return node;
}

// Replaces the children only where something changed: keeps focus, selection and a screen reader's place.
function fill(parent, nodes) {
  const old = Array.from(parent.children);
  nodes.forEach((node, i) => {
    if (i >= old.length) parent.append(node);
    else if (!old[i].isEqualNode(node)) replace(old[i], node);
  });
  old.slice(nodes.length).forEach((node) => node.remove());
}

// A button that is being pressed stays, and one that has the focus keeps it.
function replace(old, node) {
  if (old.querySelector('button:active')) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.dataset : {};
  old.replaceWith(node);
  if (focused.verb) node.querySelector(`button[data-verb="${focused.verb}"]`)?.focus();
}

function setText(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

function age(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 5) return 'just now';
  if (s < 60) return `${Math.floor(s / 5) * 5} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min ago`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h ago`;
}

function exact(iso) {
  return new Date(iso).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'long' });
}

function time(iso) {
  if (!iso) return make('span', {}, '–');
  return make('time', { datetime: iso, title: exact(iso) }, age(Date.now() + clockOffset - Date.parse(iso)));
}

function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i += 1; }
  return `${n >= 100 || i === 0 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

function pill(word, look) {
  return make('span', { class: `state ${look || 'idle'}` }, word);
}

function rows(id, items, columns, empty, row) {
  const body = byId(id).tBodies[0];
  fill(body, items.length ? items.map(row)
    : [make('tr', { }, make('td', { class: 'empty wide', colspan: columns }, empty))]);
}

function service(s) {
  const more = [];
  if (s.progress) more.push(s.progress);
  if (s.next_try) {
    const wait = Math.ceil((Date.parse(s.next_try) - Date.now() - clockOffset) / 1000);
    more.push(wait > 0 ? `tried again in ${wait} s` : 'being tried again');
  }
  return make('tr', {},
    make('th', { scope: 'row', title: s.container ? `container ${s.container}, ${s.image}` : s.image }, s.name),
    make('td', {}, pill(s.state, LOOK[s.state])),
    make('td', { 'data-label': 'since' }, time(s.since)),
    make('td', { class: 'num', 'data-label': 'restarts' }, String(s.restarts)),
    make('td', { class: 'wide' }, me && me.name ? commands(s) : null, s.last_reason || '–',
      more.length ? make('span', { class: 'below' }, more.join(' · ')) : null));
}

function mayCommand() {
  return me !== null && me.role === 'admin' && sessionStorage.getItem(CSRF) !== null;
}

// What a service prints, for whoever logged in, and what an admin may do with it.
function commands(s) {
  if (s.state === 'off' || s.state === 'unavailable') return null;
  const path = `/api/v1/services/${encodeURIComponent(s.name)}`;
  const verbs = !mayCommand() ? [] : s.state === 'held' ? ['start'] : ['restart', 'stop'];
  return make('span', { class: 'commands' },
    make('a', { href: `${path}/logs?tail=500`, target: '_blank', rel: 'noopener', 'aria-label': `logs of ${s.name}` }, 'logs'),
    ...verbs.map((verb) => button(verb, s.name, `${path}/${verb}`)));
}

// Button of a command. One listener for all of them reads the attributes.
function button(verb, name, path) {
  return make('button', { type: 'button', 'data-verb': verb, 'data-name': name, 'data-path': path, 'aria-label': `${verb} ${name}` }, verb);
}

const CONSEQUENCE = {
  restart: 'What runs in it is interrupted; labd resumes jobs from their checkpoints.',
  stop: 'It stays stopped until somebody starts it.',
  start: 'It is started and kept up from then on.',
  end: 'The job ends for good; its checkpoints stay.',
};

async function command({ verb, name, path }) {
  const dialog = byId('ask');
  setText('ask-text', `${verb[0].toUpperCase()}${verb.slice(1)} ${name}? ${CONSEQUENCE[verb]}`);
  setText('ask-yes', verb[0].toUpperCase() + verb.slice(1));
  dialog.returnValue = 'no';
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener('close', done, { once: true }));
  if (dialog.returnValue !== 'yes') return;
  const answer = await send('POST', path);
  announce(answer.message || answer.error || 'labd did not answer');
}

function announce(text) {
  setText('said', text);
  byId('said').hidden = false;
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => { byId('said').hidden = true; }, 8000);
}

async function send(method, path, body) {
  const headers = {};
  const token = sessionStorage.getItem(CSRF);
  if (token) headers['X-Labd-Csrf'] = token;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  try {
    const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    const told = await answer.json().catch(() => ({}));
    if (answer.status === 401 && me && me.name) start();
    return { status: answer.status, ...told };
  } catch {
    return { status: 0, error: 'labd did not answer' };
  }
}

function gpu(g) {
  const r = g.reading || {};
  const say = (value, unit) => value === undefined ? '–' : `${Math.round(value)} ${unit}`;
  const place = [g.pci && `PCI ${g.pci}`, g.numa_node != null && `NUMA node ${g.numa_node}`, g.partition].filter(Boolean);
  const slow = (r.throttled || []).filter((t) => t !== 'power-cap');
  return make('tr', {},
    make('th', { scope: 'row', title: [g.id, ...place].join(', ') }, g.worker || '–',
      make('span', { class: 'below mono id' }, g.id)),
    make('td', {}, pill(g.state, GPU_LOOK[g.state])),
    make('td', { class: 'wide' }, g.name, g.simulated ? make('span', { class: 'tag' }, 'simulated') : null,
      r.asleep ? make('span', { class: 'tag', title: 'not read, since that would wake it' }, 'asleep') : null,
      g.trouble ? make('span', { class: 'below note' }, `${g.trouble.code}: ${g.trouble.meaning}`) : null,
      slow.length ? make('span', { class: 'below note' }, `slowed down: ${slow.join(', ')}`) : null),
    make('td', { class: 'num', 'data-label': 'use' }, say(r.utilisation_percent, '%')),
    make('td', { class: 'num', 'data-label': 'memory' },
      r.memory_used_bytes === undefined ? bytes(g.memory_bytes) : `${bytes(r.memory_used_bytes)} of ${bytes(g.memory_bytes)}`),
    make('td', { class: 'num', 'data-label': 'temperature' }, say(r.temperature_c, '°C')),
    make('td', { class: 'num', 'data-label': 'power' }, say(r.power_w, 'W')));
}

function job(j) {
  return make('tr', {},
    make('th', { scope: 'row', class: 'mono' }, j.submission_id),
    // What labd runs again is no bad news.
    make('td', {}, j.resubmitted_as ? pill('lost', 'idle') : pill(j.status.toLowerCase(), JOB_LOOK[j.status])),
    make('td', { 'data-label': 'submitted', class: 'wide' }, time(j.submitted_at)),
    make('td', { 'data-label': 'run', class: 'wide' }, j.run || '–'),
    make('td', { class: 'wide' }, mayCommand() && !j.outcome && j.attempt ? make('span', { class: 'commands' },
      button('end', j.submission_id, `/api/v1/jobs/${encodeURIComponent(j.submission_id)}/stop`)) : null,
      make('code', {}, j.entrypoint),
      j.message ? make('span', { class: 'below' }, j.message) : null));
}

function took(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
}

function install(i) {
  const until = i.ended_at ? Date.parse(i.ended_at) : Date.now() + clockOffset;
  return make('tr', {},
    make('th', { scope: 'row', class: 'mono' }, i.job || '–'),
    make('td', {}, pill(i.phase, INSTALL_LOOK[i.phase])),
    make('td', { 'data-label': 'on', class: 'wide' }, i.node,
      i.reason ? make('span', { class: i.phase === 'failed' ? 'below note' : 'below' }, i.reason) : null),
    make('td', { class: 'num', 'data-label': 'packages' }, i.packages ? String(i.packages) : '–'),
    make('td', { class: 'num', 'data-label': 'size' }, i.bytes ? bytes(i.bytes) : '–'),
    make('td', { class: 'num', 'data-label': 'takes', title: `since ${exact(i.since)}` }, took(until - Date.parse(i.since))));
}

function run(r) {
  const c = r.checkpoint;
  const looked = r.looked_at ? `listed ${exact(r.looked_at)}` : 'not listed';
  return make('tr', {},
    make('th', { scope: 'row' }, r.name,
      r.attempts > 1 ? make('span', { class: 'below' }, `worker group ${r.attempts}`) : null),
    make('td', {}, r.status ? pill(r.status.toLowerCase(), RUN_LOOK[r.status]) : pill('kept', 'idle')),
    make('td', { 'data-label': 'newest checkpoint', class: 'wide', title: c ? c.name : looked }, c ? time(c.at) : 'none',
      r.note ? make('span', { class: 'below note' }, r.note) : null),
    make('td', { class: 'num', 'data-label': 'size' }, c ? bytes(c.bytes) : '–'),
    make('td', { class: 'num', 'data-label': 'kept' }, r.looked_at ? String(r.checkpoints) : '–'),
    make('td', { class: 'num', 'data-label': 'used', title: looked }, r.looked_at ? bytes(r.used_bytes) : '–'));
}

function demand(d) {
  return make('tr', {},
    make('th', { scope: 'row' }, d.asks_for),
    make('td', { class: 'num', 'data-label': 'requests' }, String(d.count)),
    make('td', { 'data-label': 'largest node has', class: 'wide' }, d.node_has),
    make('td', { class: 'wide' }, d.infeasible ? pill('can never be met here', 'warn') : pill('waits its turn', 'busy')));
}

function event(e) {
  return make('tr', {},
    make('td', {}, time(e.at)),
    make('td', {}, e.service || 'labd'),
    make('td', { class: 'wide' }, e.kind === 'state' ? pill(e.what, LOOK[e.what]) : e.what),
    make('td', { class: 'wide' }, e.reason));
}

// How long after the death something was so again.
function after(death, iso) {
  if (!iso) return '–';
  const ms = Date.parse(iso) - Date.parse(death.died_at);
  return ms < 1000 ? `${ms} ms` : ms < 60000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 60000)} min`;
}

function incident(i) {
  // A process in it was killed, and the container lives on: nothing had to come back.
  const inside = i.cause === 'oom-inside';
  return make('tr', {},
    make('td', {}, time(i.died_at)),
    make('th', { scope: 'row' }, i.service),
    make('td', { class: 'num', 'data-label': 'runs again after' }, inside ? 'lives on' : after(i, i.running_at)),
    make('td', { class: 'num', 'data-label': 'ready after' }, inside ? 'lives on' : after(i, i.ready_at)),
    make('td', { class: 'wide' }, i.why));
}

function notice(n) {
  const word = { info: 'Note', warning: 'Warning', error: 'Problem' }[n.severity] || n.severity;
  return make('li', { class: `notice ${n.severity}` }, make('b', {}, word), n.text);
}

// Services' own pages that labd signs people in to, each under its path.
const DOOR = { 'Ray dashboard': '/ray/', 'Prometheus': '/prometheus/', 'MinIO console': '/minio/' };

function link(l) {
  const inside = me && me.name && DOOR[l.name];
  if (inside && (inside !== '/minio/' || me.role === 'admin')) {
    return make('li', {}, make('a', { href: inside, target: '_blank', rel: 'noopener' }, l.name));
  }
  // Only what a browser may open: a link never runs anything.
  const safe = /^https?:\/\//i.test(l.url);
  return make('li', {}, safe ? make('a', { href: l.url, rel: 'noopener noreferrer' }, l.name) : make('span', {}, `${l.name}: ${l.url}`));
}

function fact(name, value, title) {
  return make('div', { title }, make('dt', {}, name), make('dd', {}, value));
}

function engineWords(e) {
  if (e.state === 'reachable') return `answers, ${e.version}`;
  if (e.state === 'unreachable') return 'does not answer';
  return 'connecting';
}

// What the GPUs do, in a sentence.
function work(s) {
  const jobs = s.jobs.filter((j) => j.status === 'RUNNING' && !j.resubmitted_as);
  const busy = new Set(jobs.flatMap((j) => j.workers || []));
  const gpus = s.gpus.filter((g) => g.worker).length;
  if (gpus === 0) return 'No GPU.';
  const some = `${busy.size} of ${gpus} GPU${gpus === 1 ? '' : 's'}`;
  if (jobs.length === 0) return `${gpus} GPU${gpus === 1 ? '' : 's'}, no job.`;
  return `${some} work${busy.size === 1 ? 's' : ''} for ${jobs.length} job${jobs.length === 1 ? '' : 's'}.`;
}

function verdict(s) {
  const on = s.services.filter((x) => x.state !== 'off');
  const ready = on.filter((x) => x.state === 'ready').length;
  const looks = on.map((x) => LOOK[x.state]);
  const look = looks.includes('bad') || s.engine.state === 'unreachable' ? 'bad'
    : looks.includes('warn') ? 'warn'
      : looks.includes('busy') ? 'busy'
        : ready === on.length ? 'good' : 'idle';
  const services = ready === on.length ? `All ${on.length} services ready.` : `${ready} of ${on.length} services ready.`;
  return [`${services} ${work(s)}`, look];
}

function render() {
  if (!snapshot) return;
  const s = snapshot;
  document.title = `${s.labd.lab} · labd`;
  setText('lab', s.labd.lab);
  const [words, look] = verdict(s);
  setText('verdict', words);
  byId('verdict').className = `state ${look}`;

  const n = s.node;
  const facts = [
    fact('Node', `${n.hostname} (${n.address})`),
    fact('CPUs', `${n.cpus}${n.numa_nodes > 1 ? ` on ${n.numa_nodes} NUMA nodes` : ''}, load ${n.load_1m.toFixed(1)}`),
    fact('Memory', `${bytes(n.memory_available_bytes)} free of ${bytes(n.memory_bytes)}`),
    ...n.disks.map((d) => fact(`Disk ${d.mount}`, `${bytes(d.available_bytes)} free of ${bytes(d.total_bytes)}`)),
    fact('Container engine', engineWords(s.engine), s.engine.reason),
  ];
  fill(byId('facts'), facts);

  byId('notices-section').hidden = s.notices.length === 0;
  fill(byId('notices'), s.notices.map(notice));

  rows('services', s.services, 5, 'No service is planned.', service);
  rows('gpus', s.gpus, 7, 'No GPU was found.', gpu);
  rows('jobs', s.jobs, 5, 'No job yet.', job);
  const installs = s.installs || [];
  byId('installs-section').hidden = installs.length === 0;
  rows('installs', installs, 6, '', install);
  setText('package-store', s.package_store_bytes ? `${bytes(s.package_store_bytes)} of packages are kept for later jobs.` : '');
  byId('runs-section').hidden = s.runs.length === 0;
  rows('runs', s.runs, 6, '', run);
  byId('demands-section').hidden = s.demands.length === 0;
  rows('demands', s.demands, 4, '', demand);
  const incidents = (s.incidents || []).slice(0, INCIDENTS_SHOWN);
  byId('incidents-section').hidden = incidents.length === 0;
  rows('incidents', incidents, 5, '', incident);
  byId('links-section').hidden = s.links.length === 0;
  fill(byId('links'), s.links.map(link));
  rows('events', events, 4, 'Nothing has happened yet.', event);
  setText('daemon', `labd ${s.labd.version}, pid ${s.labd.pid}, running since ${exact(s.labd.started_at)}; `
    + (s.labd.config ? `configured by ${s.labd.config}` : 'no configuration file, defaults apply'));
}

function renderConnection() {
  const node = byId('connection');
  const silent = lastHeard > 0 && Date.now() - lastHeard > SILENCE_MS;
  const alive = connected && !silent;
  let text = 'live';
  let look = '';
  if (!alive && lastHeard === 0) { text = 'connecting …'; look = 'waiting'; }
  else if (!alive) { text = `connection lost, last seen ${new Date(lastHeard).toLocaleTimeString()}`; look = 'lost'; }
  if (node.textContent !== text) node.textContent = text;
  node.className = `connection ${look}`;
  document.body.classList.toggle('stale', look === 'lost');
}

function heard() {
  lastHeard = Date.now();
  connected = true;
  renderConnection();
}

function lost(source, mine) {
  if (mine !== turn) return;
  connected = false;
  renderConnection();
  // The browser tries again by itself, except after an HTTP error.
  if (source.readyState === EventSource.CLOSED) setTimeout(() => { if (mine === turn) start(); }, 3000);
}

function streamSnapshots(mine) {
  const source = new EventSource('/api/v1/stream');
  source.addEventListener('snapshot', (message) => {
    snapshot = JSON.parse(message.data);
    heard();
    render();
  });
  source.addEventListener('alive', (message) => {
    clockOffset = Date.parse(message.data) - Date.now();
    heard();
  });
  source.onerror = () => lost(source, mine);
  sources.push(source);
}

function addEvents(list) {
  const known = new Set(events.map((e) => e.seq));
  for (const e of list) if (!known.has(e.seq)) events.push(e);
  events.sort((a, b) => b.seq - a.seq);
  events = events.slice(0, EVENTS_SHOWN);
}

async function streamEvents(mine) {
  const again = () => setTimeout(() => { if (mine === turn) streamEvents(mine); }, 3000);
  try {
    const answer = await fetch(`/api/v1/events?limit=${EVENTS_SHOWN}`);
    if (mine !== turn) return;
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    addEvents(await answer.json());
    if (mine !== turn) return;
    render();
  } catch {
    again();
    return;
  }
  const source = new EventSource(`/api/v1/events/stream?after=${events.length ? events[0].seq : 0}`);
  source.addEventListener('event', (message) => {
    addEvents([JSON.parse(message.data)]);
    render();
  });
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) again(); };
  sources.push(source);
}

function close() {
  sources.forEach((source) => source.close());
  sources = [];
  me = null;
}

function showLogin() {
  const isNew = byId('login').hidden;
  byId('login').hidden = false;
  byId('lab-page').hidden = true;
  if (isNew) byId('login-name').focus();
}

// Asks who looks, and shows the lab, or the login.
async function start() {
  close();
  turn += 1;
  const mine = turn;
  const answer = await send('GET', '/api/v1/me');
  if (mine !== turn) return;
  if (answer.status === 0 || answer.status >= 500) {
    connected = false;
    renderConnection();
    setTimeout(() => { if (mine === turn) start(); }, 3000);
    return;
  }
  const known = answer.status === 200;
  for (const id of ['facts', 'verdict', 'connection', 'who']) byId(id).hidden = !known;
  if (!known) {
    sessionStorage.removeItem(CSRF);
    snapshot = null;
    events = [];
    lastHeard = 0;
    showLogin();
    return;
  }
  me = answer;
  byId('login').hidden = true;
  byId('lab-page').hidden = false;
  setText('who-name', me.name ? `${me.name} (${me.role})` : 'not logged in');
  // Another tab's login is no login for this one to command by.
  const asks = !me.name || (me.role === 'admin' && !mayCommand());
  byId('enter').hidden = !asks;
  setText('enter', me.name ? 'Log in again to command' : 'Log in');
  byId('logout').hidden = !me.name;
  byId('events-section').hidden = !me.name;
  streamSnapshots(mine);
  if (me.name) streamEvents(mine);
}

async function login(path, body) {
  setText('login-trouble', '');
  const answer = await send('POST', path, body);
  if (answer.status !== 200) {
    setText('login-trouble', answer.error || 'labd did not answer');
    return;
  }
  sessionStorage.setItem(CSRF, answer.csrf);
  byId('login-password').value = '';
  await start();
}

byId('login-form').addEventListener('submit', (submitted) => {
  submitted.preventDefault();
  login('/api/v1/login', { name: byId('login-name').value, password: byId('login-password').value });
});
byId('enter').addEventListener('click', showLogin);
byId('logout').addEventListener('click', async () => {
  const answer = await send('POST', '/api/v1/logout');
  sessionStorage.removeItem(CSRF);
  await start();
  if (answer.error) setText('login-trouble', answer.error);
});
byId('lab-page').addEventListener('click', (click) => {
  const pressed = click.target.closest('button[data-verb]');
  if (pressed) command(pressed.dataset);
});

// A link of `labd open`: its token is in the part of the address that browsers send to nobody, and good once.
async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get('link');
  if (token) {
    history.replaceState(null, '', location.pathname);
    await login('/api/v1/login/link', { token });
    if (me) return;
    const trouble = byId('login-trouble').textContent;
    await start();
    setText('login-trouble', trouble);
    return;
  }
  await start();
}

begin();
setInterval(() => { renderConnection(); render(); }, 5000);
