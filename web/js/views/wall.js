// The lab on a screen on the wall: large, without controls, readable from across the room.
import { html } from '../../vendor/htm-preact.js';
import { lab } from '../lab.js';
import { Bar, Pill, coded } from '../parts.js';
import { unclaimed } from './overview.js';
import { GPU_LOOK, JOB_LOOK, rounded, verdict } from '../words.js';

export function Wall() {
  const s = lab.snapshot;
  const [words, look] = verdict(s);
  const open = s.jobs.filter((j) => j.status === 'RUNNING' || j.status === 'PENDING');
  return html`<div class="wall">
    <h1 class=${`state ${look}`}>${words}</h1>
    <ul class="cards">${s.gpus.map((g) => {
      const r = g.reading || {};
      const jobs = open.filter((j) => (j.workers || []).includes(g.worker));
      return html`<li class="card" key=${g.id}>
        <div class="head"><h2>${g.worker || g.id}</h2><${Pill} word=${g.state} look=${GPU_LOOK[g.state]} /></div>
        <p class="large">${rounded(r.utilisation_percent, '%')}</p><${Bar} share=${(r.utilisation_percent || 0) / 100} />
        ${r.temperature_c !== undefined && html`<p class="soft">${rounded(r.temperature_c, '°C')}${r.power_w !== undefined && `, ${rounded(r.power_w, 'W')}`}</p>`}
        <p class=${jobs.length ? 'mono' : 'soft'}>${jobs.length ? jobs.map((j) => j.submission_id).join(', ') : unclaimed(g)}</p></li>`;
    })}</ul>
    <ul class="lines">${open.filter((j) => !j.workers?.length).map((j) => html`<li key=${j.submission_id}><${Pill} word=${j.status.toLowerCase()} look=${JOB_LOOK[j.status]} /> <b class="mono">${j.submission_id}</b> <span>${coded(j.waits_for || '')}</span></li>`)}</ul>
    ${s.notices.filter((n) => n.severity !== 'info').map((n) => html`<p class=${`notice ${n.severity}`}>${coded(n.text)}</p>`)}
    <p class="clock">${new Date().toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit' })} · ${s.labd.lab} on ${s.node.hostname}</p>
  </div>`;
}
