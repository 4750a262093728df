"use strict";
// What plotly draws: the stitches with their fronts, and the curves of training.

const COLORS = ["#3d7fc8", "#d9822b", "#2e8b57", "#8e5ea2", "#c23b3b", "#4a9a9a", "#8a6d5a", "#b59a12"];
// Only these: plotly's own bar has a button that sends the chart to its makers.
const BAR = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};
const colorNamed = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** The look of all plots, in the colors of the page, which may be light or dark. */
function template() {
  const [ink, soft, card, gridcolor] = ["ink", "soft", "card", "grid"].map(colorNamed);
  const layout = {
    colorway: COLORS,
    font: { family: "system-ui, sans-serif", size: 12, color: ink },
    hovermode: "closest",
    hoverlabel: { bgcolor: card, font: { color: ink } },
    paper_bgcolor: card,
    plot_bgcolor: card,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
    xaxis: { gridcolor, zeroline: false },
    yaxis: { gridcolor, zeroline: false },
  };
  return { layout };
}

function drawPlot({ cost, within, best }) {
  const inside = new Set(within);
  const traces = data.ledgers.flatMap((ledger, number) => {
    const some = rows.filter((row) => row.ledger === number && isShown(row) && has(row, cost));
    const front = some.filter((row) => row.front.includes(cost)).sort((a, b) => a[cost] - b[cost]);
    const color = colorOf(number);
    const points = {
      customdata: some,
      mode: "markers+text",
      hoverinfo: "none",
      text: some.map((row) => (row.anchor && !several ? `<b>${plain(row.stitch.split("[")[0])}</b>` : "")),
      textposition: "bottom center",
      cliponaxis: false,
      selectedpoints: some.flatMap((row, place) => (inside.has(row) ? [place] : [])),
      marker: {
        size: some.map((row) => (row.anchor ? 13 : 9)),
        symbol: some.map((row) => (row.anchor ? "diamond" : "circle")),
        color: some.map((row) => (row.anchor && !several ? "#e4572e" : color)),
        opacity: 0.85,
        line: { color: colorNamed("card"), width: 1 },
      },
    };
    const line = { mode: "lines", opacity: 0.6, line: { color, width: 1.6 } };
    return [...band(front, cost, color), trace(front, cost, line), trace(some, cost, points)];
  });
  if (data.overlay) traces.unshift(trace(overlaid(cost), cost, crosses(cost))); // below the stitches
  for (const [row, color] of [[best, colorNamed("good")], [state.chosen, colorNamed("ink")]]) {
    const marker = { size: 20, symbol: "circle-open", color, line: { width: 2.5 } };
    if (row && has(row, cost) && isShown(row)) traces.push(trace([row], cost, { mode: "markers", marker }));
  }
  const costs = rows.map((row) => row[cost]).filter((value) => value > 0);
  const isWide = Math.max(...costs) / Math.min(...costs) > 5; // plotly would write so many ticks that they overlap
  const ticks = { tickformat: FIGURES[cost].ticks, nticks: 8, dtick: isWide ? "D2" : undefined }; // D2: 1, 2 and 5
  const layout = {
    template: template(),
    margin: { l: 60, r: 20, t: 16, b: 56 },
    showlegend: false,
    uirevision: cost,
    font: { size: 13 },
    xaxis: { type: "log", title: { text: FIGURES[cost].axis }, ...ticks },
    yaxis: { title: { text: `${data.metric_name} (%)` } },
  };
  Plotly.react("pareto", traces, layout, BAR);
}

/** The 95 % intervals of a front's figures, if all are known. */
function band(front, cost, color) {
  const [low, high] = [`${data.metric}_low`, `${data.metric}_high`];
  if (!front.every((row) => has(row, low) && has(row, high))) return [];
  const back = [...front].reverse();
  const x = [...front, ...back].map((row) => row[cost]);
  const y = [...front.map((row) => row[high]), ...back.map((row) => row[low])];
  return [{ x, y, mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: color + "22", hoverinfo: "skip" }];
}

/** The look of other models: crosses, which are dark on the front of all. */
function crosses(cost) {
  const some = overlaid(cost);
  const color = some.map((model) => colorNamed(model.front.includes(cost) ? "ink" : "faint"));
  const marker = { size: 7, symbol: "x-thin", line: { color, width: 1.4 } };
  return { customdata: some, mode: "markers", hoverinfo: "none", marker };
}

function trace(some, cost, more) {
  return { x: some.map((row) => row[cost]), y: some.map((row) => row[data.metric]), hoverinfo: "skip", ...more };
}

/** Text for plotly, which reads some HTML. */
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function drawCurves() {
  const drawings = data.training.flatMap(({ name, curves = {}, losses }) => {
    const suffix = data.training.length > 1 ? ` · ${plain(name)}` : "";
    const linesOf = (ending) =>
      Object.entries(curves)
        .filter(([column]) => column.endsWith(ending))
        .map(([column, y]) => ({
          x: curves.epoch,
          y,
          name: plain(column.replace(/^eval_|_acc1$/g, "")),
          mode: "lines+markers",
          connectgaps: true,
          marker: { size: 4 },
        }));
    return [
      curve("Loss" + suffix, linesOf("loss")),
      curve("Top-1 accuracy of the anchors (%)" + suffix, linesOf("acc1")),
      ...(losses ? [heatMap("Mean training loss of each stitch" + suffix, losses)] : []),
    ];
  });
  const shown = drawings.filter(({ traces }) => traces.length);
  by("training").hidden = !shown.length;
  by("curves").replaceChildren(...shown.map(({ holder }) => holder));
  for (const { holder, traces, layout } of shown) Plotly.newPlot(holder, traces, layout, BAR); // all in place: measured
}

function curve(title, traces) {
  const layout = {
    template: template(),
    title: { text: title, font: { size: 14 }, x: 0.02 },
    margin: { l: 56, r: 16, t: 48, b: 72 },
    hovermode: "x unified",
    showlegend: traces.length > 1,
    legend: { orientation: "h", x: 0, y: -0.24, yanchor: "top" }, // below, because icons are above
    xaxis: { title: { text: "epoch" } },
  };
  return { holder: element("div"), traces, layout };
}

function heatMap(title, { epochs, stitches, means }) {
  const made = curve(title, [
    {
      type: "heatmap",
      x: epochs,
      y: stitches.map(plain),
      z: means,
      colorscale: "Viridis",
      reversescale: true,
      hoverongaps: false,
      colorbar: { title: { text: "loss" }, thickness: 12 },
      hovertemplate: "epoch %{x}<br>%{y}<br>loss %{z:.4f}<extra></extra>",
    },
  ]);
  made.holder.className = "heat";
  made.holder.style.height = `${Math.max(330, 120 + 14 * stitches.length)}px`;
  made.layout.hovermode = "closest";
  made.layout.yaxis = { automargin: true, type: "category", autorange: "reversed", tickfont: { size: 10 } };
  return made;
}
