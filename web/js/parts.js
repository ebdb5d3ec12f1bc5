// Pieces that every view is made of. All text goes through Preact, which makes no markup of it.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact.js';
import { AGAIN_MS, announce, isKnown, mayCommand, now, send } from './lab.js';
import { age, exact } from './words.js';

// Length of a page of a long list, the largest that labd gives.
const PAGE = 200;
const OLDER_SECONDS = 30;

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

// Calls `ask` now and again after as many milliseconds as it returns, or never where it returns none, while the page is looked at:
// what nobody looks at asks for nothing, and uses no session. `ask` is told whether that was over when its answer came.
export function useAsking(ask, inputs) {
  useEffect(() => {
    let turn = 0;
    let timer;
    let isDone = false;
    const run = async () => {
      const mine = turn;
      const again = await ask(() => mine !== turn);
      if (mine !== turn) return;
      isDone = again === undefined;
      if (!isDone) timer = setTimeout(run, again);
    };
    const look = () => {
      turn += 1;
      clearTimeout(timer);
      if (!document.hidden && !isDone) run();
    };
    look();
    document.addEventListener('visibilitychange', look);
    return () => { turn += 1; clearTimeout(timer); document.removeEventListener('visibilitychange', look); };
  }, inputs);
}

// JSON from labd, asked again every `seconds` while it is shown; without, once, but for failures that pass. An answer stays when later
// ones fail, and `trouble` says so.
export function useFetch(path, seconds) {
  const [found, set] = useState({});
  useEffect(() => set({}), [path]);
  useAsking(async (isOver) => {
    const answer = await send('GET', path);
    if (isOver()) return undefined;
    set((before) => (answer.status === 200 ? { data: answer.told, at: now() } : { ...before, trouble: answer.trouble }));
    if (answer.status === 0 || answer.status >= 500) return AGAIN_MS;
    return seconds ? seconds * 1000 : undefined;
  }, [path, seconds]);
  return found;
}

// What went wrong with the last answer of `useFetch`, and how old the one is that is shown all the same.
export function Trouble({ of: { trouble, at } }) {
  return trouble ? html`<p class="trouble"><span role="status">${trouble}</span>${at ? ` (what is shown was told ${age(now() - at)})` : ''}</p>` : null;
}

// A list that the snapshot has the newest of, `most` of them, and what is older, by pages as somebody asks for them; and a button while
// there is more. What was asked for is asked for again when the newest are others than they were, and once in a while. `member`: where
// an answer has its part of the list; `nameOf` tells one from another.
export function useOlder(path, member, newest, most, nameOf) {
  const [found, set] = useState({ list: [], pages: 0 });
  const ask = async (pages, isOver = () => false) => {
    let list = [];
    let next;
    for (let n = 0; n < pages && next !== null; n += 1) {
      const answer = await send('GET', `${path}?limit=${PAGE}${next ? `&before=${encodeURIComponent(next)}` : ''}`);
      if (isOver()) return '';
      if (answer.status !== 200) return answer.trouble;
      list = [...list, ...answer.told[member]];
      next = answer.told.next;
    }
    set((before) => (before.pages > pages ? before : { list, next, pages }));
    return '';
  };
  const more = async () => {
    const trouble = await ask(found.pages + 1);
    if (trouble) announce(trouble);
  };
  // A moment after they changed, since what changes at once is one change.
  let isNew = true;
  useAsking(async (isOver) => {
    if (!found.pages) return undefined;
    if (isNew) {
      isNew = false;
      return AGAIN_MS / 2;
    }
    await ask(found.pages, isOver);
    return OLDER_SECONDS * 1000;
  }, [path, found.pages, newest.map(nameOf).join()]);
  const names = new Set(newest.map(nameOf));
  const all = [...newest, ...found.list.filter((one) => !names.has(nameOf(one)))];
  return [all, newest.length >= most && found.next !== null && html`<p><button type="button" onClick=${more}>older ${member}</button></p>`];
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

// A log as `lines`, with a search; `isCut` says that there were more before. It stands at its end and follows, unless somebody does
// not want that.
export function LogBox({ name, lines, state, isCut }) {
  const [search, setSearch] = useState('');
  const [follows, setFollows] = useState(true);
  const box = useRef(null);
  useEffect(() => {
    if (follows) box.current.scrollTop = box.current.scrollHeight;
  }, [lines, follows, search]);
  const wanted = search.toLowerCase();
  const all = isCut ? `the newest ${lines.length} lines` : `${lines.length} lines`;
  const shown = wanted ? lines.filter((l) => l.toLowerCase().includes(wanted)) : lines;
  return html`<div class="log">
    <div class="tools">
      <label for="log-search">Search</label>
      <input id="log-search" type="search" value=${search} onInput=${(e) => setSearch(e.target.value)} />
      <span class="soft count">${wanted ? `${shown.length} of ${all}` : all}${isCut ? ' (older ones are not searched)' : ''}, <span role="status">${coded(state)}</span></span>
      <label class="check"><input type="checkbox" checked=${follows} onChange=${(e) => setFollows(e.target.checked)} /> follow</label>
    </div>
    <pre ref=${box} tabindex="0" aria-label=${`log of ${name}`}>${shown.join('\n')}</pre>
  </div>`;
}

// What only people of the lab see.
export function ForPeople({ children }) {
  return isKnown() ? children : html`<p class="soft">Log in to see this.</p>`;
}
