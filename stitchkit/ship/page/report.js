"use strict";
// The controls hold the page's state, but for the sorting and the chosen row; every change redraws plot and table.

const data = JSON.parse(document.getElementById("data").textContent);
const UNITS = { T: 1e12, G: 1e9, M: 1e6, k: 1e3 }; // as stitchkit/display.py has them
const percent = (value) => value.toFixed(2) + " %";
const interval = (key) => ({
  label: "95 %",
  show: (low, row) => `${low.toFixed(2)}–${row[`${key}_high`].toFixed(2)}`,
  descending: true,
});
const FIGURES = {
  flops: { label: "FLOPs", axis: "FLOPs of one image (multiply-adds)", ticks: "~s", show: quantity },
  params: { label: "params", axis: "parameters", ticks: "~s", show: quantity },
  activations: { label: "activations", show: quantity },
  latency_ms: { label: "latency", axis: "latency of a batch (ms)", show: (value) => value.toFixed(2) + " ms" },
  images_per_s: { label: "images/s", show: (value) => value.toFixed(0), descending: true },
  acc1: { label: "top-1", show: percent, better: 1, descending: true },
  acc1_low: interval("acc1"),
  miou: { label: "mean IoU", show: percent, better: 1, descending: true },
  miou_low: interval("miou"),
  pixel_acc: { label: "pixels", show: percent, better: 1, descending: true },
  delta1: { label: "δ < 1.25", show: percent, better: 1, descending: true },
  delta1_low: interval("delta1"),
  abs_rel: { label: "relative error", show: (value) => value.toFixed(4), better: -1 },
  rmse: { label: "RMSE (m)", show: (value) => value.toFixed(3), better: -1 },
  p_front: { label: "P(front)", show: (value) => value.toFixed(2), descending: true },
  balanced_acc1: { label: "balanced", show: percent, better: 1, descending: true },
  parents_acc1: { label: "its parents, on average", show: percent, descending: true },
  score: { label: "score", show: (value) => value.toFixed(3), descending: true },
  acc5: { label: "top-5", show: percent, better: 1, descending: true },
  knn: { label: "k-NN", show: percent, better: 1, descending: true },
  linear: { label: "linear probe", show: percent, better: 1, descending: true },
  cosine: { label: "cosine", show: percent, better: 1, descending: true },
  cka: { label: "CKA", show: percent, better: 1, descending: true },
  loss: { label: "loss", show: (value) => value.toFixed(4), better: -1 },
};
const COSTS = ["flops", "params", "latency_ms"];
const by = (id) => document.getElementById(id);
const isStitch = (row) => "cfg_id" in row;
const has = (row, key) => typeof row[key] === "number";
const textOf = (row, key) => (has(row, key) ? FIGURES[key].show(row[key], row) : "–");
const tiesOf = ({ tied_with: ties }, most) =>
  ties ? ties.slice(0, most).concat(ties.length > most ? ["…"] : []).join(", ") || "none" : "–";
const nameOf = (row) => row.stitch ?? `cfg_id ${row.cfg_id}`;
const colorOf = (ledger) => COLORS[ledger % COLORS.length];
const overlaid = (cost) => (by("overlay")?.checked ? data.overlay.models.filter((model) => model.near.includes(cost)) : []);
const isShown = (row) => !several || by(`ledger-${row.ledger}`).checked;

const several = data.ledgers.length > 1;
const rows = data.ledgers.flatMap((ledger, number) => ledger.rows.map((row) => ({ ...row, ledger: number })));
const figures = Object.keys(FIGURES).filter((key) => rows.some((row) => has(row, key)));
const [batch, ...others] = new Set(rows.filter((row) => has(row, "latency_ms")).map((row) => row.latency_batch_size));
if (batch && !others.length) {
  FIGURES.latency_ms.label = `latency (batch of ${batch})`;
  FIGURES.latency_ms.axis = `latency of a batch of ${batch} (ms)`;
}
const columns = [
  { key: "ledger", text: true, cell: (row) => [dot(row.ledger), data.ledgers[row.ledger].name] },
  { key: "cfg_id", cell: (row) => [row.cfg_id] },
  { key: "stitch", label: data.noun, text: true, cell: stitchCell },
  ...figures.map((key) => ({ key, ...FIGURES[key], cell: (row) => [textOf(row, key)] })),
  ...(figures.includes("p_front") ? [{ key: "tied_with", label: "tied with", text: true, cell: (row) => [tiesOf(row, 3)] }] : []),
].slice(several ? 0 : 1);
const state = { sort: "flops", up: true, chosen: null };

function quantity(value) {
  const [unit, size] = Object.entries(UNITS).find(([, size]) => value >= size) ?? ["", 1];
  return Number((value / size).toPrecision(3)) + unit;
}

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

/** The number in a field, with or without a unit, such as 5G; null if it is empty, or is marked as bad. */
function limit(id) {
  const field = by(id);
  const [found, number, unit] = /^(\d*\.?\d+(?:e\d+)?)\s*([kmgt]?)$/i.exec(field.value.trim()) ?? [];
  field.classList.toggle("bad", !found && field.value.trim() !== "");
  const [, size] = Object.entries(UNITS).find(([name]) => name.toLowerCase() === unit?.toLowerCase()) ?? ["", 1];
  return found ? number * size : null;
}

/** What the controls ask for: the axis of costs, the rows within the limits, the best of these. */
function selection() {
  const cost = by("axis").value;
  const most = COSTS.map((key) => [key, limit("max-" + key)]).filter(([, value]) => value !== null);
  const least = limit("min-metric");
  const search = by("search").value.trim().toLowerCase();
  const within = rows.filter(
    (row) =>
      isShown(row) &&
      most.every(([key, value]) => has(row, key) && row[key] <= value) &&
      (least === null || row[data.metric] >= least) &&
      nameOf(row).toLowerCase().includes(search) &&
      (!by("front-only").checked || row.front.includes(cost)),
  );
  const [best] = [...within].sort((a, b) => b[data.metric] - a[data.metric] || a[cost] - b[cost]);
  return { cost, within, best };
}

/** Name and figures of another model. */
function describeModel(model) {
  const list = element("dl", { className: "figures" });
  for (const key of Object.keys(FIGURES).filter((key) => has(model, key))) {
    list.append(element("dt", {}, FIGURES[key].label), element("dd", {}, textOf(model, key)));
  }
  return [element("p", { className: "stitch" }, model.name), element("p", { className: "from" }, "another model"), list];
}

/** Name, drawing and figures of a stitch, compared with the other ledgers. */
function describe(row) {
  const ledger = data.ledgers[row.ledger];
  const same = ["cfg_id", "stitch", "flops"]; // published rows have no names, so their cost tells them apart
  const twins = rows.filter(
    (other) => other !== row && isShown(other) && same.every((key) => other[key] === row[key]),
  );
  const list = element("dl", { className: "figures" });
  for (const key of figures.filter((key) => has(row, key))) {
    const changes = twins.filter((twin) => has(twin, key) && FIGURES[key].better).map((twin) => change(row, twin, key));
    list.append(element("dt", {}, FIGURES[key].label), element("dd", {}, textOf(row, key), ...changes));
  }
  if (row.tied_with) list.append(element("dt", {}, "tied with"), element("dd", {}, tiesOf(row, 12)));
  const from = (row.stitch ? `cfg_id ${row.cfg_id} ` : "") + (several ? `of ${ledger.name}` : "");
  const drawing = element("template", { innerHTML: ledger.routes[row.stitch] ?? "" }); // made by us, labels escaped
  const head = [element("p", { className: "stitch" }, nameOf(row)), element("p", { className: "from" }, from)];
  return [...head, drawing.content, list];
}

/** The gain or loss in a figure over the same stitch of another ledger. */
function change(row, twin, key) {
  const gain = row[key] - twin[key];
  const size = Math.abs(gain).toFixed(key === "loss" ? 4 : 2);
  if (!Number(size)) return "";
  const className = gain * FIGURES[key].better > 0 ? "up" : "down";
  return element("span", { className }, ` ${gain > 0 ? "+" : "−"}${size} vs ${data.ledgers[twin.ledger].name}`);
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

async function copy() {
  const command = by("command");
  getSelection().selectAllChildren(command); // for pages opened as a file or by plain http, without a clipboard
  const written = await navigator.clipboard?.writeText(command.textContent).then(() => true, () => false);
  by("copied").textContent = written || document.execCommand("copy") ? "copied" : "press Ctrl+C";
}

function choose(row) {
  state.chosen = row;
  draw();
  if (row) copy();
}

function drawHead() {
  for (const { key, label, text, descending } of columns) {
    const button = element("button", { type: "button" }, label ?? key);
    button.addEventListener("click", () => {
      state.up = state.sort === key ? !state.up : !descending;
      state.sort = key;
      draw();
    });
    by("head").append(element("th", { scope: "col", className: text ? "text" : "" }, button));
  }
}

function drawTable({ within }) {
  columns.forEach(({ key }, number) => {
    by("head").cells[number].ariaSort = key !== state.sort ? "none" : state.up ? "ascending" : "descending";
  });
  by("body").replaceChildren(...ordered(within).map(tableRow));
  by("count").textContent = `${within.length} of ${rows.length} shown`;
}

function ordered(within) {
  return [...within].sort((a, b) => compare(a, b, state.sort));
}

/** Save the rows of the table as it is, with all digits. */
function saveTable() {
  const keys = columns.flatMap(({ key }) => (key.endsWith("_low") ? [key, key.replace(/_low$/, "_high")] : [key]));
  const lines = ordered(selection().within).map((row) =>
    keys.map((key) => (key === "ledger" ? data.ledgers[row.ledger].name : row[key])),
  );
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : (value ?? ""));
  const text = [keys, ...lines].map((line) => line.map(quoted).join(",") + "\n").join("");
  const href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const link = element("a", { href, download: `${data.nouns}.csv` });
  link.click();
  URL.revokeObjectURL(link.href);
}

/** Order of two rows in a column; rows without a value come last either way. */
function compare(a, b, key) {
  const [x, y] = [a, b].map((row) =>
    key === "stitch" ? nameOf(row) : key === "tied_with" ? row.tied_with?.length : row[key],
  );
  if (x == null || y == null) return (x == null) - (y == null);
  const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return (state.up ? order : -order) || a.cfg_id - b.cfg_id;
}

function tableRow(row) {
  const line = element("tr", { className: row.anchor ? "anchor" : "", tabIndex: 0 });
  line.classList.toggle("chosen", row === state.chosen);
  line.append(...columns.map(({ text, cell }) => element("td", { className: text ? "text" : "" }, ...cell(row))));
  line.addEventListener("click", () => choose(row));
  line.addEventListener("keydown", (event) => event.key === "Enter" && choose(row));
  return line;
}

function stitchCell(row) {
  const isOnFront = row.front.includes(by("axis").value);
  const badges = [row.anchor && ["anchor", data.uncut], isOnFront && ["front", "front"]].filter(Boolean);
  return [
    ...(row.stitch ? [strip(data.ledgers[row.ledger], row.stitch)] : []),
    element("span", { className: "name" }, row.stitch ?? "–"),
    ...badges.map(([kind, name]) => element("span", { className: `badge ${kind}` }, name)),
  ];
}

function dot(ledger) {
  const made = element("span", { className: "dot" });
  made.style.background = colorOf(ledger);
  return made;
}

function drawDetails(row) {
  by("details-head").textContent = state.chosen ? `Chosen ${data.noun}` : "Best within the budget";
  by("details").replaceChildren(...(row ? describe(row) : [`No ${data.noun} is within the budget.`]));
  by("export").hidden = !row;
  by("command").textContent = row?.command ?? "";
  by("copied").textContent = "";
}

function draw() {
  const found = selection();
  for (const row of rows) Object.assign(row, { p_front: undefined, tied_with: undefined }, row.by_cost[found.cost]);
  drawSummary(found);
  drawPlot(found);
  drawTable(found);
  drawDetails(state.chosen ?? found.best);
  by("verdict").textContent = data.overlay?.verdicts[found.cost] ?? "They have no such cost.";
}

function drawSummary({ cost }) {
  const source = several ? `${data.ledgers.length} ledgers` : data.ledgers[0].path;
  const notes = data.ledgers.flatMap(({ name, notes, told_apart }) =>
    [...notes, told_apart[cost] ?? ""].filter(Boolean).map((note) => (several ? `${name}: ` : "") + note),
  );
  by("summary").textContent = [`${rows.length} ${data.nouns} of ${source}`, ...notes].join(" · ");
}

function drawControls() {
  const costs = COSTS.filter((key) => figures.includes(key));
  by("axis").append(...costs.map((key) => new Option(FIGURES[key].label, key)));
  for (const label of document.querySelectorAll("[data-needs]")) label.hidden = !figures.includes(label.dataset.needs);
  for (const [number, { name, path }] of several ? data.ledgers.entries() : []) {
    const box = element("input", { type: "checkbox", id: `ledger-${number}`, defaultChecked: true });
    by("ledgers").append(element("label", { title: path }, box, dot(number), name));
  }
  if (data.overlay) {
    const box = element("input", { type: "checkbox", id: "overlay", defaultChecked: true });
    by("ledgers").append(element("label", {}, box, element("span", { className: "cross" }, "×"), "other models"));
    by("others-caption").textContent = data.overlay.caption;
    by("others").hidden = false;
  }
  by("controls").addEventListener("input", ({ target }) => (by("ledgers").contains(target) ? draw() : choose(null)));
  by("clear").addEventListener("click", () => {
    by("controls").reset();
    choose(null);
  });
  by("copy").addEventListener("click", copy);
  by("csv").addEventListener("click", saveTable);
  drawPlaceholders();
}

/** Example inputs from the figures of these stitches. */
function drawPlaceholders() {
  for (const key of COSTS.filter((key) => figures.includes(key))) {
    const values = rows.filter((row) => row[key] > 0).map((row) => row[key]);
    const middle = Math.sqrt(Math.min(...values) * Math.max(...values)) || 0;
    by("max-" + key).placeholder = quantity(Number(middle.toPrecision(1)));
  }
  const accuracies = rows.map((row) => row[data.metric]).sort((a, b) => a - b);
  by("metric").textContent = FIGURES[data.metric].label;
  by("min-metric").placeholder = Math.floor(accuracies[accuracies.length >> 1]);
  const joined = rows.find((row) => row.stitch && !row.anchor);
  by("search").placeholder = joined?.stitch.split(" > ").at(-1) ?? "";
}

function drawSettings() {
  for (const { name, settings } of data.ledgers) {
    for (const [source, values] of Object.entries(settings)) {
      const list = element("dl", { className: "figures" });
      for (const [key, value] of Object.entries(values)) list.append(element("dt", {}, key), element("dd", {}, value));
      const head = element("summary", {}, source + (several ? ` · ${name}` : ""));
      by("settings").append(element("details", {}, head, list));
      by("settings").hidden = false;
    }
  }
}

function showTip({ points, event }) {
  const tip = by("tip");
  const { customdata } = points[0];
  tip.replaceChildren(...(isStitch(customdata) ? describe : describeModel)(customdata));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 18 + width > innerWidth ? event.clientX - width - 18 : event.clientX + 18;
  tip.style.left = Math.max(8, x) + "px";
  tip.style.top = Math.max(8, Math.min(event.clientY - height / 2, innerHeight - height - 8)) + "px";
}

drawControls();
drawHead();
draw();
drawCurves();
drawSettings();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  draw();
  drawCurves();
});
by("pareto").on("plotly_hover", showTip);
by("pareto").on("plotly_unhover", () => (by("tip").hidden = true));
by("pareto").on("plotly_click", ({ points: [{ customdata }] }) => isStitch(customdata) && choose(customdata));
// The plot is as large as its card, which grows with the details beside it.
new ResizeObserver(() => Plotly.Plots.resize("pareto")).observe(by("pareto"));
