// Panels of Ray's own Grafana dashboards, drawn from what Prometheus has. labd tells of each what a chart needs; Prometheus is
// asked through the door.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact.js';
import { Chart } from './chart.js';
import { AGAIN_MS, lab, now, send } from './lab.js';
import { bytes, number, plural, span } from './words.js';

// Ray's ids, as it asks for them, and labd's own.
export const DASHBOARDS = [
  ['rayDefaultDashboard', 'Cluster'], ['rayTrainDashboard', 'Train'], ['rayDataDashboard', 'Data'], ['rayServeDashboard', 'Serve'], ['labd', 'labd'],
];
// So many points a line has at most, and Prometheus looks every so many seconds.
const POINTS = 240;
const SCRAPE_S = 10;
// A rate needs a few values within its span; Grafana takes four.
const RATE_S = 4 * SCRAPE_S;
// So many lines are told apart in one chart.
const LINES = 24;

// Ids of Ray's nodes, actors and sessions are told apart by their beginning.
const LONG_ID = /([0-9a-f]{8})[0-9a-f]{16,}/g;

const hundredth = (v) => `${Number(v.toFixed(2))}`;
// A span, also one below what a person waits for.
const briefly = (ms) => (Math.abs(ms) < 1000 && ms !== 0 ? `${number(ms)} ms` : span(ms));
const SAYINGS = {
  'bytes': bytes, 'decbytes': bytes, 'Bps': (v) => `${bytes(v)}/s`, 'GBs': (v) => `${hundredth(v)} GB/s`,
  's': (v) => briefly(v * 1000), 'seconds': (v) => briefly(v * 1000), 'ms': briefly,
  '%': (v) => `${hundredth(v)} %`, 'percent': (v) => `${hundredth(v)} %`, 'percentunit': (v) => `${hundredth(v * 100)} %`,
  'celsius': (v) => `${Math.round(v)} °C`, 'mwatt': (v) => `${hundredth(v / 1000)} W`, 'watt': (v) => `${hundredth(v)} W`, 'short': number, '': number,
};
const BINARY = ['bytes', 'decbytes', 'Bps'];

// How a value is said, and how an axis says it. What is counted, the title says; a word behind each number of an axis is too much.
function sayings(unit) {
  const say = SAYINGS[unit];
  return say ? [say, say] : [unit.includes('/') ? (v) => `${number(v)} ${unit}` : number, number];
}

// Text with the values of its variables: $Name, ${Name}, ${Name:regex}.
const filled = (text, values) => text.replace(/\$(?:\{(\w+)(?::\w+)?\}|(\w+))/g, (all, braced, bare) => values[braced || bare] ?? all);

// Name of a line: the legend with its labels, and labd's names for addresses of its services.
function lineName(legend, metric) {
  const labels = Object.entries(metric).filter(([key]) => key !== '__name__').map(([, value]) => value).join(', ');
  const name = legend ? legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, key) => metric[key] ?? '') : labels;
  const services = lab.snapshot?.services || [];
  const known = (all, address) => services.find((s) => s.address === address)?.name || all;
  const short = name.replace(/\b(\d+\.\d+\.\d+\.\d+)(:\d+)?\b/g, known).replace(LONG_ID, '$1…');
  return short || 'value';
}

// Whether a line is meant: by its name, or by an expression between slashes.
export function isMeant(aliases, name) {
  return aliases.some((alias) => {
    if (!alias.startsWith('/')) return alias === name;
    try { return new RegExp(alias.slice(1, alias.lastIndexOf('/'))).test(name); } catch { return false; }
  });
}

// Times of a range on a grid that stays where it is while time goes on. `range`: {seconds}, up to now, or {from, to} in unix
// seconds.
function grid({ seconds, from, to }) {
  const length = seconds || to - from;
  const step = Math.max(SCRAPE_S, Math.ceil(length / POINTS / SCRAPE_S) * SCRAPE_S);
  const end = Math.floor((seconds ? now() / 1000 : to) / step) * step;
  const start = end - Math.floor(length / step) * step;
  return { start, end, step, length, count: (end - start) / step + 1 };
}

const newest = (values) => values.findLast((v) => v !== null) ?? 0;

// Which are the largest changes with time, their order in a chart must not: it would be another chart.
const byLabel = (a, b) => a.label.localeCompare(b.label, undefined, { numeric: true });

// Lines of a panel, the largest of them, on the grid. What adds nothing to a stack is no line of it.
async function lines(panel, variables, at) {
  const spans = { __rate_interval: `${Math.max(RATE_S, at.step)}s`, __interval: `${at.step}s`, __range: `${Math.round(at.length)}s` };
  const values = { ...variables, ...spans };
  const answers = await Promise.all(panel.queries.map(({ expr }) => {
    const asked = new URLSearchParams({ query: filled(expr, values), start: at.start, end: at.end, step: at.step });
    return send('GET', `/prometheus/api/v1/query_range?${asked}`);
  }));
  const failed = answers.find((a) => a.status !== 200);
  if (failed) return { trouble: `Prometheus: ${failed.trouble}` };
  const all = answers.flatMap((answer, i) => answer.told.data.result.map(({ metric, values: told }) => {
    const column = Array(at.count).fill(null);
    for (const [time, value] of told) column[Math.round((time - at.start) / at.step)] = Number.isFinite(Number(value)) ? Number(value) : null;
    const label = lineName(panel.queries[i].legend, metric);
    return { label, values: column, isLimit: isMeant(panel.limits, label), isHidden: isMeant(panel.hidden, label) };
  })).filter((s) => !panel.stacked || s.isLimit || s.values.some(Boolean)).toSorted((a, b) => newest(b.values) - newest(a.values));
  return { time: Array.from({ length: at.count }, (_, i) => at.start + i * at.step), series: all.slice(0, LINES).toSorted(byLabel), more: all.length - LINES };
}

// One panel. It asks while it can be seen.
export function Panel({ panel, variables, range, height = 200, bare }) {
  const box = useRef(null);
  const [isSeen, setSeen] = useState(false);
  const [shown, set] = useState(null);
  useEffect(() => {
    const watch = new IntersectionObserver(([entry]) => setSeen(entry.isIntersecting));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const key = JSON.stringify([panel, variables, range]);
  useEffect(() => {
    if (!isSeen) return;
    let over = false;
    let timer;
    const ask = async () => {
      const at = grid(range);
      const told = document.hidden ? null : await lines(panel, variables, at);
      if (over) return;
      if (told) set((before) => (told.trouble ? { ...before, trouble: told.trouble } : told));
      // A hidden page looks soon whether it is one still.
      timer = setTimeout(ask, told ? (told.trouble ? SCRAPE_S : at.step) * 1000 : AGAIN_MS);
    };
    ask();
    return () => { over = true; clearTimeout(timer); };
  }, [key, isSeen]);
  const [say, sayAxis] = sayings(panel.unit);
  const told = shown?.series;
  const isEmpty = told && !told.length;
  return html`<div ref=${box} class=${bare ? 'panel' : 'card panel'}>
    <h3 title=${panel.about}>${panel.title}</h3>
    ${shown?.trouble && html`<p class="trouble">${shown.trouble}</p>`}
    ${isEmpty && html`<p class="soft">nothing in this time</p>`}
    ${!shown && html`<p class="soft" style=${{ minHeight: `${height}px` }}>…</p>`}
    ${told && !isEmpty && html`<${Chart} time=${shown.time} series=${told} say=${say} sayAxis=${sayAxis} height=${height} stacked=${panel.stacked}
      label=${`${panel.title} over time`} binary=${BINARY.includes(panel.unit)} />`}
    ${told && shown.more > 0 && html`<p class="soft">${plural(shown.more, 'smaller line is', 'smaller lines are')} not shown.</p>`}
  </div>`;
}

// A dashboard with its rows; the first ones are open.
export function Dashboard({ told, variables, range, open = 2 }) {
  const values = { ...told.variables, ...variables };
  return told.rows.map((row, i) => html`<details key=${row.title} class="row" open=${i < open}>
    <summary>${row.title || told.title}</summary>
    <div class="charts">${row.panels.map((panel) => html`<${Panel} key=${panel.id} panel=${panel} variables=${values} range=${range} />`)}</div>
  </details>`);
}
