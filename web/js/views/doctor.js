// What `labd doctor` says, with the commands to copy.
import { html, useState } from '../../vendor/htm-preact.js';
import { announce } from '../lab.js';
import { ForPeople, Pill, Section, Trouble, coded, useFetch } from '../parts.js';
import { CHECK_LOOK, plural } from '../words.js';

const RANK = { fail: 0, warn: 1, skipped: 2, ok: 3 };

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce('Copied.');
  } catch {
    announce('The browser lets no page copy here: select the text instead.');
  }
}

function Checks() {
  const [turn, again] = useState(0);
  const found = useFetch(`/api/v1/doctor?turn=${turn}`, 0);
  const { data, trouble } = found;
  if (trouble && !data) return html`<${Trouble} of=${found} />`;
  if (!data) return html`<p class="soft" role="status">Checking; this takes up to 10 s …</p>`;
  const checks = data.checks.toSorted((a, b) => RANK[a.verdict] - RANK[b.verdict]);
  return html`<p class="tools"><span>${plural(data.fail, 'failure')}, ${plural(data.warn, 'warning')}, ${data.ok} ok, ${data.skipped} skipped.</span>
      <button type="button" onClick=${() => again(turn + 1)}>Check again</button></p>
    <ul class="checks" id="checks">${checks.map((c) => html`<li class="card" key=${c.name + c.why}>
      <div class="head"><h3>${c.name}</h3><${Pill} word=${c.verdict} look=${CHECK_LOOK[c.verdict]} /></div>
      <p>${coded(c.why)}</p>
      ${c.fix && html`<pre class="fix" tabindex="0">${c.fix}</pre><button type="button" aria-label=${`copy the commands for ${c.name}`} onClick=${() => copy(c.fix)}>Copy</button>`}
    </li>`)}</ul>`;
}

export const Doctor = () => html`<${Section} id="doctor-h" title="Doctor"><${ForPeople}><${Checks} /><//><//>`;
