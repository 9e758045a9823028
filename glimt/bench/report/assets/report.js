// Puts the report together from `REPORT`, the data that stands in the page.
"use strict";

const ms = (value) => value >= 1000 ? (value / 1000).toFixed(2) + " s" : short(value) + " ms";
const bound = (values, share) => {
  const sorted = values.filter((v) => v !== null && Number.isFinite(v)).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 1;
};
// The top of an axis from 0: some room above the highest value, and 1 where all are 0.
const headroom = (values) => 1.08 * Math.max(0, ...values.filter(Number.isFinite)) || 1;

function pills(parent, page) {
  if (!page.pills || !page.pills.length) return;
  const row = element("div", { className: "pills" }, parent);
  for (const [kind, text] of page.pills) element("span", { className: `pill ${kind}`, textContent: text }, row);
}

function cards(parent, run) {
  const row = element("div", { className: "cards" }, parent);
  for (const card of run.cards) {
    const box = element("div", { className: "card" }, row);
    element("div", { className: "name", textContent: card.name }, box);
    const value = element("div", { className: "value", textContent: card.value }, box);
    element("small", { textContent: card.unit }, value);
    element("div", { className: "more", textContent: card.more }, box);
  }
}

function timeAxis(run) {
  return { low: 0, high: Math.max(run.duration_s, 1e-3), label: "seconds into the run", unit: "s",
    show: (at) => at.toFixed(2) };
}

function loadCharts(parent, run) {
  const time = run.time, points = (name) => time.t.map((t, index) => [t, time[name][index]]);
  let box = figure(parent, "Requests in flight", run.steady ? "Shaded: the steady part of the run" : "Over the run", []);
  lines(box, { x: timeAxis(run), shade: run.steady, y: { low: 0, high: headroom(run.in_flight.map((p) => p[1])) } },
    [{ name: "in flight", points: run.in_flight, step: true, fill: true }]);
  box = figure(parent, "Requests per second", "Those that left the client, and those that were answered",
    [[COLOURS[0], "left"], [COLOURS[2], "answered"]]);
  lines(box, { x: timeAxis(run), shade: run.steady,
    y: { low: 0, high: headroom([...time.arrivals, ...time.completions]) } }, [
    { name: "left/s", points: points("arrivals") },
    { name: "answered/s", points: points("completions"), colour: COLOURS[2] }]);
  const legend = [[COLOURS[2], "content"]];
  if (run.has_thinking) legend.unshift([COLOURS[3], "thinking"]);
  box = figure(parent, "Throughput", "Generated tokens per second", legend.length > 1 ? legend : []);
  const series = [{ name: "all tokens/s", points: points("tokens"), colour: COLOURS[2], fill: true }];
  if (run.has_thinking) series.push({ name: "thinking/s", points: points("thinking"), colour: COLOURS[3] });
  lines(box, { x: timeAxis(run), shade: run.steady, y: { low: 0, high: headroom(time.tokens) } }, series);
}

function pointText(run, p) {
  return `request ${p[0]}\nTTFT ${ms(p[2])}, E2EL ${ms(p[3])}\n${short(p[4])} ${run.x_name}, ${p[5]} tokens out`;
}

function ttftCharts(parent, run) {
  const good = run.points, ttfts = good.map((p) => p[2]);
  if (!good.length) return;
  const low = Math.max(0.01, bound(ttfts, 0) * 0.8), high = headroom(ttfts), isLog = high / low > 30;
  const y = { low: isLog ? low : 0, high, log: isLog };
  const xs = good.map((p) => p[4]), xLow = bound(xs, 0.02), xHigh = bound(xs, 0.98);
  let box = figure(parent, "Time to first token over the run", `Milliseconds; the stronger the more ${run.x_name}`,
    [[ramp(xLow, xLow, xHigh), short(xLow)], [ramp(xHigh, xLow, xHigh), `${short(xHigh)} ${run.x_name}`]]);
  scatter(box, { x: timeAxis(run), y, shade: run.steady }, good.map((p) => ({
    x: p[1], y: p[2], colour: ramp(p[4], xLow, xHigh), text: pointText(run, p) })));
  box = figure(parent, `Time to first token by ${run.x_name}`, "Milliseconds; what a larger input costs");
  scatter(box, { y, x: { low: Math.min(...xs), high: Math.max(...xs) + 1e-9, label: run.x_name } },
    good.map((p) => ({ x: p[4], y: p[2], colour: COLOURS[0], text: pointText(run, p) })));
}

function distributionChart(parent, run) {
  const names = Object.keys(run.quantiles).filter((name) => run.quantiles[name].length);
  if (!names.length) return;
  const all = names.flatMap((name) => run.quantiles[name]).filter((v) => v > 0);
  const shares = run.shares.map((share) => 100 * share);
  const box = figure(parent, "Distributions", "How many of the values are below, by milliseconds",
    names.map((name, index) => [COLOURS[index], name]));
  const x = { low: Math.max(0.01, Math.min(...all) * 0.9), high: Math.max(...all) * 1.1, log: true,
    label: "milliseconds" };
  const plot = frame(box, { x, y: { low: 0, high: 100, unit: " %" } });
  names.forEach((name, index) => {
    const points = run.quantiles[name].map((value, k) => [Math.max(value, x.low), shares[k]]);
    node("path", { d: path(points, plot.x, plot.y), fill: "none", stroke: COLOURS[index], "stroke-width": 2 },
      plot.svg);
  });
  const area = node("rect", { x: plot.left, y: plot.top, width: plot.right - plot.left,
    height: plot.bottom - plot.top, fill: "transparent" }, plot.svg);
  area.addEventListener("pointermove", (event) => {
    const share = 100 * (plot.bottom - (event.offsetY / plot.svg.clientHeight) * plot.height) / (plot.bottom - plot.top);
    const k = shares.reduce((best, s, i) => Math.abs(s - share) < Math.abs(shares[best] - share) ? i : best, 0);
    showTip(event, `${shares[k].toFixed(1)} % are below\n` +
      names.map((name) => `${name}: ${ms(run.quantiles[name][k])}`).join("\n"));
  });
  area.addEventListener("pointerleave", hideTip);
}

function lengthChart(parent, title, says, bars, label, colour) {
  if (!bars.length) return;
  const box = figure(parent, title, says);
  const low = bars[0][0], high = bars[bars.length - 1][1];
  const room = Math.max(0, 4 - (high - low) / 2);  // where all are alike, a bar and not a wall
  columns(box, { y: { low: 0, high: headroom(bars.map((bar) => bar[2])) },
    x: { low: Math.max(0, Math.floor(low - room)), high: high + room, label, unit: "tokens" } }, bars, colour);
}

// One row per request: waiting for the limit, waiting for the first token, thinking, content; over
// these the gaps between tokens that are longer than the limits.
function waterfall(parent, run) {
  const rows = run.waterfall;
  if (!rows.length) return;
  const names = [["--ink-3", "client queue"], ["--c2", "until the first token"], ["--c4", "thinking"],
    ["--c3", "content"], ["--gap-1", `gaps from ${run.gap_limits_ms[0]} ms`],
    ["--gap-2", `from ${run.gap_limits_ms[1]} ms`], ["--bad", "failed"]];
  const box = figure(parent, "Requests", rows.length < run.num_requests
    ? `${rows.length} of ${run.num_requests} requests, evenly chosen; one row each` : "One row each",
    names.map(([colour, name]) => [`var(${colour})`, name]), true);
  const rowHeight = Math.max(2, Math.min(14, 520 / rows.length)), height = rows.length * rowHeight + 30;
  const canvas = element("canvas", {}, box);
  const width = Math.max(320, box.clientWidth - 32), pixel = devicePixelRatio || 1, left = 8, right = width - 8;
  canvas.width = width * pixel; canvas.height = height * pixel; canvas.style.height = height + "px";
  const draw = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  draw.scale(pixel, pixel);
  const x = scale(0, Math.max(run.duration_s * 1000, 1), left, right);
  draw.fillStyle = colour("--ink-3"); draw.font = "11px system-ui"; draw.textAlign = "center";
  for (const at of ticks(0, run.duration_s, width / 90)) draw.fillText(short(at) + " s", x(at * 1000), height - 8);
  rows.forEach(([, fired, start, first, visible, last, end, failed, gaps], index) => {
    const y = index * rowHeight, h = Math.max(1, rowHeight - (rowHeight > 4 ? 2 : 0.5));
    const bar = (from, to, name) => {
      if (to === null || from === null || to <= from) return;
      draw.fillStyle = colour(name);
      draw.fillRect(x(from), y, Math.max(0.7, x(to) - x(from)), h);
    };
    bar(fired, start, "--ink-3");
    bar(start, first === null ? end : first, failed && first === null ? "--bad" : "--c2");
    bar(first, visible === null ? last : visible, "--c4");
    bar(visible, last, failed ? "--bad" : "--c3");
    const cell = (last - first) / gaps.length;
    [...gaps].forEach((level, k) => {
      if (level !== "0") bar(first + k * cell, first + (k + 1) * cell, `--gap-${level}`);
    });
  });
  canvas.addEventListener("pointermove", (event) => {
    const row = rows[Math.floor((event.offsetY / canvas.clientHeight) * height / rowHeight)];
    if (!row) return hideTip();
    const [index, fired, start, first, , last, end, failed, , longest] = row;
    showTip(event, `request ${index}${failed ? ": " + failed : ""}\nqueue ${ms(start - fired)}\n` +
      (first === null ? `ended after ${ms(end - start)}` : `TTFT ${ms(first - start)}, E2EL ${ms(last - start)}\nlongest gap ${ms(longest)}`));
  });
  canvas.addEventListener("pointerleave", hideTip);
}

function healthCharts(parent, run) {
  if (run.lag.length) {
    const box = figure(parent, "The client itself", "How late requests left and the event loop woke, in milliseconds",
      [[COLOURS[0], "send lag"], [COLOURS[1], "event loop lag"]]);
    lines(box, { x: timeAxis(run), y: { low: 0, high: headroom([...run.lag, ...run.loop].map((p) => p[1])) } },
      [{ name: "send lag (ms)", points: run.lag }, { name: "loop lag (ms)", points: run.loop }]);
  }
  for (const chart of run.strips) {
    const box = figure(parent, chart.title, chart.says, chart.series.length > 1
      ? chart.series.map((one, index) => [COLOURS[index], one.name]) : []);
    lines(box, { height: 180, x: timeAxis(run),
      y: { low: 0, high: headroom(chart.series.flatMap((one) => one.points.map((p) => p[1]))), unit: chart.unit } },
      chart.series);
  }
}

function table(parent, title, says, head, rows) {
  const box = element("section", { className: "box" }, parent);
  element("h2", { textContent: title }, box);
  element("p", { textContent: says }, box);
  const made = element("table", {}, box), line = element("tr", {}, made);
  for (const name of head) element("th", { textContent: name }, line);
  for (const row of rows) {
    const entry = element("tr", {}, made);
    for (const cell of row) {
      const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
      element("td", { textContent: text, className: kind }, entry);
    }
  }
}

function facts(parent, run) {
  const box = element("section", { className: "box" }, parent);
  element("h2", { textContent: "Where this comes from" }, box);
  const list = element("dl", {}, box);
  for (const [name, text] of run.facts) {
    element("dt", { textContent: name }, list);
    element("dd", { textContent: text }, list);
  }
}

function runPage(main, run) {
  pills(main, run);
  cards(main, run);
  const charts = element("div", { className: "charts" }, main);
  loadCharts(charts, run);
  ttftCharts(charts, run);
  distributionChart(charts, run);
  lengthChart(charts, "Lengths of prompts", "Requests by their input tokens", run.lengths, "input tokens", COLOURS[0]);
  lengthChart(charts, "Lengths of answers", "Requests by their output tokens", run.answers, "output tokens", COLOURS[2]);
  healthCharts(charts, run);
  waterfall(charts, run);
  table(main, "All figures", "Milliseconds", run.table.head, run.table.rows);
  facts(main, run);
}

// Curves over what was varied.
function loadCurves(charts, chart) {
  const box = figure(charts, chart.title, chart.says,
    chart.series.length > 1 ? chart.series.map((one, index) => [COLOURS[index], one.name]) : []);
  const points = chart.series.flatMap((one) => one.points), xs = points.map((p) => p[0]);
  const low = Math.min(...xs), high = Math.max(...xs);
  const isLog = low > 0 && high / low > 12;
  lines(box, { x: { low: isLog ? low * 0.9 : Math.min(0, low), high: high * 1.05 + 1e-9, log: isLog, label: chart.x },
    y: { low: 0, high: headroom([...points.map((p) => p[1]),
      ...chart.series.flatMap((one) => (one.bars || []).map((bar) => bar[2]))]) } },
    chart.series.map((one) => ({ ...one, dots: true })));
}

// Distributions of two sides over one another.
function shareCurves(charts, chart) {
  const box = figure(charts, chart.title, chart.says, chart.series.map((one, index) => [COLOURS[index], one.name]));
  const xs = chart.series.flatMap((one) => one.points.map((p) => p[0])).filter((at) => at > 0);
  const low = Math.max(0.01, Math.min(...xs) * 0.95), high = Math.max(...xs) * 1.05, isLog = high / low > 12;
  lines(box, { x: { low: isLog ? low : 0.98 * low, high, log: isLog, label: chart.x, unit: "ms" },
    y: { low: 0, high: 100, unit: " %" } }, chart.series.map((one) => ({ ...one, show: (share) => short(share) + " %",
    points: one.points.map(([at, share]) => [Math.max(at, low), share]) })));
}

// Several runs: charts of what they say together, and tables.
function seriesPage(main, page) {
  pills(main, page);
  const charts = element("div", { className: "charts" }, main);
  charts.style.marginTop = "18px";
  const forms = { changes: changeBars, shares: shareCurves };
  for (const chart of page.charts) (forms[chart.form] || loadCurves)(charts, chart);
  for (const each of page.tables) table(main, each.title, each.says, each.head, each.rows);
}

function show(index) {
  const main = document.querySelector("main");
  main.replaceChildren();
  hideTip();
  document.querySelectorAll("nav button").forEach((button, k) => button.setAttribute("aria-pressed", k === index));
  const page = REPORT.pages[index];
  (page.kind === "run" ? runPage : seriesPage)(main, page);
}

function start() {
  const head = document.querySelector("header div"), nav = document.querySelector("nav");
  element("h1", { textContent: REPORT.title }, head);
  element("p", { className: "sub", textContent: REPORT.subtitle }, head);
  const command = element("p", { className: "sub" }, head);
  if (REPORT.command) {
    const code = element("code", {}, command);
    for (const word of REPORT.command.split(" ")) code.append(element("span", { textContent: word }), " ");
  }
  let current = 0;
  const go = (index) => { current = index; show(index); };
  if (REPORT.pages.length > 1) REPORT.pages.forEach((page, index) =>
    element("button", { textContent: page.name, onclick: () => go(index) }, nav));
  const root = document.documentElement, wanted = matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = wanted.matches ? "dark" : "light";
  document.getElementById("theme").onclick = () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    show(current);
  };
  wanted.addEventListener("change", () => { root.dataset.theme = wanted.matches ? "dark" : "light"; show(current); });
  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => show(current), 150); });
  go(0);
}
start();
