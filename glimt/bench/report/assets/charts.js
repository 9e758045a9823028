// Charts as SVG, without a library: one function per form, all with axes, hover and a legend.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)"];

function node(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function element(name, properties, parent) {
  const made = Object.assign(document.createElement(name), properties);
  if (parent) parent.append(made);
  return made;
}

function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return Number((value / 1e6).toFixed(size < 1e7 ? 1 : 0)) + "M";
  if (size >= 1e4) return Number((value / 1e3).toFixed(size < 1e5 ? 1 : 0)) + "k";
  if (size >= 100 || value === Math.round(value)) return value.toFixed(0);
  return value.toFixed(size >= 1 ? 1 : size >= 0.1 ? 2 : 3);
}

// Round steps for an axis from low to high.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough) || rough;
  const made = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) made.push(at);
  return made;
}

function logTicks(low, high) {
  const made = [];
  const few = Math.log10(high / low) < 2;
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const k of few ? [1, 2, 5] : [1]) {
      const at = k * 10 ** power;
      if (at >= low * 0.999 && at <= high * 1.001) made.push(at);
    }
  return made;
}

function scale(low, high, from, to, isLog) {
  const map = isLog ? Math.log : (x) => x;
  const a = map(low), b = map(high);
  return (value) => from + ((map(value) - a) / (b - a || 1)) * (to - from);
}

const tip = { box: null };
function showTip(event, text) {
  tip.box = tip.box || element("div", { className: "tip" }, document.body);
  tip.box.textContent = text;
  tip.box.style.display = "block";
  const width = tip.box.offsetWidth, height = tip.box.offsetHeight;
  tip.box.style.left = Math.min(event.clientX + 14, innerWidth - width - 8) + "px";
  tip.box.style.top = Math.max(8, Math.min(event.clientY - height - 12, innerHeight - height - 8)) + "px";
}
function hideTip() { if (tip.box) tip.box.style.display = "none"; }

// A figure with a title, a line that says what is seen, and a legend if there is more than one thing.
function figure(parent, title, says, legend, isWide) {
  const box = element("figure", { className: isWide ? "wide" : "" }, parent);
  element("h2", { textContent: title }, box);
  element("p", { textContent: says }, box);
  if (legend && legend.length) {
    const row = element("div", { className: "legend" }, box);
    for (const [colour, name] of legend) {
      const entry = element("span", {}, row);
      element("i", {}, entry).style.background = colour;
      entry.append(name);
    }
  }
  return box;
}

// The frame of a plot: axes, grid, scales. spec: x and y {low, high, log, label, unit}, height.
function frame(box, spec) {
  const width = Math.max(320, box.clientWidth - 32), height = spec.height || 220;
  const left = 48, right = width - 12, top = 8, bottom = height - 34;
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", height }, box);
  const x = scale(spec.x.low, spec.x.high, left, right, spec.x.log);
  const y = scale(spec.y.low, spec.y.high, bottom, top, spec.y.log);
  const many = Math.max(3, Math.floor((right - left) / 90));
  for (const at of spec.y.log ? logTicks(spec.y.low, spec.y.high) : ticks(spec.y.low, spec.y.high, 5)) {
    node("line", { class: "grid", x1: left, x2: right, y1: y(at), y2: y(at) }, svg);
    node("text", { x: left - 7, y: y(at) + 4, "text-anchor": "end" }, svg, short(at) + (spec.y.unit || ""));
  }
  for (const at of spec.x.log ? logTicks(spec.x.low, spec.x.high) : ticks(spec.x.low, spec.x.high, many)) {
    node("line", { class: "axis", x1: x(at), x2: x(at), y1: bottom, y2: bottom + 4 }, svg);
    node("text", { x: x(at), y: bottom + 16, "text-anchor": "middle" }, svg, short(at));
  }
  node("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }, svg);
  node("text", { class: "label", x: right, y: height - 3, "text-anchor": "end" }, svg, spec.x.label);
  if (spec.shade) {
    const [from, to] = spec.shade;
    node("rect", { x: x(from), y: top, width: Math.max(1, x(to) - x(from)), height: bottom - top,
      fill: "var(--shade)" }, svg);
  }
  return { svg, x, y, left, right, top, bottom, width, height };
}

function path(points, x, y, isStep) {
  let text = "", before = null;
  for (const [a, b] of points) {
    if (b === null) { before = null; continue; }
    const X = x(a).toFixed(1), Y = y(b).toFixed(1);
    if (before === null) text += `M${X} ${Y}`;
    else text += isStep ? `H${X}V${Y}` : `L${X} ${Y}`;
    before = b;
  }
  return text;
}

// Lines over a common x. series: [{name, points: [[x, y]…], colour, step, fill}].
function lines(box, spec, series) {
  const plot = frame(box, spec);
  series.forEach((one, index) => {
    const colour = one.colour || COLOURS[index];
    const drawn = path(one.points, plot.x, plot.y, one.step);
    if (one.fill && one.points.length) {
      const first = plot.x(one.points[0][0]), last = plot.x(one.points[one.points.length - 1][0]);
      node("path", { d: `${drawn}L${last} ${plot.bottom}L${first} ${plot.bottom}Z`, fill: colour,
        "fill-opacity": .12 }, plot.svg);
    }
    if (!one.is_bare) node("path", { d: drawn, fill: "none", stroke: colour, "stroke-width": 2,
      "stroke-linejoin": "round" }, plot.svg);
    if (one.dots) for (const [a, b] of one.points)
      node("circle", { cx: plot.x(a), cy: plot.y(b), r: 4, fill: colour, stroke: "var(--surface)",
        "stroke-width": 2 }, plot.svg);
    if (one.dots) for (const [a, b, label] of one.points)
      if (label) node("text", { x: plot.x(a) - 8, y: plot.y(b) + 4, "text-anchor": "end" }, plot.svg, label);
    for (const [a, low, high] of one.bars || [])
      node("line", { x1: plot.x(a), x2: plot.x(a), y1: plot.y(low), y2: plot.y(high), stroke: colour,
        "stroke-width": 2, "stroke-opacity": .6 }, plot.svg);
  });
  hover(plot, spec, series);
}

// A vertical line that follows the pointer and tells the values there.
function hover(plot, spec, series) {
  const rule = node("line", { class: "axis", y1: plot.top, y2: plot.bottom, visibility: "hidden" }, plot.svg);
  const area = node("rect", { x: plot.left, y: plot.top, width: plot.right - plot.left,
    height: plot.bottom - plot.top, fill: "transparent" }, plot.svg);
  area.addEventListener("pointermove", (event) => {
    const at = (event.offsetX / plot.svg.clientWidth) * plot.width;
    const near = (points) => points.reduce((best, point) =>
      Math.abs(plot.x(point[0]) - at) < Math.abs(plot.x(best[0]) - at) ? point : best, points[0]);
    const filled = series.filter((one) => one.points.length);
    if (!filled.length) return;
    const told = filled.map((one) => `${one.name}: ${(one.show || short)(near(one.points)[1])}`);
    const where = near(filled[0].points)[0];
    rule.setAttribute("x1", plot.x(where)); rule.setAttribute("x2", plot.x(where));
    rule.setAttribute("visibility", "visible");
    showTip(event, `${(spec.x.show || short)(where)} ${spec.x.unit || ""}\n${told.join("\n")}`);
  });
  area.addEventListener("pointerleave", () => { rule.setAttribute("visibility", "hidden"); hideTip(); });
}

// Points. points: [{x, y, colour, text, hollow}].
function scatter(box, spec, points) {
  const plot = frame(box, spec);
  const layer = node("g", {}, plot.svg);
  for (const point of points) {
    const dot = node("circle", { cx: plot.x(point.x).toFixed(1), cy: plot.y(point.y).toFixed(1), r: 3.4,
      fill: point.hollow ? "none" : point.colour, "fill-opacity": .75,
      stroke: point.hollow ? point.colour : "none", "stroke-width": 1.5 }, layer);
    dot.addEventListener("pointermove", (event) => showTip(event, point.text));
    dot.addEventListener("pointerleave", hideTip);
  }
  return plot;
}

// Columns. bars: [[from, to, height]].
function columns(box, spec, bars, colour) {
  const plot = frame(box, spec);
  for (const [from, to, height] of bars) {
    const width = Math.max(1, plot.x(to) - plot.x(from) - 2);
    const column = node("rect", { x: plot.x(from) + 1, y: plot.y(height), width,
      height: Math.max(0, plot.bottom - plot.y(height)), fill: colour, rx: Math.min(3, width / 2) }, plot.svg);
    column.addEventListener("pointermove", (event) =>
      showTip(event, `${short(from)} to ${short(to)} ${spec.x.unit || ""}: ${height} requests`));
    column.addEventListener("pointerleave", hideTip);
  }
}

// Changes in percent with their intervals, a row for each: rows [name, change, low, high, verdict].
function changeBars(parent, chart) {
  const box = figure(parent, chart.title, chart.says, [], true);
  const width = Math.max(320, box.clientWidth - 32), rowHeight = 22, top = 6;
  const bottom = top + rowHeight * chart.rows.length, left = 130, right = width - 16;
  const svg = node("svg", { viewBox: `0 0 ${width} ${bottom + 24}`, role: "img", height: bottom + 24 }, box);
  const ends = chart.rows.flatMap((row) => row.slice(1, 4)), reach = 1.1 * Math.max(...ends.map(Math.abs)) || 1;
  const low = Math.min(...ends) < 0 ? -reach : -reach / 8, high = Math.max(...ends) > 0 ? reach : reach / 8;
  const x = scale(low, high, left, right);
  for (const at of ticks(low, high, Math.max(3, (right - left) / 110))) {
    node("line", { class: Math.abs(at) < 1e-9 ? "zero" : "grid", x1: x(at), x2: x(at), y1: top, y2: bottom }, svg);
    node("text", { x: x(at), y: bottom + 16, "text-anchor": "middle" }, svg, short(at) + " %");
  }
  chart.rows.forEach(([name, change, from, to, verdict], index) => {
    const y = top + rowHeight * (index + 0.5);
    const colour = verdict ? `var(--${verdict === "better" ? "good" : "bad"})` : "var(--ink-3)";
    node("text", { class: "label", x: left - 12, y: y + 4, "text-anchor": "end" }, svg, name);
    node("line", { x1: x(from), x2: x(to), y1: y, y2: y, stroke: colour, "stroke-width": 3,
      "stroke-opacity": .55, "stroke-linecap": "round" }, svg);
    node("circle", { cx: x(change), cy: y, r: 4.5, fill: colour }, svg);
    const row = node("rect", { x: left, y: y - rowHeight / 2, width: right - left, height: rowHeight,
      fill: "transparent" }, svg);
    const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(Math.abs(value) < 10 ? 2 : 1) + " %";
    row.addEventListener("pointermove", (event) =>
      showTip(event, `${name}: ${signed(change)}\n${signed(from)} to ${signed(to)} ${verdict}`));
    row.addEventListener("pointerleave", hideTip);
  });
}

// From light to strong as a value goes from low to high.
function ramp(value, low, high) {
  const share = high > low ? (value - low) / (high - low) : 0.5;
  const place = Math.min(2.999, Math.max(0, share * 3)), index = Math.floor(place);
  const percent = Math.round((place - index) * 100);
  return `color-mix(in oklab, var(--seq-${index + 1}) ${percent}%, var(--seq-${index}))`;
}
