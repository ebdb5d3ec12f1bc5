// The overview: the GPUs and whose they are, what runs, and what happened since this browser looked last.
import { html, useMemo } from '../../vendor/htm-preact.js';
import { GpuName, GpuTrouble, memoryOf } from '../gpu.js';
import { announce, isKnown, knownSince, lab, mayCommand, now, send } from '../lab.js';
import { Below, Bar, Pill, Section, Spark, Time, Trouble, coded, useFetch } from '../parts.js';
import { lines, sinceThen } from '../timeline.js';
import { GPU_LOOK, JOB_LOOK, RUN_LOOK, age, bytes, lookOf, plural, rounded } from '../words.js';
import { Before, Lines } from './timeline.js';

const SHOWN = 8;
const LOOKED = 'labd-looked';
const LONG_AGO_MS = 24 * 3600_000;
// A glance that is shorter may not have been one.
const VISIT_MS = 60_000;

// Time at which this browser looked last, before this visit.
const lookedLast = Number(localStorage.getItem(LOOKED)) || 0;
const cameAt = Date.now();
// A reload is no new visit: what it showed is shown again.
addEventListener('pagehide', () => {
  if (lab.snapshot && Date.now() - cameAt > VISIT_MS) localStorage.setItem(LOOKED, String(now()));
});

// Jobs that run on this worker.
const jobsOn = (worker) => lab.snapshot.jobs.filter((j) => j.status === 'RUNNING' && (j.workers || []).includes(worker));
// What is said of a GPU on which no job's training run is: `free` means that a job that asked for all of it now would get it.
export function unclaimed(g) {
  if (g.state !== 'ok' || !lab.snapshot.services.some((s) => s.name === g.worker && s.state === 'ready')) return 'no job';
  if (g.taken === null || g.taken === undefined) return 'no job';
  if (g.taken === 0) return 'free';
  return `${g.taken < 1 ? `${Math.round(g.taken * 100)} % ` : ''}in use: tasks, a notebook, Tune, or a run that starts`;
}
const jobLink = (id) => (isKnown() ? html`<a class="mono" href=${`#/jobs/${encodeURIComponent(id)}`}>${id}</a>` : html`<span class="mono">${id}</span>`);

// Jobs that run on a GPU, and who they are of.
export function Whose({ g }) {
  const jobs = g.worker ? jobsOn(g.worker) : [];
  return jobs.length ? jobs.map((j) => html`<span key=${j.submission_id}>${jobLink(j.submission_id)}${j.user && ` of ${j.user}`} </span>`)
    : html`<span class="soft">${unclaimed(g)}</span>`;
}

function GpuCard({ g, hour }) {
  const r = g.reading || {};
  return html`<li class="card gpu">
    <div class="head"><h3>${g.worker || g.id}</h3><${Pill} word=${g.state} look=${GPU_LOOK[g.state]} /></div>
    <p class="soft"><${GpuName} g=${g} /></p>
    <${GpuTrouble} g=${g} />
    <dl class="readings">
      <div><dt>Use</dt><dd>${rounded(r.utilisation_percent, '%')}</dd></div>
      <div><dt>Temperature</dt><dd>${rounded(r.temperature_c, '°C')}</dd></div>
      <div><dt>Power</dt><dd>${rounded(r.power_w, 'W')}</dd></div>
      <div class="whole"><dt>Memory</dt><dd>${memoryOf(g)}</dd>
        ${r.memory_used_bytes !== undefined && html`<${Bar} share=${r.memory_used_bytes / g.memory_bytes} />`}</div>
    </dl>
    ${hour && html`<${Spark} values=${hour.use} top=${100} label=${`use of ${g.worker || g.id} in the last hour`} />`}
    <p class="whose"><${Whose} g=${g} /></p>
  </li>`;
}

function Running() {
  const s = lab.snapshot;
  const open = s.jobs.filter((j) => j.status === 'RUNNING' || j.status === 'PENDING');
  if (!open.length) {
    const ever = s.jobs.length > 0;
    return html`<p class="soft">${ever ? 'No job runs now.' : html`No job yet. In JupyterLab, or with Ray's token: <code>ray job submit --working-dir . -- python train.py</code>`}</p>`;
  }
  return html`<ul class="cards">${open.map((j) => {
    const run = s.runs.find((r) => r.name === j.run);
    const installs = (s.installs || []).filter((i) => i.job === j.submission_id && !i.ended_at);
    return html`<li class="card" key=${j.submission_id}>
      <div class="head"><h3>${jobLink(j.submission_id)}</h3><${Pill} word=${j.status.toLowerCase()} look=${JOB_LOOK[j.status]} /></div>
      <p class="soft">${j.attempt > 1 ? `attempt ${j.attempt}, ` : ''}submitted ${j.submitted_at ? age(now() - Date.parse(j.submitted_at)) : '–'}${j.workers?.length ? `, on ${j.workers.join(', ')}` : ''}</p>
      ${j.waits_for && html`<${Below} note>waits: ${j.waits_for}<//>`}
      ${installs.map((i) => html`<${Below}>${i.node}: ${i.phase} ${i.packages ? plural(i.packages, 'package') : 'packages'}${i.bytes ? `, ${bytes(i.bytes)}` : ''}<//>`)}
      ${run && html`<p>${run.status && run.status !== 'RUNNING' && html`<${Pill} word=${`run ${run.status.toLowerCase()}`} look=${RUN_LOOK[run.status]} />`} ${run.checkpoint ? html`newest checkpoint <${Time} at=${run.checkpoint.at} />` : 'no checkpoint yet'}</p>`}
    </li>`;
  })}</ul>`;
}

function Since() {
  const all = lines(lab.events, lab.snapshot, false);
  const from = lookedLast || now() - LONG_AGO_MS;
  const { fresh, more } = sinceThen(all, from, SHOWN);
  const title = lookedLast ? `Since you looked ${age(now() - lookedLast)}` : 'In the last 24 hours';
  return html`<${Section} id="since-h" title=${title} aside=${html`<a href="#/timeline">timeline</a>`}>
    ${fresh.length ? html`<${Lines} list=${fresh} />` : html`<p class="soft">${lab.knowsEvents || !isKnown() ? 'Nothing happened.' : '…'}</p>`}
    ${more > 0 && html`<p class="soft">and ${more} more</p>`}
    ${knownSince() && Date.parse(knownSince()) > from && html`<${Before} />`}
  <//>`;
}

// Services that are not as they should be; all of them have a page of their own.
function Troubled() {
  const open = lab.snapshot.services.filter((s) => !['good', 'idle'].includes(lookOf(s)) || s.state === 'held');
  if (!open.length) return null;
  return html`<${Section} id="open-h" title="Services that are not ready" aside=${html`<a href="#/services">all services</a>`}>
    <ul class="lines">${open.map((s) => html`<li key=${s.name}><${Pill} word=${s.state} look=${lookOf(s)} /> <b>${s.name}</b> <span>${coded(s.progress || s.last_reason)}</span></li>`)}</ul>
  <//>`;
}

// Services' own pages that labd signs people in to, each under its path.
const DOOR = { 'Ray dashboard': '/ray/', 'Prometheus': '/prometheus/', 'MinIO console': '/minio/', 'Grafana': '/grafana/' };
const FOR_ADMINS = ['JupyterLab', 'MinIO console'];

// JupyterLab is on an origin of its own: a ticket, good once and soon, lets this person in there. It travels in the part of the
// address that browsers send to nobody.
async function openJupyter() {
  const answer = await send('POST', '/api/v1/jupyter/ticket');
  if (answer.status !== 200) { announce(answer.trouble); return; }
  window.open(`${answer.told.url}#ticket=${answer.told.ticket}`, '_blank', 'noopener');
}

function LinkTo({ l }) {
  if (l.name === 'JupyterLab' && mayCommand()) return html`<li><button type="button" onClick=${openJupyter}>JupyterLab</button></li>`;
  const inside = isKnown() && DOOR[l.name];
  if (inside) return html`<li><a href=${inside} target="_blank" rel="noopener">${l.name}</a></li>`;
  // Only what a browser may open: a link never runs anything.
  return /^https?:\/\//i.test(l.url) ? html`<li><a href=${l.url} rel="noopener noreferrer">${l.name}</a></li>` : html`<li><span>${l.name}: ${l.url}</span></li>`;
}

export function Links() {
  // This very page is no news here, and what only admins may open leads others nowhere.
  const links = lab.snapshot.links.filter((l) => l.name !== 'status page' && (lab.me.role === 'admin' || !FOR_ADMINS.includes(l.name)));
  return links.length ? html`<${Section} id="links-h" title="Links"><ul id="links" class="links">${links.map((l) => html`<${LinkTo} key=${l.name} l=${l} />`)}</ul><//>` : null;
}

export function Overview() {
  const s = lab.snapshot;
  const found = useFetch('/api/v1/gpus/history?hours=1&points=120', 30);
  const { data } = found;
  const hours = useMemo(() => new Map((data?.gpus || []).map((g) => [g.id, g])), [data]);
  return html`
    <${Section} id="gpus-h" title="GPUs" aside=${html`<a href="#/gpus">history</a>`}>
      ${s.gpus.length ? html`<ul id="gpu-cards" class="cards">${s.gpus.map((g) => html`<${GpuCard} key=${g.id} g=${g} hour=${hours.get(g.id)} />`)}</ul>`
    : html`<p class="soft">No GPU was found. <code>labd doctor</code> says why.</p>`}
      <${Trouble} of=${found} />
    <//>
    <${Section} id="running-h" title="Jobs" aside=${html`<a href="#/jobs">all jobs</a>`}><${Running} /><//>
    <${Troubled} />
    ${isKnown() && html`<${Since} />`}
    <${Links} />`;
}
