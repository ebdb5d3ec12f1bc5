// Whose work the GPUs did: hours by job and by person, and GPUs that are held and do nothing.
import { html, useState } from '../../vendor/htm-preact.js';
import { Choices, ForPeople, Pill, Section, Table, Time, Trouble, useFetch } from '../parts.js';

const hours = (h) => (h < 10 ? h.toFixed(1) : String(Math.round(h)));
const HEAD = [['Who'], ['GPU hours', 'num'], ['Busy', 'num'], ['Held, and idle', 'num']];

function entries(list, name) {
  return html`<${Table} items=${list} head=${HEAD} empty="No GPU was used." row=${(u) => html`<tr key=${name(u)}>
    <th scope="row">${name(u)}</th>
    <td class="num" data-label="GPU hours">${hours(u.gpu_hours)}</td>
    <td class="num" data-label="busy">${hours(u.busy_hours)}</td>
    <td class="num" data-label="held, and idle">${hours(u.idle_hours)}</td></tr>`} />`;
}

function Spans() {
  const [by, setBy] = useState('days');
  const [whom, setWhom] = useState('users');
  const found = useFetch('/api/v1/usage?days=28', 60);
  const { data, trouble } = found;
  if (!data) return trouble ? html`<${Trouble} of=${found} />` : html`<p class="soft">…</p>`;
  const name = whom === 'users' ? (u) => u.user || 'nobody named' : (u) => (u.user ? `${u.job} (${u.user})` : u.job);
  return html`<${Trouble} of=${found} />
    <${Section} id="idle-h" title="Held, and idle now">
      ${data.idle_now.length ? html`<ul class="lines">${data.idle_now.map((i) => html`<li key=${i.gpu}><${Pill} word="idle" look="warn" /> <b>${i.worker}</b>
        <span><a class="mono" href=${`#/jobs/${encodeURIComponent(i.job)}`}>${i.job}</a>${i.user ? ` of ${i.user}` : ''}, under 5 % since <${Time} at=${i.since} /></span></li>`)}</ul>`
    : html`<p class="soft">No GPU is held by a job that leaves it idle for 30 min.</p>`}
    <//>
    <${Section} id="usage-h" title="GPU hours" aside=${html`<a href="/api/v1/usage.csv?days=400" download>CSV</a>`}>
      <p class="tools"><${Choices} label="time" options=${[['days', 'by day'], ['weeks', 'by week']]} chosen=${by} choose=${setBy} />
        <${Choices} label="of whom" options=${[['users', 'by person'], ['jobs', 'by job']]} chosen=${whom} choose=${setWhom} /></p>
      ${data[by].length ? data[by].map((d) => html`<h3 key=${d.day || d.week}>${d.day || `${d.week}, from ${d.first_day}`}</h3>${entries(d[whom], name)}`)
    : html`<p class="soft">No job used a GPU yet.</p>`}
      <p class="soft">A person is who a job names: <code>--metadata-json '{"labd.user": "anna"}'</code>. Days begin at midnight in ${data.time_zone}.</p>
    <//>`;
}

export const Usage = () => html`<${ForPeople}><${Spans} /><//>`;
