// What Ray's dashboard embeds of Grafana, at Grafana's addresses: one panel (/grafana/d-solo/UID/…?panelId=) or a whole dashboard
// (/grafana/d/UID/…), from and to as Grafana has them.
import { html, render, useEffect, useState } from '../vendor/htm-preact.js';
import { lab, now, send } from './lab.js';
import { Dashboard, Panel } from './panels.js';
import { useFetch } from './parts.js';

const asked = new URLSearchParams(location.search);
const [, , kind, uid] = location.pathname.split('/');
const UNITS = { s: 1, m: 60, h: 3600, d: 86_400, w: 604_800 };
const DEFAULT_S = 3600;
// What is above and below a chart that has the frame for itself; a legend that is longer scrolls.
const AROUND_PX = 150;

// Unix seconds of `now`, `now-5m`, or milliseconds since 1970.
function time(text) {
  const [, count, unit] = /^now(?:-(\d+)([smhdw]))?$/.exec(text) || [];
  if (text.startsWith('now')) return now() / 1000 - (unit ? count * UNITS[unit] : 0);
  return Number(text) / 1000;
}

function range() {
  const [from, to] = [asked.get('from') || `now-${DEFAULT_S}s`, asked.get('to') || 'now'];
  const ends = { from: time(from), to: time(to) };
  if (!(ends.to > ends.from)) return { seconds: DEFAULT_S };
  return to === 'now' && from.startsWith('now') ? { seconds: Math.round(ends.to - ends.from) } : ends;
}

// Variables that the address chooses; several values of one are alternatives.
function chosen() {
  const values = {};
  for (const key of new Set(asked.keys())) {
    if (!key.startsWith('var-')) continue;
    const all = asked.getAll(key).filter((v) => v && v !== '$__all' && v !== 'All');
    if (all.length) values[key.slice('var-'.length)] = all.length > 1 ? `(${all.join('|')})` : all[0];
  }
  return values;
}

// Ray's page says which look it has, whatever the system's is.
function wear(theme) {
  if (theme !== 'light' && theme !== 'dark') return;
  document.documentElement.style.colorScheme = theme;
  for (const rule of [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])) {
    if (rule.media?.mediaText.includes('prefers-color-scheme')) rule.media.mediaText = theme === 'dark' ? 'all' : 'not all';
  }
}

function Page() {
  const { data, trouble } = useFetch(`/api/v1/dashboards/${encodeURIComponent(uid)}`);
  const [height, setHeight] = useState(innerHeight);
  useEffect(() => {
    const measure = () => setHeight(innerHeight);
    addEventListener('resize', measure);
    return () => removeEventListener('resize', measure);
  }, []);
  if (trouble) return html`<p class="trouble">${trouble}</p>`;
  if (!data) return html`<p class="soft">…</p>`;
  const [values, when] = [chosen(), range()];
  if (kind === 'd') return html`<h1>${data.title}</h1><${Dashboard} told=${data} variables=${values} range=${when} />`;
  const panel = data.rows.flatMap((row) => row.panels).find((p) => String(p.id) === asked.get('panelId'));
  if (!panel) return html`<p class="trouble">There is no such panel.</p>`;
  return html`<${Panel} panel=${panel} variables=${{ ...data.variables, ...values }} range=${when} height=${Math.max(AROUND_PX, height - AROUND_PX)} bare />`;
}

wear(asked.get('theme'));
document.body.classList.toggle('solo', kind !== 'd');
// Names of the services, for addresses in legends.
send('GET', '/api/v1/snapshot').then(({ told }) => {
  lab.snapshot = told.services ? told : null;
  render(html`<${Page} />`, document.getElementById('page'));
});
