"use strict";
// What plotly draws: the stitches with their fronts, and the curves of training.

// Only these: plotly's own bar has a button that sends the chart to its makers.
const BAR = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

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
    traces.push({
      x: fronts[number].map((row) => row[cost]),
      y: fronts[number].map((row) => row.acc1),
      mode: "lines",
      line,
      opacity: 0.6,
      hoverinfo: "skip",
    });
    traces.push({
      x: some.map((row) => row[cost]),
      y: some.map((row) => row.acc1),
      customdata: some,
      mode: "markers",
      hoverinfo: "none",
      marker: markers(some, number, (row) => !inside.has(row)),
    });
  });
  const rings = [
    [best, "#1f8a4c"],
    [state.chosen, "#1f2733"],
  ].filter(([row]) => row && has(row, cost) && state.shown[row.ledger]);
  for (const [row, color] of rings) {
    traces.push({
      x: [row[cost]],
      y: [row.acc1],
      mode: "markers",
      hoverinfo: "skip",
      marker: { size: 20, symbol: "circle-open", color, line: { color, width: 2.5 } },
    });
  }
  const layout = {
    margin: { l: 60, r: 20, t: 16, b: 56 },
    showlegend: false,
    hovermode: "closest",
    uirevision: cost,
    font: { family: "system-ui, sans-serif", size: 13, color: "#1f2733" },
    xaxis: { type: "log", title: { text: FIGURES[cost].axis }, gridcolor: "#eaedf2", ...ticks(cost) },
    yaxis: { title: { text: "top-1 accuracy (%)" }, gridcolor: "#eaedf2", zeroline: false },
    annotations: anchorLabels(cost),
  };
  Plotly.react("pareto", traces, layout, BAR);
}

/** Ticks at 1, 2 and 5 of each decade, in the units of the table. */
function ticks(cost) {
  const values = rows.map((row) => row[cost]).filter((value) => value > 0);
  const steps = Math.max(...values) / Math.min(...values) < 4 ? [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9] : [1, 2, 5];
  const found = [];
  for (
    let power = Math.floor(Math.log10(Math.min(...values))) - 1;
    power <= Math.log10(Math.max(...values)) + 1;
    power++
  ) {
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
      return {
        x: Math.log10(row[cost]),
        y: row.acc1,
        text,
        showarrow: false,
        yshift: -17,
        xanchor: right ? "right" : "left",
        xshift: right ? 8 : -6,
      };
    });
}

/** Text for plotly, which reads some HTML. */
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Keep the plot as large as its card, which grows with the details beside it. */
function follow(place) {
  new ResizeObserver(() => Plotly.Plots.resize(place)).observe(place);
}

function drawCurves() {
  const figures = [];
  const add = (title, traces, more = {}) => {
    const layout = {
      title: { text: title, font: { size: 14 }, x: 0.02 },
      margin: { l: 56, r: 16, t: 62, b: 44 },
      hovermode: "x unified",
      font: { family: "system-ui, sans-serif", size: 12, color: "#1f2733" },
      showlegend: traces.length > 1,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.12, yanchor: "bottom" },
      xaxis: { title: { text: "epoch" }, gridcolor: "#eaedf2", zeroline: false },
      yaxis: { gridcolor: "#eaedf2", zeroline: false },
      ...more,
    };
    figures.push([element("div"), traces, layout]);
    return figures.at(-1)[0];
  };
  for (const { name, curves, losses } of data.training) {
    const suffix = data.training.length > 1 ? ` · ${plain(name)}` : "";
    const line = ([column, y], number) => ({
      x: curves.epoch,
      y,
      name: plain(column.replace(/^eval_|_acc1$/g, "")),
      mode: "lines+markers",
      connectgaps: true,
      line: { color: COLORS[number % COLORS.length], width: 2 },
      marker: { size: 4 },
    });
    const pick = (test) => Object.entries(curves ?? {}).filter(([column]) => test(column));
    const loss = pick((column) => column.endsWith("loss"));
    const accuracy = pick((column) => column.endsWith("acc1"));
    if (loss.length) add("Loss" + suffix, loss.map(line));
    if (accuracy.length) add("Top-1 accuracy of the anchors (%)" + suffix, accuracy.map(line));
    if (losses) {
      const heat = {
        type: "heatmap",
        x: losses.epochs,
        y: losses.stitches.map(plain),
        z: losses.means,
        colorscale: "Viridis",
        reversescale: true,
        hoverongaps: false,
        colorbar: { title: { text: "loss" }, thickness: 12 },
        hovertemplate: "epoch %{x}<br>%{y}<br>loss %{z:.4f}<extra></extra>",
      };
      const holder = add("Mean training loss of each stitch" + suffix, [heat], {
        hovermode: "closest",
        yaxis: { automargin: true, type: "category", autorange: "reversed", tickfont: { size: 10 } },
      });
      holder.className = "heat";
      holder.style.height = `${Math.max(330, 120 + 14 * losses.stitches.length)}px`;
    }
  }
  by("training").hidden = !figures.length;
  by("curves").append(...figures.map(([holder]) => holder));
  for (const figure of figures) Plotly.newPlot(...figure, BAR); // all in their places: plotly measures these
}
