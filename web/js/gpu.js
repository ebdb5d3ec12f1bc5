// What is said of a GPU, wherever it is shown.
import { html } from '../vendor/htm-preact.js';
import { Below, Tag } from './parts.js';
import { bytes } from './words.js';

export const memoryOf = (g) => (g.reading?.memory_used_bytes === undefined ? bytes(g.memory_bytes)
  : `${bytes(g.reading.memory_used_bytes)} of ${bytes(g.memory_bytes)}`);

// Its name, and what is special about it.
export function GpuName({ g }) {
  return html`${g.name}${g.simulated && html`<${Tag}>simulated<//>`}${g.reading?.asleep && html`<${Tag} title="not read, since that would wake it">asleep<//>`}`;
}

// What is wrong with it, with `remedy` also what a person does about that.
export function GpuTrouble({ g, remedy }) {
  const slow = (g.reading?.throttled || []).filter((t) => t !== 'power-cap');
  return html`${g.trouble && html`<${Below} note>${g.trouble.code}: ${g.trouble.meaning}<//>`}
    ${g.trouble && remedy && html`<${Below}>${g.trouble.remedy}<//>`}
    ${slow.length > 0 && html`<${Below} note>slowed down: ${slow.join(', ')}<//>`}`;
}
