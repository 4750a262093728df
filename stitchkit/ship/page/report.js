"use strict";
// The page's whole state is what its controls show; every change draws plot and table anew from it.

const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2f6bb0", "#d9822b", "#2e8b57", "#8e5ea2", "#c23b3b", "#4a9a9a", "#8a6d5a", "#b59a12"];
const FIGURES = {
  flops: { label: "FLOPs", axis: "FLOPs of one image (multiply-adds)", show: quantity },
  params: { label: "params", axis: "parameters", show: quantity },
  activations: { label: "activations", show: quantity },
  latency_ms: { label: "latency", axis: "latency of a batch (ms)", show: (value) => value.toFixed(2) + " ms" },
  images_per_s: { label: "images/s", show: (value) => value.toFixed(0) },
  acc1: { label: "top-1", show: (value) => value.toFixed(2) + " %", better: 1 },
  acc5: { label: "top-5", show: (value) => value.toFixed(2) + " %", better: 1 },
  loss: { label: "loss", show: (value) => value.toFixed(4), better: -1 },
};
const COSTS = ["flops", "params", "latency_ms"];
// Only these: plotly's own bar has a button that sends the chart to its makers.
const BAR = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] };
const by = (id) => document.getElementById(id);

const rows = data.ledgers.flatMap((ledger, number) => ledger.rows.map((row) => ({ ...row, ledger: number })));
const has = (row, key) => typeof row[key] === "number";
const figures = Object.keys(FIGURES).filter((key) => rows.some((row) => has(row, key)));
const state = { shown: data.ledgers.map(() => true), sort: "flops", up: true, chosen: null };

function quantity(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return Number((value / size).toPrecision(3)) + unit;
  }
  return String(Number(value.toPrecision(3)));
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made[name] = value;
  made.append(...children);
  return made;
}

/** A number with or without a unit, such as 5G; null for an empty field, NaN for anything else. */
function amount(text) {
  if (!text.trim()) return null;
  const found = /^\s*(\d*\.?\d+(?:e\d+)?)\s*([kKmMgG]?)\s*$/.exec(text);
  return found ? Number(found[1]) * { "": 1, k: 1e3, m: 1e6, g: 1e9 }[found[2].toLowerCase()] : NaN;
}

function limit(id) {
  const field = by(id);
  const value = amount(field.value);
  field.classList.toggle("bad", Number.isNaN(value));
  return Number.isNaN(value) ? null : value;
}

/** The rows that no other row of the same ledger beats in both cost and accuracy. */
function frontOf(some, cost) {
  const front = [];
  const ordered = some.filter((row) => has(row, cost)).sort((a, b) => a[cost] - b[cost] || b.acc1 - a.acc1);
  for (const row of ordered) if (!front.length || row.acc1 > front.at(-1).acc1) front.push(row);
  return front;
}

function nameOf(row) {
  return row.stitch ?? `cfg_id ${row.cfg_id}`;
}

/** What the controls ask for: the rows within them, the front of each ledger, the best row within. */
function selection() {
  const cost = by("axis").value;
  const most = COSTS.map((key) => [key, limit("max-" + key)]).filter(([, value]) => value !== null);
  const least = limit("min-acc1");
  const search = by("search").value.trim().toLowerCase();
  const fronts = data.ledgers.map((_, number) => frontOf(rows.filter((row) => row.ledger === number), cost));
  const onFront = new Set(fronts.flat());
  const within = rows.filter(
    (row) =>
      state.shown[row.ledger] &&
      most.every(([key, value]) => has(row, key) && row[key] <= value) &&
      (least === null || row.acc1 >= least) &&
      nameOf(row).toLowerCase().includes(search) &&
      (!by("front-only").checked || onFront.has(row)),
  );
  let best = null;
  for (const row of within) {
    const gain = best === null ? 1 : row.acc1 - best.acc1;
    if (gain > 0 || (gain === 0 && row[cost] < best[cost])) best = row;
  }
  return { cost, fronts, onFront, within, best };
}

/** Name, drawing and figures of a stitch, with what the other ledgers say of it. */
function describe(row) {
  const ledger = data.ledgers[row.ledger];
  const list = element("dl", { className: "figures" });
  const same = ["cfg_id", "stitch", "flops"]; // published rows have no names, so their cost tells them apart
  const twins = rows.filter((other) => other !== row && state.shown[other.ledger] && same.every((key) => other[key] === row[key]));
  for (const key of figures.filter((key) => has(row, key))) {
    const value = element("dd", {}, FIGURES[key].show(row[key]));
    for (const twin of twins.filter((other) => has(other, key) && other[key] !== row[key] && FIGURES[key].better)) {
      const change = row[key] - twin[key];
      const className = change * FIGURES[key].better > 0 ? "up" : "down";
      const sign = change > 0 ? "+" : "−";
      const digits = key === "loss" ? 4 : 2;
      value.append(" ", element("span", { className }, `${sign}${Math.abs(change).toFixed(digits)} vs ${data.ledgers[twin.ledger].name}`));
    }
    list.append(element("dt", {}, FIGURES[key].label), value);
  }
  const from = (row.stitch ? `cfg_id ${row.cfg_id} ` : "") + (data.ledgers.length > 1 ? `of ${ledger.name}` : "");
  const parts = [element("p", { className: "stitch" }, nameOf(row)), element("p", { className: "from" }, from)];
  if (ledger.routes[row.stitch]) parts.push(drawing(ledger, row));
  return [...parts, list];
}

function drawing(ledger, row) {
  const holder = element("template", { innerHTML: ledger.routes[row.stitch] }); // made by us, labels escaped
  return holder.content.firstChild;
}

/** A stitch as one line: each segment in the color of its anchor, as long as it has blocks. */
function strip(ledger, stitch) {
  const made = element("span", { className: "strip", ariaHidden: "true" });
  for (const [, anchor, start, stop] of stitch.matchAll(/([^\s[]+)\[(\d+):(\d+)\]/g)) {
    const part = element("span");
    part.style.background = ledger.colors[anchor];
    part.style.flexGrow = stop - start;
    made.append(part);
  }
  return made;
}

function commandOf(row) {
  return `${data.ledgers[row.ledger].export} --cfg_id ${row.cfg_id} -o stitch${row.cfg_id}.onnx`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages opened as a file may not use the clipboard; the selection may.
    getSelection().selectAllChildren(by("command"));
    if (!document.execCommand("copy")) return "press Ctrl+C";
  }
  return "copied";
}

async function choose(row) {
  state.chosen = row;
  draw();
  by("copied").textContent = "";
  by("copied").textContent = await copy(commandOf(row));
}

function markers(some, number, faint) {
  const color = COLORS[number % COLORS.length];
  const several = data.ledgers.length > 1;
  return {
    size: some.map((row) => (row.anchor ? 13 : 9)),
    symbol: some.map((row) => (row.anchor ? "diamond" : "circle")),
    color: some.map((row) => (row.anchor && !several ? "#e4572e" : color)),
    opacity: some.map((row) => (faint(row) ? 0.13 : 0.85)),
    line: { color: "#fff", width: 1 },
  };
}

function drawPlot({ cost, fronts, within, best }) {
  const inside = new Set(within);
  const traces = [];
  data.ledgers.forEach((ledger, number) => {
    if (!state.shown[number]) return;
    const some = rows.filter((row) => row.ledger === number && has(row, cost));
    const line = { color: COLORS[number % COLORS.length], width: 1.6 };
    traces.push({ x: fronts[number].map((row) => row[cost]), y: fronts[number].map((row) => row.acc1), mode: "lines", line, opacity: 0.6, hoverinfo: "skip" });
    traces.push({ x: some.map((row) => row[cost]), y: some.map((row) => row.acc1), customdata: some, mode: "markers", hoverinfo: "none", marker: markers(some, number, (row) => !inside.has(row)) });
  });
  const rings = [[best, "#1f8a4c"], [state.chosen, "#1f2733"]].filter(([row]) => row && has(row, cost) && state.shown[row.ledger]);
  for (const [row, color] of rings) {
    traces.push({ x: [row[cost]], y: [row.acc1], mode: "markers", hoverinfo: "skip", marker: { size: 20, symbol: "circle-open", color, line: { color, width: 2.5 } } });
  }
  const layout = {
    margin: { l: 60, r: 20, t: 16, b: 56 }, showlegend: false, hovermode: "closest", dragmode: "pan", uirevision: cost,
    font: { family: "system-ui, sans-serif", size: 13, color: "#1f2733" },
    xaxis: { type: "log", title: { text: FIGURES[cost].axis }, gridcolor: "#eaedf2", ...ticks(cost) },
    yaxis: { title: { text: "top-1 accuracy (%)" }, gridcolor: "#eaedf2", zeroline: false },
    annotations: anchorLabels(cost),
  };
  Plotly.react("pareto", traces, layout, { ...BAR, scrollZoom: true });
}

/** Ticks at 1, 2 and 5 of each decade, in the units of the table. */
function ticks(cost) {
  const values = rows.filter((row) => has(row, cost)).map((row) => row[cost]);
  const steps = Math.max(...values) / Math.min(...values) < 4 ? [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(Math.log10(Math.min(...values))) - 1; power <= Math.log10(Math.max(...values)) + 1; power++) {
    for (const step of steps) found.push(Number((step * 10 ** power).toPrecision(3)));
  }
  return { tickvals: found, ticktext: found.map((value) => (cost === "latency_ms" ? String(value) : quantity(value))) };
}

function anchorLabels(cost) {
  if (data.ledgers.length > 1) return [];
  return rows
    .filter((row) => row.anchor && has(row, cost))
    .map((row, _, anchors) => {
      const right = anchors.filter((other) => other[cost] < row[cost]).length > (anchors.length - 1) / 2;
      const text = `<b>${plain(row.stitch.split("[")[0])}</b>`;
      return { x: Math.log10(row[cost]), y: row.acc1, text, showarrow: false, yshift: -17, xanchor: right ? "right" : "left", xshift: right ? 8 : -6 };
    });
}

/** Text for plotly, which reads some HTML. */
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function columns() {
  const own = [{ key: "cfg_id", label: "cfg_id" }, { key: "stitch", label: "stitch", text: true }];
  if (data.ledgers.length > 1) own.unshift({ key: "ledger", label: "ledger", text: true });
  return [...own, ...figures.map((key) => ({ key, label: FIGURES[key].label }))];
}

function drawHead() {
  const line = element("tr");
  for (const { key, label, text } of columns()) {
    const button = element("button", { type: "button" }, label);
    button.addEventListener("click", () => {
      state.up = state.sort === key ? !state.up : !["acc1", "acc5", "images_per_s"].includes(key);
      state.sort = key;
      draw();
    });
    const cell = element("th", { scope: "col", className: text ? "text" : "" }, button);
    cell.dataset.key = key;
    line.append(cell);
  }
  by("table").tHead.replaceChildren(line);
}

function drawTable({ within, onFront }) {
  for (const cell of by("table").tHead.rows[0].cells) {
    const sorted = cell.dataset.key === state.sort;
    cell.setAttribute("aria-sort", sorted ? (state.up ? "ascending" : "descending") : "none");
  }
  const ordered = [...within].sort((a, b) => compare(a, b, state.sort));
  by("table").tBodies[0].replaceChildren(...ordered.map((row) => tableRow(row, onFront.has(row))));
  by("count").textContent = `${within.length} of ${rows.length} shown`;
}

/** Order of two rows in a column; rows without a value stand last either way. */
function compare(a, b, key) {
  const [x, y] = key === "stitch" ? [nameOf(a), nameOf(b)] : [a[key], b[key]];
  if (x == null || y == null) return (x == null) - (y == null);
  const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return (state.up ? order : -order) || a.cfg_id - b.cfg_id;
}

function tableRow(row, isFront) {
  const ledger = data.ledgers[row.ledger];
  const line = element("tr", { className: (row.anchor ? "anchor" : "") + (row === state.chosen ? " chosen" : ""), tabIndex: 0 });
  for (const { key, text } of columns()) {
    const cell = element("td", { className: text ? "text" : "" });
    if (key === "ledger") cell.append(dot(row.ledger), ledger.name);
    else if (key === "stitch") {
      if (row.stitch) cell.append(strip(ledger, row.stitch));
      cell.append(element("span", { className: "name" }, row.stitch ?? "–"));
      if (row.anchor) cell.append(element("span", { className: "badge" }, "anchor"));
      if (isFront) cell.append(element("span", { className: "badge front" }, "front"));
    } else if (key === "cfg_id") cell.append(String(row.cfg_id));
    else cell.append(has(row, key) ? FIGURES[key].show(row[key]) : "–");
    line.append(cell);
  }
  line.addEventListener("click", () => choose(row));
  line.addEventListener("keydown", (event) => event.key === "Enter" && choose(row));
  return line;
}

function dot(number) {
  const made = element("span", { className: "dot" });
  made.style.background = COLORS[number % COLORS.length];
  return made;
}

function drawDetails({ best }) {
  const row = state.chosen ?? best;
  by("details-head").textContent = state.chosen ? "Chosen stitch" : "Best within the budget";
  by("details").replaceChildren(...(row ? describe(row) : ["No stitch is within the budget."]));
  by("export").hidden = !row;
  by("command").textContent = row ? commandOf(row) : "";
}

function draw() {
  const found = selection();
  drawPlot(found);
  drawTable(found);
  drawDetails(found);
}

function drawCurves() {
  const figures = [];
  const add = (title, traces, more = {}) => {
    const layout = { title: { text: title, font: { size: 14 }, x: 0.02 }, margin: { l: 56, r: 16, t: 62, b: 44 }, hovermode: "x unified", font: { family: "system-ui, sans-serif", size: 12, color: "#1f2733" }, showlegend: traces.length > 1, legend: { orientation: "h", x: 1, xanchor: "right", y: 1.12, yanchor: "bottom" }, xaxis: { title: { text: "epoch" }, gridcolor: "#eaedf2", zeroline: false }, yaxis: { gridcolor: "#eaedf2", zeroline: false }, ...more };
    figures.push([element("div"), traces, layout]);
    return figures.at(-1)[0];
  };
  for (const { name, curves, losses } of data.training) {
    const suffix = data.training.length > 1 ? ` · ${plain(name)}` : "";
    const line = ([column, y], number) => ({ x: curves.epoch, y, name: plain(column.replace(/^eval_|_acc1$/g, "")), mode: "lines+markers", connectgaps: true, line: { color: COLORS[number % COLORS.length], width: 2 }, marker: { size: 4 } });
    const pick = (test) => Object.entries(curves ?? {}).filter(([column]) => test(column));
    const loss = pick((column) => column.endsWith("loss"));
    const accuracy = pick((column) => column.endsWith("acc1"));
    if (loss.length) add("Loss" + suffix, loss.map(line));
    if (accuracy.length) add("Top-1 accuracy of the anchors (%)" + suffix, accuracy.map(line));
    if (losses) {
      const heat = { type: "heatmap", x: losses.epochs, y: losses.stitches.map(plain), z: losses.means, colorscale: "Viridis", reversescale: true, hoverongaps: false, colorbar: { title: { text: "loss" }, thickness: 12 }, hovertemplate: "epoch %{x}<br>%{y}<br>loss %{z:.4f}<extra></extra>" };
      const holder = add("Mean training loss of each stitch" + suffix, [heat], { hovermode: "closest", yaxis: { automargin: true, type: "category", autorange: "reversed", tickfont: { size: 10 } } });
      holder.className = "heat";
      holder.style.height = `${Math.max(330, 120 + 14 * losses.stitches.length)}px`;
    }
  }
  by("training").hidden = !figures.length;
  by("curves").append(...figures.map(([holder]) => holder));
  for (const figure of figures) Plotly.newPlot(...figure, BAR); // all in their places: plotly measures these
}

function drawControls() {
  for (const key of COSTS.filter((key) => figures.includes(key))) by("axis").append(element("option", { value: key }, FIGURES[key].label));
  for (const label of document.querySelectorAll("[data-needs]")) label.hidden = !figures.includes(label.dataset.needs);
  if (data.ledgers.length > 1) {
    data.ledgers.forEach((ledger, number) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => { state.shown[number] = box.checked; draw(); });
      by("ledgers").append(element("label", { title: ledger.path }, box, dot(number), ledger.name));
    });
  }
  for (const field of document.querySelectorAll(".controls > label input, .controls > label select")) {
    field.addEventListener("input", () => { state.chosen = null; draw(); });
  }
  by("reset").addEventListener("click", () => {
    for (const field of document.querySelectorAll(".controls > label input")) {
      if (field.type === "checkbox") field.checked = false;
      else field.value = "";
    }
    state.chosen = null;
    draw();
  });
  by("copy").addEventListener("click", async () => { by("copied").textContent = await copy(by("command").textContent); });
}

function placeTip(event) {
  const tip = by("tip");
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 18 + width > innerWidth ? event.clientX - width - 18 : event.clientX + 18;
  tip.style.left = Math.max(8, x) + "px";
  tip.style.top = Math.max(8, Math.min(event.clientY - height / 2, innerHeight - height - 8)) + "px";
}

/** Keep the plot as large as its card, which grows with the details beside it. */
function follow(place) {
  new ResizeObserver(() => Plotly.Plots.resize(place)).observe(place);
}

function start() {
  const count = data.ledgers.length;
  by("summary").textContent = `${rows.length} stitches of ${count > 1 ? `${count} ledgers` : data.ledgers[0].path}`;
  drawControls();
  drawHead();
  draw();
  by("pareto").on("plotly_hover", ({ points, event }) => {
    by("tip").replaceChildren(...describe(points[0].customdata));
    placeTip(event);
  });
  by("pareto").on("plotly_unhover", () => { by("tip").hidden = true; });
  by("pareto").on("plotly_click", ({ points }) => choose(points[0].customdata));
  follow(by("pareto"));
  drawCurves();
}

start();
