// The timeline: what happened, newest first, as a person would tell it.
import { html, useState } from '../../vendor/htm-preact.js';
import { knownSince, lab } from '../lab.js';
import { ForPeople, Pill, Section, Table, Time, coded, useOlder } from '../parts.js';
import { byDay, lines } from '../timeline.js';
import { clock, exact, span } from '../words.js';

export function Lines({ list }) {
  return html`<ul class="lines">${list.map((l) => html`<li key=${l.key}>
    <time datetime=${l.at} title=${exact(l.at)}>${clock(l.at)}</time>
    <${Pill} word=${l.word} look=${l.look} /> <b>${l.who}</b> <span>${coded(l.text)}</span></li>`)}</ul>`;
}

// What the page does not know: of a busy lab it keeps the newest steps only.
export const Before = () => knownSince() && html`<p class="soft">What was before ${clock(knownSince())} is in <code>labd events</code>.</p>`;

// How long after the death something was so again.
const after = (i, iso) => (i.cause === 'oom-inside' ? 'lives on' : iso ? span(Date.parse(iso) - Date.parse(i.died_at)) : '–');

function training(i) {
  return i.training.map((t) => {
    const lost = t.lost_ms === null ? '' : `, ${span(t.lost_ms)} of work done again`;
    return html`<span class="below">${t.run}: ${t.training_at ? `trained again after ${after(i, t.training_at)}${lost}` : 'not training again yet'}</span>`;
  });
}

// So many incidents labd tells of without being asked.
const MOST = 20;
const nameOf = (i) => i.service + i.died_at;

export function Incidents({ incidents }) {
  const [all, more] = useOlder('/api/v1/incidents', 'incidents', incidents, MOST, nameOf);
  return html`<${Table} id="incidents" items=${all} empty="Nothing has died."
    head=${[['When'], ['Service'], ['Runs again after', 'num'], ['Ready after', 'num'], ['Why']]}
    row=${(i) => html`<tr key=${nameOf(i)}>
      <td><${Time} at=${i.died_at} /></td><th scope="row">${i.service}</th>
      <td class="num" data-label="runs again after">${after(i, i.running_at)}</td>
      <td class="num" data-label="ready after">${after(i, i.ready_at)}</td>
      <td class="wide">${coded(i.why)}${training(i)}</td></tr>`} />${more}`;
}

export function Timeline() {
  const [all, setAll] = useState(false);
  const list = lines(lab.events, lab.snapshot, all);
  return html`
    <${Section} id="incidents-h" title="What died, and how it came back">
      <${Incidents} incidents=${lab.snapshot.incidents || []} />
    <//>
    <${Section} id="events-h" title="What happened" aside=${html`<label class="check"><input type="checkbox" checked=${all} onChange=${(e) => setAll(e.target.checked)} /> every step</label>`}>
      <${ForPeople}>
        ${list.length ? byDay(list).map((d) => html`<h3>${d.day}</h3><${Lines} list=${d.lines} />`) : html`<p class="soft">${lab.knowsEvents ? 'Nothing has happened yet.' : '…'}</p>`}
        <${Before} />
      <//>
    <//>`;
}
