// The services: state, reason, restarts, logs, and what an admin may do with each.
import { html } from '../../vendor/htm-preact.js';
import { isKnown, lab, now } from '../lab.js';
import { Below, Command, Pill, Section, Table, Time, coded } from '../parts.js';
import { lookOf } from '../words.js';

function more(s) {
  const words = [];
  if (s.progress) words.push(s.progress);
  if (s.next_try) {
    const wait = Math.ceil((Date.parse(s.next_try) - now()) / 1000);
    words.push(wait > 0 ? `tried again in ${wait} s` : 'being tried again');
  }
  return words.length ? html`<${Below}>${words.join(' · ')}<//>` : null;
}

function commands(s) {
  if (!isKnown() || s.state === 'off' || s.state === 'unavailable') return null;
  const path = `/api/v1/services/${encodeURIComponent(s.name)}`;
  // Nothing but its release starts the worker of a GPU that is kept from work.
  const waits = s.state === 'held' && lab.snapshot.gpus.some((g) => g.worker === s.name && g.state === 'quarantined');
  const verbs = waits ? [] : s.state === 'held' ? ['start'] : ['restart', 'stop'];
  return html`<span class="commands">
    <a href=${`#/logs/${encodeURIComponent(s.name)}`} aria-label=${`logs of ${s.name}`}>logs</a>
    ${waits && html`<a href="#/gpus" aria-label=${`GPU of ${s.name}`}>GPU</a>`}
    ${verbs.map((verb) => html`<${Command} key=${verb} verb=${verb} name=${s.name} path=${`${path}/${verb}`} />`)}
  </span>`;
}

export function Services() {
  return html`<${Section} id="services-h" title="Services">
    <${Table} id="services" items=${lab.snapshot.services} empty="No service is planned."
      head=${[['Service'], ['State'], ['Since'], ['Restarts', 'num'], ['Last reason']]}
      row=${(s) => html`<tr key=${s.name}>
        <th scope="row" title=${s.container ? `container ${s.container}, ${s.image}` : s.image}>${s.name}</th>
        <td><${Pill} word=${s.state} look=${lookOf(s)} /></td>
        <td data-label="since"><${Time} at=${s.since} /></td>
        <td class="num" data-label="restarts">${s.restarts}</td>
        <td class="wide">${commands(s)}${coded(s.last_reason || '–')}${more(s)}</td>
      </tr>`} />
  <//>`;
}
