"use strict";
// The controls hold the page's whole state; every change redraws plot and table from it.

const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2f6bb0", "#d9822b", "#2e8b57", "#8e5ea2", "#c23b3b", "#4a9a9a", "#8a6d5a", "#b59a12"];
const UNITS = { T: 1e12, G: 1e9, M: 1e6, k: 1e3 }; // as stitchkit/display.py has them
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
const by = (id) => document.getElementById(id);

const rows = data.ledgers.flatMap((ledger, number) => ledger.rows.map((row) => ({ ...row, ledger: number })));
const has = (row, key) => typeof row[key] === "number";
const figures = Object.keys(FIGURES).filter((key) => rows.some((row) => has(row, key)));
const state = { shown: data.ledgers.map(() => true), sort: "flops", up: true, chosen: null };

function quantity(value) {
  for (const [unit, size] of Object.entries(UNITS)) {
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
  const found = /^\s*(\d*\.?\d+(?:e\d+)?)\s*([kmgt]?)\s*$/i.exec(text);
  if (!found) return NaN;
  const unit = Object.keys(UNITS).find((name) => name.toLowerCase() === found[2].toLowerCase());
  return Number(found[1]) * (UNITS[unit] ?? 1);
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
  const fronts = data.ledgers.map((_, number) =>
    frontOf(
      rows.filter((row) => row.ledger === number),
      cost,
    ),
  );
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

/** Name, drawing and figures of a stitch, compared with the other ledgers. */
function describe(row) {
  const ledger = data.ledgers[row.ledger];
  const list = element("dl", { className: "figures" });
  const same = ["cfg_id", "stitch", "flops"]; // published rows have no names, so their cost tells them apart
  const twins = rows.filter(
    (other) => other !== row && state.shown[other.ledger] && same.every((key) => other[key] === row[key]),
  );
  for (const key of figures.filter((key) => has(row, key))) {
    const value = element("dd", {}, FIGURES[key].show(row[key]));
    for (const twin of twins.filter((other) => has(other, key) && other[key] !== row[key] && FIGURES[key].better)) {
      const change = row[key] - twin[key];
      const className = change * FIGURES[key].better > 0 ? "up" : "down";
      const sign = change > 0 ? "+" : "−";
      const digits = key === "loss" ? 4 : 2;
      value.append(
        " ",
        element(
          "span",
          { className },
          `${sign}${Math.abs(change).toFixed(digits)} vs ${data.ledgers[twin.ledger].name}`,
        ),
      );
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
  by("copied").textContent = await copy(row.command);
}

function columns() {
  const own = [
    { key: "cfg_id", label: "cfg_id" },
    { key: "stitch", label: "stitch", text: true },
  ];
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

/** Order of two rows in a column; rows without a value come last either way. */
function compare(a, b, key) {
  const [x, y] = key === "stitch" ? [nameOf(a), nameOf(b)] : [a[key], b[key]];
  if (x == null || y == null) return (x == null) - (y == null);
  const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return (state.up ? order : -order) || a.cfg_id - b.cfg_id;
}

function tableRow(row, isFront) {
  const ledger = data.ledgers[row.ledger];
  const line = element("tr", {
    className: (row.anchor ? "anchor" : "") + (row === state.chosen ? " chosen" : ""),
    tabIndex: 0,
  });
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
  by("command").textContent = row ? row.command : "";
}

function draw() {
  const found = selection();
  drawPlot(found);
  drawTable(found);
  drawDetails(found);
}

function drawControls() {
  for (const key of COSTS.filter((key) => figures.includes(key)))
    by("axis").append(element("option", { value: key }, FIGURES[key].label));
  for (const label of document.querySelectorAll("[data-needs]")) label.hidden = !figures.includes(label.dataset.needs);
  if (data.ledgers.length > 1) {
    data.ledgers.forEach((ledger, number) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        state.shown[number] = box.checked;
        draw();
      });
      by("ledgers").append(element("label", { title: ledger.path }, box, dot(number), ledger.name));
    });
  }
  for (const field of document.querySelectorAll(".controls > label input, .controls > label select")) {
    field.addEventListener("input", () => {
      state.chosen = null;
      draw();
    });
  }
  by("reset").addEventListener("click", () => {
    for (const field of document.querySelectorAll(".controls > label input")) {
      if (field.type === "checkbox") field.checked = false;
      else field.value = "";
    }
    state.chosen = null;
    draw();
  });
  by("copy").addEventListener("click", async () => {
    by("copied").textContent = await copy(by("command").textContent);
  });
}

function placeTip(event) {
  const tip = by("tip");
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 18 + width > innerWidth ? event.clientX - width - 18 : event.clientX + 18;
  tip.style.left = Math.max(8, x) + "px";
  tip.style.top = Math.max(8, Math.min(event.clientY - height / 2, innerHeight - height - 8)) + "px";
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
  by("pareto").on("plotly_unhover", () => {
    by("tip").hidden = true;
  });
  by("pareto").on("plotly_click", ({ points }) => choose(points[0].customdata));
  follow(by("pareto"));
  drawCurves();
}

start();
