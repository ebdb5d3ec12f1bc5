// Ray's own dashboards from what Prometheus keeps, drawn here: Grafana's image cannot be had everywhere.
import { html, useState } from '../../vendor/htm-preact.js';
import { DASHBOARDS, Dashboard } from '../panels.js';
import { Choices, ForPeople, Section, useFetch } from '../parts.js';

const SPANS = [[900, '15 min'], [3600, '1 h'], [21600, '6 h'], [86400, '1 day'], [604800, '7 days']];

function Panels() {
  const [uid, setUid] = useState(DASHBOARDS[0][0]);
  const [seconds, setSeconds] = useState(3600);
  const { data, trouble } = useFetch(`/api/v1/dashboards/${uid}`);
  return html`<p class="tools"><${Choices} label="dashboard" options=${DASHBOARDS} chosen=${uid} choose=${setUid} />
      <${Choices} label="span" options=${SPANS} chosen=${seconds} choose=${setSeconds} />
      <span class="soft">More of it: <a href="/prometheus/" target="_blank" rel="noopener">Prometheus</a></span></p>
    ${trouble && html`<p class="trouble">${trouble}</p>`}
    ${!data && !trouble && html`<p class="soft">…</p>`}
    <div id="panels">${data && html`<${Dashboard} key=${uid} told=${data} range=${{ seconds }} />`}</div>`;
}

export const Metrics = () => html`<${Section} id="metrics-h" title="Metrics"><${ForPeople}><${Panels} /><//><//>`;
