// Output of a service or a job, followed live, with a search. Nothing is shown but text.
import { html, useEffect, useState } from '../../vendor/htm-preact.js';
import { AGAIN_MS, troubleOf } from '../lab.js';
import { ForPeople, LogBox, Section, TAIL } from '../parts.js';
import { plain } from '../words.js';

const LINES_KEPT = 5000;

// Streams a text, line by line; begins again where it ends early. Nobody looks at a hidden page: it gives its connection back, of
// which a browser has few.
function useLines(path) {
  const [lines, set] = useState([]);
  const [state, setState] = useState('connecting …');
  useEffect(() => {
    let stop = null;
    let timer;
    const read = async () => {
      stop = new AbortController();
      const { signal } = stop;
      let rest = '';
      const all = [];
      try {
        const answer = await fetch(path, { signal });
        if (!answer.ok) {
          const told = await answer.json().catch(() => ({}));
          if (signal.aborted) return;
          setState(troubleOf(answer, told));
          timer = setTimeout(read, AGAIN_MS);
          return;
        }
        setState('live');
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        for (;;) {
          const { value, done } = await reader.read();
          if (done) break;
          const pieces = plain(rest + value).split('\n');
          rest = pieces.pop();
          all.push(...pieces);
          all.splice(0, all.length - LINES_KEPT);
          set([...all]);
        }
        if (rest) set([...all, rest]);
        // The service, or labd, ended: what follows is shown with what the next one says.
        setState('ended');
        timer = setTimeout(read, AGAIN_MS);
      } catch {
        if (signal.aborted) return;
        setState('interrupted');
        timer = setTimeout(read, AGAIN_MS);
      }
    };
    const end = () => { stop?.abort(); clearTimeout(timer); };
    const look = () => { end(); if (!document.hidden) read(); };
    set([]);
    look();
    document.addEventListener('visibilitychange', look);
    return () => { document.removeEventListener('visibilitychange', look); end(); };
  }, [path]);
  return [lines, state];
}

export function Log({ path, name }) {
  const [lines, state] = useLines(path);
  return html`<${LogBox} name=${name} lines=${lines} state=${state} isCut=${lines.length >= TAIL} />`;
}

export function ServiceLog({ name }) {
  return html`<${Section} id="log-h" title=${`Log of ${name}`} aside=${html`<a href="#/services">all services</a>`}>
    <${ForPeople}><${Log} name=${name} path=${`/api/v1/services/${encodeURIComponent(name)}/logs?tail=${TAIL}&follow=true`} /><//>
  <//>`;
}
