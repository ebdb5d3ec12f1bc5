// Charts by uPlot, which is loaded when the first one is drawn.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact.js';

let loading = null;

function library() {
  loading ||= new Promise((done, fail) => {
    const sheet = Object.assign(document.createElement('link'), { rel: 'stylesheet', href: '/vendor/uplot.css' });
    const script = Object.assign(document.createElement('script'), { src: '/vendor/uplot.js', onload: () => done(window.uPlot), onerror: fail });
    document.head.append(sheet, script);
  });
  loading.catch(() => { loading = null; });
  return loading;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Told apart without colour too: dashes go with the colours.
const COLOURS = ['--link', '--good', '--warn', '--bad', '--soft', '--text'];
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3], [12, 4], [1, 2]];
// 36 lines that no two have in common.
const line = (i) => ({ stroke: colour(COLOURS[i % COLOURS.length]), dash: DASHES[(i + Math.floor(i / COLOURS.length)) % DASHES.length] });

// Of a limit, and how much of a colour fills what is below a stacked line.
const LIMIT = [8, 4];
const SHADE = '38';

// What is between two stacked lines, of those that are no limits.
function bandsOf(series) {
  const stack = series.map((s, i) => i + 1).filter((n) => !series[n - 1].isLimit);
  return stack.slice(1).map((n, i) => ({ series: [n, stack[i]] }));
}

function dashed(context, from, to, top, bottom, stroke) {
  context.save();
  context.strokeStyle = stroke;
  context.setLineDash([4, 3]);
  context.beginPath();
  context.moveTo(from, top);
  context.lineTo(to, bottom);
  context.stroke();
  context.restore();
}

// Draws the spans of lost work and a mark for each death and resumption over a plot.
function overlay(marks, lost) {
  return (u) => {
    const { left, top, width, height } = u.bbox;
    const x = (t) => Math.max(left, Math.min(left + width, u.valToPos(t, 'x', true)));
    const inView = (t) => t >= u.scales.x.min && t <= u.scales.x.max;
    u.ctx.save();
    u.ctx.fillStyle = colour('--bad');
    u.ctx.globalAlpha = 0.16;
    for (const l of lost) u.ctx.fillRect(x(l.from), top, Math.max(2, x(l.to) - x(l.from)), height);
    u.ctx.restore();
    for (const m of marks.filter((mark) => inView(mark.at))) {
      const isGood = m.kind === 'resumed' || m.outcome === 'succeeded';
      const stroke = colour(isGood ? '--good' : '--bad');
      dashed(u.ctx, x(m.at), x(m.at), top, top + height, stroke);
      u.ctx.save();
      u.ctx.fillStyle = stroke;
      u.ctx.font = `${Math.round(13 * devicePixelRatio)}px system-ui, sans-serif`;
      Object.assign(u.ctx, { textAlign: 'left', textBaseline: 'middle' });
      // Below each other: a death, its resumption and the end may be at nearly one time.
      const row = m.kind === 'resumed' ? 2 : m.kind === 'finished' ? 3 : 1;
      u.ctx.fillText(m.kind === 'resumed' ? '▶' : isGood ? '✔' : m.kind === 'finished' ? '■' : '✖', x(m.at) + 3 * devicePixelRatio, top + (16 * row - 7) * devicePixelRatio);
      u.ctx.restore();
    }
  };
}

// What is drawn of the time: a part that somebody drew up, or all of it and what happened after the last value.
function spanOf(time, low, high, marks) {
  if (time.length > 1 && high < time.at(-1)) return [low, high];
  const last = Math.max(time.at(-1) ?? high, ...marks.map((m) => m.at));
  return time.length > 1 ? [low, Math.max(high, last)] : [(time[0] ?? low) - 1, last + 1];
}

const DAY_S = 86_400;
const MINUTE_S = 60;
// Room for a label of the axis of time, which has seconds in a short span, and for half of it beyond the end.
const SHORT_S = 900;
const roomOf = (u, axis, from, to) => (to - from < SHORT_S ? 70 : 50);
const BEYOND_PX = 32;
const timeOfDay = (t, second) => new Date(t * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second, hourCycle: 'h23' });
const dayOf = (t) => new Date(t * 1000).toLocaleDateString([], { day: 'numeric', month: 'short' });
const timeAndDay = (t) => `${dayOf(t)}, ${timeOfDay(t, '2-digit')}`;

// What the axis of time says: the day where it is another than to the left of it, and of a short span the seconds, whole ones.
function timesOf(u, all, axis, space, step) {
  let before = '';
  return all.map((t) => {
    if (t % 1) return '';
    const day = dayOf(t) === before ? '' : dayOf(t);
    before = dayOf(t);
    return step >= DAY_S ? day : `${timeOfDay(t, step < MINUTE_S ? '2-digit' : undefined)}${day && `\n${day}`}`;
  });
}

// While nobody points at a time, the legend tells the newest one.
function tellNewest(u) {
  if (u.cursor.idx === null || u.cursor.idx === undefined) u.setLegend({ idx: u.data[0].length ? u.data[0].length - 1 : null });
}

// The lines' names in the legend are buttons for whoever has no mouse; what is drawn is a picture with a name.
function reachable(u, label) {
  const plot = u.root.querySelector('.u-wrap');
  plot.setAttribute('role', 'img');
  plot.setAttribute('aria-label', label);
  u.root.querySelector('.u-legend')?.setAttribute('role', 'presentation');
  for (const name of namesOf(u)) {
    name.setAttribute('role', 'button');
    name.tabIndex = 0;
    name.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      name.click();
    });
  }
  tellShown(u);
}

// Behind the one of the time, which is always there.
const namesOf = (u) => [...u.root.querySelectorAll('.u-legend .u-series > th')].slice(1);

function tellShown(u) {
  namesOf(u).forEach((name, i) => name.setAttribute('aria-pressed', String(u.series[i + 1].show)));
}

// So few values have a point each, and in a longer line one that stands alone: it would be no line.
const FEW = 12;
const isNone = (v) => v === null || v === undefined;
const aloneIn = (values) => values.flatMap((v, i) => (!isNone(v) && isNone(values[i - 1]) && isNone(values[i + 1]) ? [i] : []));
const POWERS_OF_TWO = Array.from({ length: 44 }, (_, i) => 2 ** i);

// What is drawn of values that are stacked: each on top of those before it that are shown. Limits are no part of the stack.
function stacked(series, isShown) {
  let below = null;
  return series.map((s, i) => {
    if (s.isLimit || !isShown(i)) return s.values;
    const sums = s.values.map((v, at) => (v === null ? below?.[at] ?? null : v + (below?.[at] ?? 0)));
    below = sums;
    return sums;
  });
}

// A chart over time. `series`: [{label, values}], `time`: unix seconds, both of one length; one that `isLimit` is dashed, one that
// `isHidden` is drawn once somebody asks for it in the legend. `say` says a value in words, `sayAxis` on the axis; `binary`: the axis
// counts in powers of two.
export function Chart({ time, series, say, sayAxis = say, label, height = 220, top, binary, stacked: isStacked, marks = [], lost = [] }) {
  const box = useRef(null);
  const plot = useRef(null);
  const newest = useRef(null);
  newest.current = { time, series };
  const drawn = (u) => {
    const { time: times, series: now } = newest.current;
    const isShown = (i) => (u ? u.series[i + 1].show : !now[i].isHidden);
    return [times, ...(isStacked ? stacked(now, isShown) : now.map((s) => s.values))];
  };
  const [trouble, setTrouble] = useState('');
  const shape = series.map((s) => `${s.label} ${s.isLimit || ''} ${s.isHidden || ''}`).join('\n');
  const options = (width) => {
    const axis = { stroke: colour('--soft'), grid: { stroke: colour('--line'), width: 1 }, ticks: { stroke: colour('--line'), width: 1 } };
    return {
      width, height,
      padding: [null, BEYOND_PX, null, null],
      cursor: { drag: { x: true, y: false } },
      legend: { show: series.length > 1 || Boolean(say) },
      scales: {
        x: { range: (u, low, high) => spanOf(u.data[0], low, high, marks) },
        y: { range: (u, low, high) => (top ? [0, top] : low === high ? [low - 1, high + 1] : window.uPlot.rangeNum(low, high, 0.1, true)) },
      },
      axes: [{ ...axis, space: roomOf, values: timesOf }, { ...axis, size: 76, ...(binary ? { incrs: POWERS_OF_TWO } : {}), values: (u, all) => all.map((v) => sayAxis(v)) }],
      series: [{ label: 'time', value: (u, t) => (t === null || t === undefined ? '–' : timeAndDay(t)) }, ...series.map((s, i) => ({
        label: s.label, ...(s.isLimit ? { stroke: colour('--soft'), dash: LIMIT } : line(i)), width: 1.5, spanGaps: false, show: !s.isHidden,
        ...(isStacked && !s.isLimit ? { fill: `${line(i).stroke}${SHADE}` } : {}),
        points: {
          show: (u, n) => u.data[n].filter((v) => !isNone(v)).length < FEW,
          filter: (u, n, isShown) => (isShown ? null : aloneIn(u.data[n])),
        },
        // Of what is stacked the value itself, not its place.
        value: (u, v, n, at) => { const told = newest.current.series[n - 1]?.values[at]; return told === null || told === undefined ? '–' : say(told); },
      }))],
      bands: isStacked ? bandsOf(series) : [],
      hooks: {
        ready: [tellNewest, (u) => reachable(u, label)], setCursor: [tellNewest], draw: [overlay(marks, lost)],
        setSeries: [tellShown, ...(isStacked ? [(u, n, { show }) => { if (show !== undefined) u.setData(drawn(u), false); }] : [])],
      },
    };
  };
  useEffect(() => {
    let over = false;
    let made = null;
    const resize = new ResizeObserver(() => { if (made && box.current) made.setSize({ width: box.current.clientWidth, height }); });
    const dark = matchMedia('(prefers-color-scheme: dark)');
    const make = (uPlot) => {
      if (over || !box.current) return;
      made?.destroy();
      made = new uPlot(options(box.current.clientWidth), drawn(null), box.current);
      plot.current = made;
    };
    const again = () => make(window.uPlot);
    library().then((uPlot) => {
      if (over) return;
      setTrouble('');
      make(uPlot);
      resize.observe(box.current);
      dark.addEventListener('change', again);
    }).catch(() => setTrouble('The chart could not be loaded.'));
    return () => { over = true; resize.disconnect(); dark.removeEventListener('change', again); made?.destroy(); plot.current = null; };
  // Marks are drawn by the plot's own hook: other ones make another plot.
  }, [shape, height, top, JSON.stringify(marks), JSON.stringify(lost)]);
  useEffect(() => {
    const u = plot.current;
    if (!u) return;
    // A part that somebody has drawn up stays as it is.
    const { min, max } = u.scales.x;
    const isWhole = !u.data[0].length || min === null || (min <= u.data[0][0] && max >= u.data[0].at(-1));
    u.setData(drawn(u), isWhole);
    tellNewest(u);
    if (!isWhole) u.redraw();
  }, [time]);
  return html`<figure class="chart" aria-label=${label}><div ref=${box}></div>${trouble && html`<p class="trouble">${trouble}</p>`}</figure>`;
}
