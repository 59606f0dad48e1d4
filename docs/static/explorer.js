/* The explorer: sliders for the arguments of fit_one_cycle, a picture of the plan they make, and the line to copy.

It replaces each <div class="onecycle-explorer" data-start="…">, which docs/explorer.py writes. `data-start` holds the
values to start with, the stops of the sliders, and the momentums. Nothing else is needed, and nothing is requested. */
(() => {
'use strict';

// ---- The schedule: onecycle_callback/schedule.py with anneal='cos'; tests/test_explorer.py compares every batch ----

function annealCos(start, end, pos) {
  return start + (end - start) * ((1 - Math.cos(Math.PI * pos)) / 2);
}

/** Return a function of the batch number: from `start` over `top`, at batch `peak`, to `end`, at batch `last`. */
function curve([start, top, end], peak, last) {
  return i => {
    if (i === peak) return top;
    if (i >= last) return end;
    return i < peak ? annealCos(start, top, i / peak) : annealCos(top, end, (i - peak) / (last - peak));
  };
}

/** Return the plan of a cycle: its number of batches, its peak, and LR and momentum as functions of the batch. */
function makePlan(values, moms) {
  const {max_lr, div_factor, pct_start, final_div, cycle_len, n_batch} = values;
  const n = cycle_len * n_batch;
  const peak = Math.min(Math.floor(pct_start * n + 0.5), n - 1);
  const lrs = [max_lr / div_factor, max_lr, max_lr / (final_div ?? div_factor)];
  return {n, peak, n_batch, call: callOf(values), lr: curve(lrs, peak, n - 1), mom: curve(moms, peak, n - 1)};
}

// ---- The arguments, as text and as numbers -------------------------------------------------------------------------

const whole = {allowed: 'a whole number of at least 1', accepts: v => Number.isSafeInteger(v) && v >= 1};
const ARGUMENTS = {
  cycle_len: whole,
  n_batch: {...whole, label: 'batches per epoch'},
  max_lr: {allowed: 'a number above 0', accepts: v => v > 0 && v < Infinity},
  div_factor: {allowed: 'a number of at least 1', accepts: v => v >= 1 && v < Infinity},
  pct_start: {allowed: 'between 0 and 1', accepts: v => v !== null && v >= 0 && v <= 1},
  final_div: {allowed: 'a number of at least 1, inf to end at 0, or None', accepts: v => v === null || v >= 1},
};
const NAMES = Object.keys(ARGUMENTS);

function show(number) {
  return String(Number(number.toPrecision(4)));
}

function parse(text) {
  const special = {none: null, inf: Infinity, '': NaN}, key = String(text).trim().toLowerCase();
  return key in special ? special[key] : Number(key);
}

function write(value) {
  return value === null ? 'None' : value === Infinity ? 'inf' : String(value);
}

/** Return the call as Python code. `n_batch` isn't in it: it is the length of the user's data loader. */
function callOf(values) {
  const given = Object.keys(values).filter(name => name !== 'n_batch' && values[name] !== null);
  const code = name => `${name}=${values[name] === Infinity ? "float('inf')" : values[name]}`;
  return `learn.fit_one_cycle(${given.map(code).join(', ')})`;
}

/** Return the index of the stop that is closest to `value`. */
function nearest(stops, value) {
  if (stops.includes(value)) return stops.indexOf(value);
  const distances = stops.map(stop => stop === null ? Infinity : Math.abs(stop - value));
  return distances.indexOf(Math.min(...distances));
}

/** Return `stops` scaled so that `value` takes the place of `middle`. */
function around(value, middle, stops) {
  const round = Number.isInteger(middle) ? v => Math.max(1, Math.round(v)) : v => Number(v.toPrecision(6));
  return [...new Set(stops.map(stop => round(stop * value / middle)))];
}

// ---- Drawing: a chart is a string of SVG, made anew at each change -------------------------------------------------

const LEFT = 58, RIGHT = 14, GAP = 34, HEIGHTS = {lr: 190, mom: 84};   // in pixels, like the text's 14 in explorer.css

function scale([low, high], [start, end]) {
  return value => start + (value - low) / (high - low || 1) * (end - start);
}

/** Return the range of `values`, and a little more. */
function widened(values) {
  const low = Math.min(...values), high = Math.max(...values), margin = (high - low) * 0.1 || low * 0.05 || 0.001;
  return [low - margin, high + margin];
}

/** Return at most `most` + 1 round numbers between `low` and `high`, and how many decimals they have. */
function ticks([low, high], most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(k => k * power >= rough * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-6), last = Math.floor(high / step + 1e-6);
  const values = Array.from({length: last - first + 1}, (_, k) => (first + k) * step);
  return {values, decimals: Math.max(0, -Math.floor(Math.log10(step) + 1e-9))};
}

function tickText(value, decimals) {
  if (!value || decimals < 6) return value ? value.toFixed(decimals) : '0';
  return value.toExponential(Math.max(0, Math.min(20, decimals + Math.floor(Math.log10(Math.abs(value))))));
}

/** Return which batches from `first` to `last` to draw: all of a few, otherwise some at equal distances, and `keep`. */
function batchesToDraw(first, last, keep) {
  const step = Math.ceil((last - first + 1) / 800), some = new Set(keep);
  for (let i = first; i < last; i += step) some.add(i);
  return [...some.add(last)].sort((a, b) => a - b);
}

function path(points) {
  return 'M' + points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join('L');
}

/** Return one of the panels of a chart: a frame, its numbers, and what `marks` draws in it. */
function panel({label, range, most, marks}, x, top, height, width) {
  const y = scale(range, [top + height, top]), {values, decimals} = ticks(range, most);
  const lines = values.map(v => `<path class="grid" d="M${LEFT},${y(v)}H${width - RIGHT}"/>
    <text class="tick" x="${LEFT - 6}" y="${y(v) + 5}" text-anchor="end">${tickText(v, decimals)}</text>`);
  return `<text x="${LEFT}" y="${top - 9}">${label}</text>${lines.join('')}${marks(x, y, top, top + height)}`;
}

/** Return a chart: the panels below each other, over the same horizontal axis. */
function chart(width, {label, note = '', range, most, offset = 0}, panels) {
  const x = scale(range, [LEFT, width - RIGHT]);
  let top = GAP - 8, body = '';
  for (const [name, each] of Object.entries(panels)) {
    body += panel(each, x, top, HEIGHTS[name], width);
    top += HEIGHTS[name] + GAP;
  }
  const bottom = top - GAP;
  const numbers = ticks(range, most).values.filter(v => Number.isInteger(v) && v + offset <= range[1]).map(v =>
    `<text class="tick" x="${x(v + offset)}" y="${bottom + 18}" text-anchor="middle">${v}</text>`);
  return `${body}<path class="axis" d="M${LEFT},${bottom}H${width - RIGHT}"/>${numbers.join('')}
    <text class="tick note" x="${LEFT}" y="${bottom + 37}">${note}</text>
    <text x="${width - RIGHT}" y="${bottom + 37}" text-anchor="end">${label}</text>`;
}

const HYPERS = {lr: 'learning rate', mom: 'momentum'};

function cursor(x, y, top, bottom) {
  return `<path class="cursor" d="M${x},${top}V${bottom}"/><circle class="cursor" cx="${x}" cy="${y}" r="4"/>`;
}

/** Draw the whole cycle over the epochs, on axes that no slider moves; dashed, the plan that the page began with. */
function drawCycle(svg, {plan, first, axes, batch}) {
  const epochOf = i => i / plan.n_batch, epoch = Math.floor(epochOf(batch)), top = show(plan.lr(plan.peak));
  const line = (plan, hyper, x, y) => path(batchesToDraw(0, plan.n - 1, [plan.peak]).map(
    i => [x(i / plan.n_batch), y(plan[hyper](i))]));
  const peakMark = (x, y) => {
    const [cx, cy] = [x(epochOf(plan.peak)), y(plan.lr(plan.peak))], isLeft = cx < svg.clientWidth / 2;
    return `<circle class="peak" cx="${cx}" cy="${cy}" r="4"/><text class="peak" x="${cx + (isLeft ? 8 : -8)}"
      y="${cy - 7}" text-anchor="${isLeft ? 'start' : 'end'}">${top} at batch ${plan.peak}</text>`;
  };
  const marks = hyper => (x, y, high, low) =>
    `<rect class="epoch" x="${x(epoch)}" width="${x(epoch + 1) - x(epoch)}" y="${high}" height="${low - high}"/>
    <path class="first" d="${line(first, hyper, x, y)}"/><path class="line" d="${line(plan, hyper, x, y)}"/>
    ${hyper === 'lr' ? peakMark(x, y) : ''}${cursor(x(epochOf(batch)), y(plan[hyper](batch)), high, low)}`;
  const note = plan.call === first.call ? 'point at a batch, or use ← →' : 'dashed: as it was at first';
  svg.innerHTML = chart(svg.clientWidth, {label: 'epoch', note, range: axes.epochs, most: 8}, {
    lr: {label: HYPERS.lr, range: axes.lr, most: 4, marks: marks('lr')},
    mom: {label: HYPERS.mom, range: axes.mom, most: 3, marks: marks('mom')},
  });
}

/** Draw the batches of one epoch as stairs, since each batch has one value, on axes that fit them. */
function drawEpoch(svg, {plan, batch}) {
  const epoch = Math.floor(batch / plan.n_batch), start = epoch * plan.n_batch, stop = start + plan.n_batch;
  const batches = batchesToDraw(start, stop - 1, plan.peak >= start && plan.peak < stop ? [plan.peak] : []);
  const row = (hyper, most) => {
    const values = batches.map(plan[hyper]);
    const marks = (x, y, top, bottom) => {
      const stairs = batches.flatMap((i, k) => [[x(i), y(values[k])], [x(batches[k + 1] ?? stop), y(values[k])]]);
      return `<path class="line" d="${path(stairs)}"/>${cursor(x(batch + 0.5), y(plan[hyper](batch)), top, bottom)}`;
    };
    return {label: `${HYPERS[hyper]} in epoch ${epoch}`, range: widened(values), most, marks};
  };
  svg.innerHTML = chart(svg.clientWidth, {label: 'batch', range: [start, stop], most: 5, offset: 0.5}, {
    lr: row('lr', 5), mom: row('mom', 3),
  });
}

// ---- The explorer: sliders, fields, the two charts, the values of one batch, the line ------------------------------

const FORM = `<form><fieldset><legend>Move the sliders, or type your own numbers</legend></fieldset>
  <p class="error" role="alert"></p>
  <div class="charts"><svg class="cycle" role="slider" tabindex="0" aria-label="batch"></svg>
  <svg class="zoom" aria-hidden="true"></svg></div><p class="values"></p>
  <div class="call"><code></code><button type="button">Copy</button><button type="reset">Reset</button>
  <span role="status"></span></div></form>`;

const row = name => `<label><span>${ARGUMENTS[name].label ?? `<code>${name}</code>`}</span>
  <input type="range" name="${name}" min="0" step="1"></label>
  <input type="text" name="${name}" aria-label="${ARGUMENTS[name].label ?? name}, typed" autocomplete="off">`;

const last = list => list[list.length - 1];
const byName = make => Object.fromEntries(NAMES.map(name => [name, make(name)]));

function explorer(root) {
  const start = JSON.parse(root.dataset.start), momAxis = widened(start.moms);
  const firstValues = byName(name => parse(start.values[name]));
  const firstStops = byName(name => start.stops[name].map(parse));
  const first = makePlan(firstValues, start.moms);
  let values, stops, batch, plan;

  root.innerHTML = FORM;
  const find = selector => root.querySelector(selector);
  const form = find('form'), cycle = find('.cycle'), zoom = find('.zoom'), code = find('.call code');
  find('fieldset').insertAdjacentHTML('beforeend', NAMES.map(row).join(''));

  function draw() {
    plan = makePlan(values, start.moms);
    batch = Math.max(0, Math.min(plan.n - 1, batch));
    const axes = {epochs: [0, last(stops.cycle_len)], lr: [0, 1.1 * last(stops.max_lr)], mom: momAxis};
    drawCycle(cycle, {plan, first, axes, batch});
    drawEpoch(zoom, {plan, batch});
    showBatch();
  }

  /** Show the values of the batch, and have them read aloud where the arrow keys choose it. */
  function showBatch() {
    const inEpoch = batch % plan.n_batch, epoch = (batch - inEpoch) / plan.n_batch;
    const text = `Batch ${batch}, which is batch ${inEpoch} of epoch ${epoch}: ` +
      `learning rate ${show(plan.lr(batch))}, momentum ${show(plan.mom(batch))}`;
    find('.values').textContent = text;
    const aria = {valuemin: 0, valuemax: plan.n - 1, valuenow: batch, valuetext: text};
    for (const name in aria) cycle.setAttribute(`aria-${name}`, aria[name]);
  }

  /** Show an argument's value, as a number for those who hear it: a slider itself would tell its position. */
  function showArgument(name) {
    const [slider, field] = form.elements[name];
    slider.max = stops[name].length - 1;
    slider.value = nearest(stops[name], values[name]);
    slider.setAttribute('aria-valuetext', write(values[name]));
    field.value = write(values[name]);
    field.setAttribute('aria-invalid', false);
  }

  function showAll() {
    NAMES.forEach(showArgument);
    draw();
    code.textContent = plan.call;
    find('.error').textContent = find('[role=status]').textContent = '';
  }

  /** Set an argument. A typed number beyond its slider gets a new slider around it, and so a new axis. */
  function set(name, value) {
    const reached = stops[name].filter(Number.isFinite), isBeyond = value < reached[0] || value > last(reached);
    if (isBeyond && ['cycle_len', 'max_lr'].includes(name)) {
      stops[name] = around(value, firstValues[name], firstStops[name]);
    }
    values[name] = value;
    showAll();
  }

  function refuse(name) {
    find('.error').textContent = `${name} must be ${ARGUMENTS[name].allowed}`;
    form.elements[name][1].setAttribute('aria-invalid', true);
  }

  function moveTo(to) {
    batch = to;
    draw();
  }

  function reset() {
    [values, stops, batch] = [{...firstValues}, {...firstStops}, 0];
    showAll();
  }

  form.addEventListener('input', ({target: {type, name, value}}) => {
    if (type === 'range') set(name, stops[name][value]);
  });
  form.addEventListener('change', ({target: {type, name, value}}) => {
    if (type === 'text') (ARGUMENTS[name].accepts(parse(value)) ? set : refuse)(name, parse(value));
  });
  form.addEventListener('submit', event => event.preventDefault());
  form.addEventListener('reset', event => {
    event.preventDefault();
    reset();
  });
  form.querySelector('[type=button]').addEventListener('click', async () => {
    getSelection().selectAllChildren(code);
    try { await navigator.clipboard.writeText(code.textContent); } catch { document.execCommand('copy'); }
    find('[role=status]').textContent = 'Copied';
  });

  cycle.addEventListener('keydown', event => {
    const keys = {
      ArrowRight: batch + 1, ArrowUp: batch + 1, ArrowLeft: batch - 1, ArrowDown: batch - 1,
      PageUp: batch + plan.n_batch, PageDown: batch - plan.n_batch, Home: 0, End: plan.n - 1};
    if (!(event.key in keys) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    moveTo(keys[event.key]);
  });

  /** Let a pointer on `svg` choose the batch that `batchAt` returns for a fraction of the axis. */
  function choose(svg, batchAt) {
    for (const type of ['pointerdown', 'pointermove']) svg.addEventListener(type, event => {
      const {left, width} = svg.getBoundingClientRect();
      moveTo(batchAt(scale([LEFT, width - RIGHT], [0, 1])(event.clientX - left)));
    });
  }
  choose(cycle, fraction => Math.round(fraction * last(stops.cycle_len) * plan.n_batch));
  choose(zoom, fraction => {
    const inEpoch = Math.floor(fraction * plan.n_batch);
    return batch - batch % plan.n_batch + Math.max(0, Math.min(plan.n_batch - 1, inEpoch));
  });

  reset();
  new ResizeObserver(draw).observe(cycle);
}

document.addEventListener('DOMContentLoaded', () => document.querySelectorAll('.onecycle-explorer').forEach(explorer));
window.onecycle = {makePlan, parse};   // for the tests
})();
