// Pieces that every view is made of. All text goes through Preact, which makes no markup of it.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact.js';
import { AGAIN_MS, announce, isKnown, mayCommand, now, send } from './lab.js';
import { age, exact } from './words.js';

// Length of a page of a long list, the largest that labd gives.
const PAGE = 200;

export const Pill = ({ word, look }) => html`<span class=${`state ${look || 'idle'}`}>${word}</span>`;
// What labd says has commands between backticks.
export const coded = (said) => [said].flat().map((part) => (typeof part === 'string'
  ? part.split(/`([^`]+)`/).map((text, i) => (i % 2 ? html`<code>${text}</code>` : text)) : part));
export const Below = ({ children, note }) => html`<span class=${note ? 'below note' : 'below'}>${coded(children)}</span>`;
export const Tag = ({ children, title }) => html`<span class="tag" title=${title}>${children}</span>`;

export function Time({ at }) {
  if (!at) return html`<span>–</span>`;
  return html`<time datetime=${at} title=${exact(at)}>${age(now() - Date.parse(at))}</time>`;
}

// A table with a head of `[word, class]`; on a phone each row is a card, and a cell's `data-label` says what it is.
export function Table({ id, head, items, row, empty }) {
  return html`<table id=${id} tabindex="-1">
    <thead><tr>${head.map(([word, kind]) => html`<th scope="col" class=${kind}>${word}</th>`)}</tr></thead>
    <tbody>${items.length ? items.map(row) : html`<tr><td class="empty wide" colspan=${head.length}>${empty}</td></tr>`}</tbody>
  </table>`;
}

export function Section({ id, title, children, aside }) {
  return html`<section aria-labelledby=${id}>
    <div class="head"><h2 id=${id}>${title}</h2>${aside}</div>
    ${children}
  </section>`;
}

// JSON from labd, asked again every `seconds` while it is shown; without, once, but for failures that pass.
export function useFetch(path, seconds) {
  const [found, set] = useState({});
  useEffect(() => {
    let over = false;
    let timer;
    const ask = async () => {
      const answer = await send('GET', path);
      if (over) return;
      set((before) => (answer.status === 200 ? { data: answer.told } : { ...before, trouble: answer.trouble }));
      const passes = answer.status === 0 || answer.status >= 500;
      if (passes || seconds) timer = setTimeout(ask, passes ? AGAIN_MS : seconds * 1000);
    };
    set({});
    ask();
    return () => { over = true; clearTimeout(timer); };
  }, [path, seconds]);
  return found;
}

// A list that the snapshot has the newest of, `most` of them, and what is older, by pages as somebody asks for them; and a button while
// there is more. `member`: where an answer has its part of the list; `nameOf` tells one from another.
export function useOlder(path, member, newest, most, nameOf) {
  const [found, set] = useState({ list: [] });
  const ask = async () => {
    const before = found.next ? `&before=${encodeURIComponent(found.next)}` : '';
    const answer = await send('GET', `${path}?limit=${PAGE}${before}`);
    if (answer.status === 200) set({ list: [...found.list, ...answer.told[member]], next: answer.told.next });
    else announce(answer.trouble);
  };
  const names = new Set(newest.map(nameOf));
  const all = [...newest, ...found.list.filter((one) => !names.has(nameOf(one)))];
  return [all, newest.length >= most && found.next !== null && html`<p><button type="button" onClick=${ask}>older ${member}</button></p>`];
}

const CONSEQUENCE = {
  restart: 'What runs in it is interrupted; labd resumes jobs from their checkpoints.',
  stop: 'It stays stopped until somebody starts it.',
  start: 'It is started and kept up from then on.',
  release: 'It works again, and its worker starts. First do what is said about its fault: one that is still there takes it from work again.',
};

let ask = null;

// A command's button. It asks first; what labd answers is announced.
export function Command({ verb, name, path, consequence = CONSEQUENCE[verb] }) {
  if (!mayCommand()) return null;
  return html`<button type="button" data-verb=${verb} aria-label=${`${verb} ${name}`} onClick=${() => ask({ verb, name, path, consequence })}>${verb}</button>`;
}

export function Question() {
  const [asked, set] = useState(null);
  ask = set;
  useEffect(() => {
    if (!asked) return;
    const dialog = document.getElementById('ask');
    dialog.returnValue = 'no';
    dialog.showModal();
    dialog.addEventListener('close', async () => {
      set(null);
      if (dialog.returnValue !== 'yes') return;
      const answer = await send('POST', asked.path);
      announce(answer.told.message || answer.trouble);
    }, { once: true });
  }, [asked]);
  const word = asked ? `${asked.verb[0].toUpperCase()}${asked.verb.slice(1)}` : '';
  return html`<dialog id="ask" aria-labelledby="ask-text">
    <form method="dialog">
      <p id="ask-text">${asked && `${word} ${asked.name}? ${asked.consequence}`}</p>
      <menu><button value="no" autofocus>Cancel</button><button id="ask-yes" value="yes" class="danger">${word}</button></menu>
    </form>
  </dialog>`;
}

// A line of the last hour: `values` from 0 to `top`, null where nothing is known.
export function Spark({ values, top, label }) {
  const width = 160;
  const height = 28;
  const step = width / Math.max(1, values.length - 1);
  let path = '';
  let pen = 'M';
  values.forEach((value, i) => {
    if (value === null) { pen = 'M'; return; }
    path += `${pen}${(i * step).toFixed(1)} ${(height - 1 - Math.min(1, value / top) * (height - 2)).toFixed(1)}`;
    pen = 'L';
  });
  return html`<svg class="spark" viewBox=${`0 0 ${width} ${height}`} preserveAspectRatio="none" role="img" aria-label=${label}><path d=${path} /></svg>`;
}

// A share of something as a bar; the words beside it say the same.
export function Bar({ share }) {
  return html`<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
    <rect class="track" width="100" height="6" rx="3" /><rect class="fill" width=${Math.max(0, Math.min(1, share || 0)) * 100} height="6" rx="3" />
  </svg>`;
}

// Buttons of which one is pressed; `options` are `[value, word]`.
export function Choices({ label, options, chosen, choose }) {
  return html`<span class="choices" role="group" aria-label=${label}>
    ${options.map(([value, word]) => html`<button type="button" key=${value} aria-pressed=${value === chosen} onClick=${() => choose(value)}>${word}</button>`)}</span>`;
}

// So many lines of a log labd is asked for.
export const TAIL = 1000;

// A log as `lines`, with a search. It stands at its end and follows, unless somebody does not want that.
export function LogBox({ name, lines, state }) {
  const [search, setSearch] = useState('');
  const [follows, setFollows] = useState(true);
  const box = useRef(null);
  useEffect(() => {
    if (follows) box.current.scrollTop = box.current.scrollHeight;
  }, [lines, follows, search]);
  const wanted = search.toLowerCase();
  const all = lines.length < TAIL ? `${lines.length} lines` : `the newest ${lines.length} lines`;
  const shown = wanted ? lines.filter((l) => l.toLowerCase().includes(wanted)) : lines;
  return html`<div class="log">
    <div class="tools">
      <label for="log-search">Search</label>
      <input id="log-search" type="search" value=${search} onInput=${(e) => setSearch(e.target.value)} />
      <span class="soft" role="status">${wanted ? `${shown.length} of ${all}` : all}, ${coded(state)}${lines.length < TAIL ? '' : '; older ones are not searched'}</span>
      <label class="check"><input type="checkbox" checked=${follows} onChange=${(e) => setFollows(e.target.checked)} /> follow</label>
    </div>
    <pre ref=${box} tabindex="0" aria-label=${`log of ${name}`}>${shown.join('\n')}</pre>
  </div>`;
}

// What only people of the lab see.
export function ForPeople({ children }) {
  return isKnown() ? children : html`<p class="soft">Log in to see this.</p>`;
}
