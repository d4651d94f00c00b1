"use strict";
// Draws figures with plotly in the theme and the width that the page has, each when it is about to
// be seen: a page has several, and some take a second.
class PageFigure {
  constructor(element) {
    this.plot = element.querySelector(".plot");
    this.variants = JSON.parse(element.querySelector("script").textContent);
    this.selects = [...element.querySelectorAll("select")];
    this.selects.forEach((select) => select.addEventListener("change", () => this.draw()));
    this.chosen = null;
    this.isSeen = false;
  }

  seen() {
    if (this.isSeen) return;
    this.isSeen = true;
    this.draw();
    this.plot.on("plotly_click", (event) => {
      const at = event.points[0].customdata;
      if (Array.isArray(at)) selection.choose(at[0], at[1]);
    });
  }

  // Which figure the switches say; the last switch changes fastest.
  place() {
    return this.selects.reduce((sum, s) => sum * s.options.length + Number(s.value), 0);
  }

  draw() {
    if (!this.isSeen) return;
    const place = this.place();
    const variant = this.variants[place];
    const isNarrow = narrow.matches && variant.narrow_layout;
    const layout = structuredClone(isNarrow ? variant.narrow_layout : variant.layout);
    layout.template = figureTemplate();
    layout.uirevision = `${place} ${isNarrow}`; // what was zoomed or hidden stays so
    if (isNarrow) layout.dragmode = false; // a finger scrolls the page
    this.plot.style.height = `${layout.height}px`;
    const data = inTheme(structuredClone(variant.data));
    const ring = this.ring(variant);
    if (ring) data.push(ring);
    const config = {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"],
      displayModeBar: isNarrow ? false : "hover",
    };
    Plotly.react(this.plot, data, inTheme(layout), config);
  }

  highlight(row, load) {
    this.chosen = row === null ? null : { row, load };
    this.draw();
  }

  // A ring around the chosen row's points; where none is drawn, at the row's own numbers.
  ring(variant) {
    if (!this.chosen) return null;
    const { row, load } = this.chosen;
    let points = drawnPoints(variant.data, row);
    if (load !== null && points.some((p) => p.load === load)) {
      points = points.filter((p) => p.load === load);
    }
    if (!points.length && variant.at.length) {
      const [x, y] = variant.at.map((key) => rowValue(row, key));
      if (typeof x === "number" && typeof y === "number") points = [{ x, y }];
    }
    if (!points.length) return null;
    return {
      type: "scatter", mode: "markers", name: "selected", showlegend: false, hoverinfo: "skip",
      x: points.map((p) => p.x), y: points.map((p) => p.y),
      marker: {
        size: 22, symbol: "circle-open", color: theme.color("ink"), line: { width: 3 },
      },
    };
  }
}

function drawnPoints(data, row) {
  const points = [];
  for (const trace of data) {
    (trace.customdata || []).forEach((at, i) => {
      if (at[0] === row) points.push({ x: trace.x[i], y: trace.y[i], load: at[1] });
    });
  }
  return points;
}

function inTheme(value) {
  if (typeof value === "string") return value[0] === "#" ? theme.mark(value) : value;
  if (Array.isArray(value)) return value.map(inTheme);
  if (value && typeof value === "object") {
    for (const key of Object.keys(value)) value[key] = inTheme(value[key]);
  }
  return value;
}

function figureTemplate() {
  const [ink, soft, line, card] = ["ink", "soft", "line", "card"].map(theme.color);
  const axis = { gridcolor: line, linecolor: soft, tickcolor: soft, zerolinecolor: line };
  return {
    layout: {
      paper_bgcolor: card, plot_bgcolor: card, font: { color: ink }, xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: card, bordercolor: soft, font: { color: ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
    },
  };
}

const narrow = matchMedia("(max-width: 640px)");
const figures = [];

function startFigures() {
  const near = new IntersectionObserver((entries) => {
    entries.filter((e) => e.isIntersecting).forEach((e) => figureOf.get(e.target).seen());
  }, { rootMargin: "400px" });
  const figureOf = new Map();
  document.querySelectorAll(".figure").forEach((element) => {
    const figure = new PageFigure(element);
    figures.push(figure);
    figureOf.set(element, figure);
    near.observe(element);
  });
  addEventListener("beforeprint", () => figures.forEach((figure) => figure.seen()));
  const redraw = () => figures.forEach((figure) => figure.draw());
  theme.listeners.push(redraw);
  narrow.addEventListener("change", redraw);
}
