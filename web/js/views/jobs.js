// All jobs, their runs, the packages they wait for and what they ask of the lab in vain.
import { html } from '../../vendor/htm-preact.js';
import { isKnown, lab, now } from '../lab.js';
import { Below, Command, Pill, Section, Table, Time, useOlder } from '../parts.js';
import { INSTALL_LOOK, JOB_LOOK, RUN_LOOK, bytes, exact, span } from '../words.js';

// So many jobs labd tells of without being asked.
const MOST = 50;

// What labd runs again is no bad news.
export const JobPill = ({ j }) => (j.resubmitted_as ? html`<${Pill} word="lost" look="idle" />` : html`<${Pill} word=${j.status.toLowerCase()} look=${JOB_LOOK[j.status]} />`);

export function StopJob({ j }) {
  if (j.outcome || !j.attempt) return null;
  return html`<${Command} verb="stop" name=${j.submission_id} path=${`/api/v1/jobs/${encodeURIComponent(j.submission_id)}/stop`}
    consequence="The job ends for good; its checkpoints stay." />`;
}

function job(j) {
  return html`<tr key=${j.submission_id}>
    <th scope="row" class="mono">${isKnown() ? html`<a href=${`#/jobs/${encodeURIComponent(j.submission_id)}`}>${j.submission_id}</a>` : j.submission_id}
      ${j.attempt > 1 && html`<${Below}>attempt ${j.attempt}${j.resubmission_of && ` of ${j.resubmission_of}`}<//>`}
      ${j.user && html`<${Below}>${j.user}<//>`}</th>
    <td><${JobPill} j=${j} /></td>
    <td data-label="submitted" class="wide"><${Time} at=${j.submitted_at} /></td>
    <td data-label="run" class="wide">${j.run || '–'}</td>
    <td class="wide"><span class="commands"><${StopJob} j=${j} /></span><code>${j.entrypoint}</code>
      ${j.waits_for && html`<${Below} note>waits: ${j.waits_for}<//>`}
      ${j.message && html`<${Below}>${j.message}<//>`}${j.note && html`<${Below} note>${j.note}<//>`}</td>
  </tr>`;
}

export function install(i) {
  const until = i.ended_at ? Date.parse(i.ended_at) : now();
  return html`<tr key=${i.node + i.since}>
    <th scope="row" class="mono">${i.job || '–'}</th>
    <td><${Pill} word=${i.phase} look=${INSTALL_LOOK[i.phase]} /></td>
    <td data-label="on" class="wide">${i.node}${i.reason && html`<${Below} note=${i.phase === 'failed'}>${i.reason}<//>`}</td>
    <td class="num" data-label="packages">${i.packages || '–'}</td>
    <td class="num" data-label="size">${i.bytes ? bytes(i.bytes) : '–'}</td>
    <td class="num" data-label="takes" title=${`since ${exact(i.since)}`}>${span(until - Date.parse(i.since))}</td>
  </tr>`;
}

export const INSTALLS_HEAD = [['Job'], ['Status'], ['On'], ['Packages', 'num'], ['Size', 'num'], ['Takes', 'num']];

function run(r) {
  const looked = r.looked_at ? `listed ${exact(r.looked_at)}` : 'not listed';
  return html`<tr key=${r.name}>
    <th scope="row">${r.name}${r.attempts > 1 && html`<${Below}>worker group ${r.attempts}<//>`}</th>
    <td>${r.status ? html`<${Pill} word=${r.status.toLowerCase()} look=${RUN_LOOK[r.status]} />` : html`<${Pill} word="kept" />`}</td>
    <td data-label="newest checkpoint" class="wide" title=${r.checkpoint ? r.checkpoint.name : looked}>${r.checkpoint ? html`<${Time} at=${r.checkpoint.at} />` : 'none'}
      ${r.note && html`<${Below} note>${r.note}<//>`}</td>
    <td class="num" data-label="size">${r.checkpoint ? bytes(r.checkpoint.bytes) : '–'}</td>
    <td class="num" data-label="kept">${r.looked_at ? r.checkpoints : '–'}</td>
    <td class="num" data-label="used" title=${looked}>${r.looked_at ? bytes(r.used_bytes) : '–'}</td>
  </tr>`;
}

// A job that was lost is one with what runs in its place, and told there; its own page has every attempt.
function newest(jobs) {
  const there = new Set(jobs.map((j) => j.submission_id));
  return jobs.filter((j) => !there.has(j.resubmitted_as));
}

export function Jobs() {
  const s = lab.snapshot;
  const [jobs, more] = useOlder('/api/v1/jobs', 'jobs', s.jobs, MOST, (j) => j.submission_id);
  const installs = s.installs || [];
  return html`
    <${Section} id="jobs-h" title="Jobs">
      <${Table} id="jobs" items=${newest(jobs)} row=${job} empty="No job yet."
        head=${[['Job'], ['Status'], ['Submitted'], ['Run'], ['Command']]} />
      ${more}
    <//>
    ${s.demands.length > 0 && html`<${Section} id="demands-h" title="Waiting for resources">
      <${Table} id="demands" items=${s.demands} head=${[['Asks for'], ['Requests', 'num'], ['Largest node has'], ['Outlook']]}
        row=${(d) => html`<tr><th scope="row">${d.asks_for}</th><td class="num" data-label="requests">${d.count}</td>
          <td data-label="largest node has" class="wide">${d.node_has}</td>
          <td class="wide">${d.infeasible ? html`<${Pill} word="can never be met here" look="warn" />` : html`<${Pill} word="waits its turn" look="busy" />`}</td></tr>`} />
    <//>`}
    ${installs.length > 0 && html`<${Section} id="installs-h" title="Package installations">
      <${Table} id="installs" items=${installs} head=${INSTALLS_HEAD} row=${install} /><//>`}
    ${s.package_store_bytes > 0 && html`<p class="soft">${bytes(s.package_store_bytes)} of packages are kept for later jobs.</p>`}
    ${s.runs.length > 0 && html`<${Section} id="runs-h" title="Training runs">
      <${Table} id="runs" items=${s.runs} row=${run}
        head=${[['Run'], ['Status'], ['Newest checkpoint'], ['Size', 'num'], ['Kept', 'num'], ['Used', 'num']]} /><//>`}`;
}
