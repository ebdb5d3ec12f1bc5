// The status page. It renders what labd tells, nothing else: no state of its own that labd does not have.
import { html, render, useEffect, useState } from '../vendor/htm-preact.js';
import { askLogin, begin, connection, isKnown, lab, logIn, logOut, mayCommand, onChange, revive } from './lab.js';
import { Question, coded } from './parts.js';
import { Doctor } from './views/doctor.js';
import { Gpus } from './views/gpus.js';
import { Job } from './views/job.js';
import { Jobs } from './views/jobs.js';
import { ServiceLog } from './views/logs.js';
import { Metrics } from './views/metrics.js';
import { Overview } from './views/overview.js';
import { Services } from './views/services.js';
import { Timeline } from './views/timeline.js';
import { Usage } from './views/usage.js';
import { Wall } from './views/wall.js';
import { bytes, exact, verdict } from './words.js';

// Views by the first part of the address behind `#/`, in the order of the menu.
const VIEWS = [
  ['', 'Overview', Overview],
  ['jobs', 'Jobs', Jobs],
  ['gpus', 'GPUs', Gpus],
  ['services', 'Services', Services],
  ['timeline', 'Timeline', Timeline],
  ['metrics', 'Metrics', Metrics],
  ['usage', 'Usage', Usage],
  ['doctor', 'Doctor', Doctor],
];
const REDRAW_MS = 5000;

// Place in the address: `#/jobs/food11` is ['jobs', 'food11']; `#wall` is the wall.
function place() {
  if (location.hash === '#wall') return ['wall'];
  return location.hash.replace(/^#\/?/, '').split('/').map((part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
}

function Connection() {
  const state = connection();
  const words = { live: 'live', waiting: 'connecting …' }[state] || `connection lost, last seen ${new Date(lab.lastHeard).toLocaleTimeString()}`;
  return html`<p id="connection" class=${`connection ${state}`} role="status" aria-live="polite">${words}</p>`;
}

function engineWords(e) {
  if (e.state === 'reachable') return `answers, ${e.version}`;
  return e.state === 'unreachable' ? 'does not answer' : 'connecting';
}

function Facts({ s }) {
  const n = s.node;
  const facts = [
    ['Node', `${n.hostname} (${n.address})`],
    ['CPUs', `${n.cpus}${n.numa_nodes > 1 ? ` on ${n.numa_nodes} NUMA nodes` : ''}, load ${n.load_1m.toFixed(1)}`],
    ['Memory', `${bytes(n.memory_available_bytes)} free of ${bytes(n.memory_bytes)}`],
    ...n.disks.map((d) => [`Disk ${d.mount}`, `${bytes(d.available_bytes)} free of ${bytes(d.total_bytes)}`]),
    ['Container engine', engineWords(s.engine), s.engine.reason],
  ];
  return html`<dl id="facts" class="facts" aria-label="Node and engine">${facts.map(([name, value, title]) => html`<div key=${name} title=${title}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

// Good-to-know ones are told on the overview alone.
function Notices({ s, at }) {
  const word = { info: 'Note', warning: 'Warning', error: 'Problem' };
  const told = s.notices.filter((n) => n.severity !== 'info' || !at);
  return told.length ? html`<ul id="notices" class="notices" aria-live="polite" aria-label="Notices">
    ${told.map((n) => html`<li key=${n.text} class=${`notice ${n.severity}`}><b>${word[n.severity] || n.severity}</b>${coded(n.text)}</li>`)}</ul>` : null;
}

function Who() {
  if (!lab.me) return null;
  // Another tab's login is no login for this one to command by.
  const asks = !isKnown() || (lab.me.role === 'admin' && !mayCommand());
  return html`<p id="who" class="who"><span id="who-name">${isKnown() ? `${lab.me.name} (${lab.me.role})` : 'not logged in'}</span>
    ${asks && html` <button id="enter" type="button" onClick=${() => askLogin(true)}>${isKnown() ? 'Log in again to command' : 'Log in'}</button>`}
    ${isKnown() && html` <button id="logout" type="button" onClick=${logOut}>Log out</button>`}</p>`;
}

function Login() {
  const [name, setName] = useState('');
  const [password, setPassword] = useState('');
  useEffect(() => document.getElementById('login-name').focus(), []);
  const submit = (event) => { event.preventDefault(); logIn(name, password); };
  return html`<main id="login" class="login">
    <h2>Log in</h2>
    <form id="login-form" onSubmit=${submit}>
      <label for="login-name">Name</label>
      <input id="login-name" name="name" autocomplete="username" autocapitalize="none" spellcheck=${false} required
        value=${name} onInput=${(e) => setName(e.target.value)} />
      <label for="login-password">Password</label>
      <input id="login-password" name="password" type="password" autocomplete="current-password" required value=${password} onInput=${(e) => setPassword(e.target.value)} />
      <button type="submit">Log in</button>
      ${lab.me && html`<button id="login-cancel" type="button" onClick=${() => askLogin(false)}>Cancel</button>`}
      <p id="login-trouble" class="trouble" role="alert">${lab.trouble}</p>
    </form>
    <p class="soft">No account? <code>labd open</code> on the machine prints a link that works once; <code>sudo labd user add NAME</code> makes an account.</p>
  </main>`;
}

function Menu({ at }) {
  return html`<nav aria-label="Views"><ul>${VIEWS.map(([key, word]) => html`<li key=${key}><a href=${`#/${key}`} aria-current=${key === at ? 'page' : null}>${word}</a></li>`)}</ul></nav>`;
}

function Page() {
  const [at, ...rest] = place();
  const s = lab.snapshot;
  document.body.classList.toggle('stale', connection() === 'lost');
  document.body.classList.toggle('on-wall', at === 'wall');
  document.title = s ? `${s.labd.lab} · labd` : 'labd';
  if (lab.login) return html`<header><div class="title"><h1 id="lab">labd</h1></div></header><${Login} />`;
  if (!s) return html`<header><div class="title"><h1 id="lab">labd</h1></div><${Connection} /></header><main></main>`;
  if (at === 'wall') return html`<main><${Wall} /></main><${Connection} />`;
  const [words, look] = verdict(s);
  const found = VIEWS.find(([key]) => key === at);
  const view = at === 'logs' && rest[0] ? html`<${ServiceLog} key=${rest[0]} name=${rest[0]} />`
    : at === 'jobs' && rest[0] ? html`<${Job} key=${rest.join('/')} id=${rest.join('/')} />`
      : found ? html`<${found[2]} />` : html`<section id="no-view"><p class="trouble">There is no view “${at}”. <a href="#/">Overview</a></p></section>`;
  return html`
    <a class="skip" href="#view" onClick=${(e) => { e.preventDefault(); document.getElementById('view').focus(); }}>Skip to the content</a>
    <header>
      <div class="title"><h1 id="lab">${s.labd.lab}</h1><p id="verdict" class=${`state ${look}`} role="status" aria-live="polite">${words}</p></div>
      <div class="aside"><${Connection} /><${Who} /></div>
      <${Facts} s=${s} />
    </header>
    <${Menu} at=${at} />
    <main id="view" tabindex="-1"><${Notices} s=${s} at=${at} />${view}</main>
    <p id="said" class="said" role="status" aria-live="polite" hidden=${!lab.said}>${coded(lab.said)}</p>
    <footer><p id="daemon">labd ${s.labd.version}, pid ${s.labd.pid}, running since ${exact(s.labd.started_at)}; ${s.labd.config ? `configured by ${s.labd.config}` : 'no configuration file, defaults apply'}</p></footer>
    <${Question} />`;
}

const root = document.getElementById('page');
let drawing = false;
function draw() {
  if (drawing) return;
  drawing = true;
  // A hidden tab draws nothing until it is looked at; timers go on there, slowly.
  const soon = document.hidden ? (f) => setTimeout(f, 0) : requestAnimationFrame;
  soon(() => { drawing = false; render(html`<${Page} />`, root); });
}

root.replaceChildren();
onChange(draw);
addEventListener('hashchange', () => {
  // A link of `labd open` that is pasted over an open page.
  if (location.hash.startsWith('#link=')) begin();
  draw();
  scrollTo(0, 0);
});
begin();
draw();
setInterval(() => { revive(); draw(); }, REDRAW_MS);
