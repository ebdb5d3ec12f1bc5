// One job: its attempts, its training curve with its faults on it, its newest checkpoint, its packages and its log.
import { html, useMemo, useState } from '../../vendor/htm-preact.js';
import { Chart } from '../chart.js';
import { ANSWER_MS, isKnown, troubleOf } from '../lab.js';
import { Below, Choices, ForPeople, LogBox, Section, TAIL, Table, Time, Trouble, coded, useAsking, useFetch } from '../parts.js';
import { bytes, clock, exact, number, plain, plural, span } from '../words.js';
import { INSTALLS_HEAD, JobPill, StopJob, install } from './jobs.js';
import { Lines } from './timeline.js';

const CURVE_SECONDS = 3;

function jsonOf(text) {
  try { return JSON.parse(text); } catch { return {}; }
}

function Attempts({ j }) {
  return html`<ol class="chain" id="attempts">${j.attempts.map((a, i) => html`<li key=${a.submission_id} class="card">
    <div class="head"><h3>Attempt ${a.attempt || i + 1}</h3><${JobPill} j=${a} /></div>
    <p class="mono soft">${a.submission_id}</p>
    <p class="soft">${a.submitted_at ? exact(a.submitted_at) : '–'}${a.submitted_at && a.ended_at ? `, ${span(Date.parse(a.ended_at) - Date.parse(a.submitted_at))}` : ''}</p>
    ${a.workers?.length > 0 && html`<p class="soft">on ${a.workers.join(', ')}</p>`}
    ${a.message && html`<${Below}>${a.message}<//>`}
  </li>`)}</ol>`;
}

function Facts({ j }) {
  const facts = [
    ['Run', j.run || '–'],
    ['Whose', j.attempts.at(-1)?.user || 'nobody named'],
    ['On', j.workers?.length ? j.workers.join(', ') : '–'],
    ['GPUs', j.gpus?.length ? j.gpus.join(', ') : '–'],
    ['Submitted', j.submitted_at ? html`<${Time} at=${j.submitted_at} />` : '–'],
    ['Newest checkpoint', j.checkpoint ? html`<${Time} at=${j.checkpoint.at} />, ${bytes(j.checkpoint.bytes)}` : 'none'],
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

// The curve of one metric at a time: their scales have nothing in common.
function Curve({ id, isOver }) {
  const found = useFetch(`/api/v1/jobs/${encodeURIComponent(id)}/curve`, isOver ? 0 : CURVE_SECONDS);
  const { data, trouble } = found;
  const [chosen, choose] = useState('');
  const metric = !data || data.metrics.includes(chosen) ? chosen : data.metrics.find((m) => /loss/i.test(m)) || data.metrics[0];
  // Rows that report it: a metric of each epoch stands alone between those of each step.
  const [time, values] = useMemo(() => {
    const all = data?.values[metric] || [];
    const rows = all.flatMap((value, i) => (value === null ? [] : [i]));
    return [rows.map((i) => data.time[i] / 1000), rows.map((i) => all[i])];
  }, [data, metric]);
  if (!data) return trouble ? html`<${Trouble} of=${found} />` : html`<p class="soft">…</p>`;
  if (!data.time.length) {
    return html`<p class="soft">No metrics yet: they come with the first <code>ray.train.report(metrics)</code> of its script.</p>`;
  }
  const isDrawn = time.length > 0;
  const marks = data.marks.map((m) => ({ ...m, at: m.at / 1000 }));
  const lost = data.lost.map((l) => ({ from: l.from / 1000, to: l.to / 1000 }));
  const repeated = data.lost.reduce((sum, l) => sum + l.to - l.from, 0);
  return html`<${Trouble} of=${found} /><div class="card" id="curve">
    ${!isDrawn && html`<p class="soft">Its reports have no number that can be drawn.</p>`}
    <div class="head" hidden=${!isDrawn}>
      <${Choices} label="metric" options=${data.metrics.map((m) => [m, m])} chosen=${metric} choose=${choose} />
      <a href=${`/api/v1/jobs/${encodeURIComponent(id)}/curve.csv`} download>CSV</a>
    </div>
    ${isDrawn && html`<${Chart} key=${metric} time=${time} series=${[{ label: metric, values }]} say=${number} height=${280}
      marks=${marks} lost=${lost} label=${`${metric} over time, with ${plural(marks.filter((m) => m.kind === 'death' || m.kind === 'lost').length, 'fault')}`} />`}
    <p class="soft" id="curve-words">${plural(data.time.length, 'report')}; ✖ a death, ▶ training again${repeated ? html`; shaded: ${span(repeated)} of work that was done again` : ''}${data.dropped ? `; ${data.dropped} older points were thinned out` : ''}.</p>
    ${data.marks.length > 0 && html`<ul class="lines" id="marks">${data.marks.toReversed().map((m) => html`<li class=${`mark ${m.kind} ${m.outcome || ''}`}>
      <time datetime=${new Date(m.at).toISOString()}>${clock(m.at)}</time> <b>${m.kind === 'death' ? `${m.service || 'a process of the script'} died` : m.outcome || m.kind}</b> <span>${coded(m.text)}</span></li>`)}</ul>`}
  </div>`;
}

// labd gives 1 MiB of a log, from a whole line on.
const CUT_BYTES = 1_000_000;

// The newest lines of a job's log, asked again while it runs: Ray's own stream would not outlive its head.
function JobLog({ id, isOver }) {
  const [{ lines, isCut }, setLog] = useState({ lines: [], isCut: false });
  const [state, setState] = useState('connecting …');
  useAsking(async (isLate) => {
    let ok = false;
    try {
      const answer = await fetch(`/api/v1/jobs/${encodeURIComponent(id)}/logs?tail=${TAIL}`, { signal: AbortSignal.timeout(ANSWER_MS) });
      const body = await answer.arrayBuffer();
      if (isLate()) return undefined;
      ok = answer.ok;
      const text = new TextDecoder().decode(body);
      if (ok) {
        const all = plain(text).replace(/\n$/, '').split('\n');
        setLog({ lines: text.trim() ? all : [], isCut: all.length >= TAIL || body.byteLength > CUT_BYTES });
      }
      setState(ok ? (isOver ? 'ended' : 'live') : troubleOf(answer, jsonOf(text)));
    } catch {
      if (!isLate()) setState('labd did not answer');
    }
    return isOver && ok ? undefined : CURVE_SECONDS * 1000;
  }, [id, isOver]);
  return html`<${LogBox} name=${id} lines=${lines} state=${state} isCut=${isCut} />`;
}

function Whole({ id }) {
  const found = useFetch(`/api/v1/jobs/${encodeURIComponent(id)}`, CURVE_SECONDS);
  const { data: j, trouble } = found;
  if (!j) return trouble ? html`<${Trouble} of=${found} />` : html`<p class="soft">…</p>`;
  const newest = j.attempts.at(-1);
  const isOver = Boolean(j.outcome) || ['SUCCEEDED', 'STOPPED', 'FAILED'].includes(j.status);
  // What became of it, labd says a while after Ray, and marks it on the curve.
  const isTold = Boolean(j.outcome) || (isOver && !newest?.attempt);
  const faults = (j.faults || []).toReversed().map((f) => ({
    key: f.at + f.service, at: f.at, who: f.service, word: f.resumed_at ? 'resumed' : 'died', look: f.resumed_at ? 'good' : 'warn',
    text: `${f.why}${f.resumed_at ? `; trained again after ${span(Date.parse(f.resumed_at) - Date.parse(f.at))}` : ''}${f.lost_ms === null ? '' : `, ${span(f.lost_ms)} of work done again`}`,
  }));
  return html`
    <${Trouble} of=${found} />
    <div class="jobhead"><${JobPill} j=${newest || j} /> <code>${j.entrypoint}</code> <span class="commands">${newest && html`<${StopJob} j=${newest} />`}</span></div>
    ${j.waits_for && html`<p class="below note">waits: ${coded(j.waits_for)}</p>`}
    <${Facts} j=${j} />
    <${Section} id="curve-h" title="Training curve"><${Curve} id=${id} isOver=${isTold} /><//>
    ${faults.length > 0 && html`<${Section} id="faults-h" title="Faults"><${Lines} list=${faults} /><//>`}
    <${Section} id="attempts-h" title="Attempts"><${Attempts} j=${j} /><//>
    ${j.installs?.length > 0 && html`<${Section} id="installs-h" title="Package installations"><${Table} id="installs" items=${j.installs} head=${INSTALLS_HEAD} row=${install} /><//>`}
    <${Section} id="log-h" title="Log"><${JobLog} id=${id} isOver=${isOver} /><//>`;
}

export function Job({ id }) {
  return html`<div class="head title"><h2 class="name mono">${id}</h2><a href="#/jobs">all jobs</a></div>
    ${isKnown() ? html`<${Whole} key=${id} id=${id} />` : html`<${ForPeople} />`}`;
}

