// The GPUs as they are, and their history: seconds for an hour, minutes for a week.
import { html, useMemo, useState } from '../../vendor/htm-preact.js';
import { Chart } from '../chart.js';
import { GpuName, GpuTrouble, memoryOf } from '../gpu.js';
import { lab } from '../lab.js';
import { Below, Choices, Command, Pill, Section, Table, Trouble, useFetch } from '../parts.js';
import { GPU_LOOK, bytes, rounded } from '../words.js';
import { Whose } from './overview.js';

const POINTS = 360;
const SPANS = [[1, '1 h'], [6, '6 h'], [24, '1 day'], [168, '7 days']];
const WHAT = [
  ['use', 'Use', (v) => `${Math.round(v)} %`, 100],
  ['memory', 'Memory', bytes],
  ['temperature', 'Temperature', (v) => `${Math.round(v)} °C`],
  ['power', 'Power', (v) => `${Math.round(v)} W`],
];

function row(g) {
  const r = g.reading || {};
  const place = [g.pci && `PCI ${g.pci}`, g.numa_node !== null && g.numa_node !== undefined && `NUMA node ${g.numa_node}`, g.partition].filter(Boolean);
  return html`<tr key=${g.id}>
    <th scope="row" title=${[g.id, ...place].join(', ')}>${g.worker || '–'}<span class="below mono id">${g.id}</span></th>
    <td><${Pill} word=${g.state} look=${GPU_LOOK[g.state]} /></td>
    <td class="wide">${g.state === 'quarantined' && html`<span class="commands"><${Command} verb="release" name=${g.id} path=${`/api/v1/gpus/${encodeURIComponent(g.id)}/release`} /></span>`}
      <${GpuName} g=${g} /><${GpuTrouble} g=${g} remedy /><${Below}><${Whose} g=${g} /><//></td>
    <td class="num" data-label="use">${rounded(r.utilisation_percent, '%')}</td>
    <td class="num" data-label="memory">${memoryOf(g)}</td>
    <td class="num" data-label="temperature">${rounded(r.temperature_c, '°C')}</td>
    <td class="num" data-label="power">${rounded(r.power_w, 'W')}</td>
  </tr>`;
}

function History() {
  const [hours, setHours] = useState(1);
  const found = useFetch(`/api/v1/gpus/history?hours=${hours}&points=${POINTS}`, hours === 1 ? 10 : 60);
  const { data } = found;
  const charts = useMemo(() => WHAT.map(([key, title, say, top]) => ({
    key, title, say, top,
    series: (data?.gpus || []).map((g) => ({ label: g.worker || g.id, values: g[key] })).filter((s) => s.values?.some((v) => v !== null)),
  })).filter((c) => c.series.length), [data]);
  return html`<${Section} id="history-h" title="History" aside=${html`<${Choices} label="span" options=${SPANS} chosen=${hours} choose=${setHours} />`}>
    <${Trouble} of=${found} />
    ${data && !charts.length && html`<p class="soft">Nothing was measured yet.</p>`}
    <div class="charts">${charts.map((c) => html`<div key=${c.key} class="card"><h3>${c.title}</h3>
      <${Chart} time=${data.time} series=${c.series} say=${c.say} top=${c.top} binary=${c.say === bytes} label=${`${c.title} of each GPU over time`} height=${200} /></div>`)}</div>
  <//>`;
}

export function Gpus() {
  return html`<${Section} id="gpus-h" title="GPUs">
      <${Table} id="gpus" items=${lab.snapshot.gpus} row=${row} empty="No GPU was found."
        head=${[['GPU'], ['State'], ['Name'], ['Use', 'num'], ['Memory', 'num'], ['Temperature', 'num'], ['Power', 'num']]} />
      ${lab.snapshot.gpu_sources.map((g) => html`<p class="soft">${g.name}${g.driver ? `, driver ${g.driver}` : ''}${g.library ? `, library ${g.library}` : ''}${g.trouble ? `: ${g.trouble}` : ''}</p>`)}
    <//>
    <${History} />`;
}
