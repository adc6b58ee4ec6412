// Score against cost, a chart a problem, drawn by Vega-Lite; what hovers is our own text.

// Okabe and Ito's palette without yellow and black; on dark paper, its dark ones lighter.
const COLOURS = [
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8A8F98",
];
const LIGHTER = { "#0072B2": "#4D9FE0", "#D55E00": "#F0793A", "#009E73": "#2DBE94",
  "#8C6BB1": "#AC8FD0", "#E3004F": "#FF4D82", "#B000C8": "#DB6CEB", "#C21807": "#F0604F" };
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3]];
const YOURS = ["#E3004F", "#B000C8", "#C21807"];
// Of a chart: a run far below no learning, or far above the bound, would flatten all others.
const LOWEST = -0.5;
const HIGHEST = 1.5;

/** Colour and stroke of an entry by its place, the same in every chart and table. */
function lookOf(place, yours) {
  const colours = yours ? YOURS : COLOURS;
  const colour = colours[place % colours.length];
  return {
    colour: (dark.matches && LIGHTER[colour]) || colour,
    dash: DASHES[Math.floor(place / colours.length) % DASHES.length],
    width: yours ? 3.5 : 1.8,
  };
}

/** A short line in the colour and stroke of an entry. */
function swatch(look) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const given = {
    x1: 0, y1: 5, x2: 22, y2: 5, stroke: look.colour, "stroke-width": Math.max(2.5, look.width),
    "stroke-dasharray": look.dash.join(" "),
  };
  for (const [name, value] of Object.entries(given)) line.setAttribute(name, value);
  svg.setAttribute("viewBox", "0 0 22 10");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("aria-hidden", "true");
  svg.append(line);
  return svg;
}

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Vega-Lite's specification of the curves of one problem. `points`: {x, y, key, place, width}. */
function specOf(problem, points, lines, axis, height) {
  const ink = colourOf("--ink");
  const line = colourOf("--line");
  const low = Math.max(LOWEST, Math.min(-0.05, ...points.map((p) => p.y)));
  const high = Math.min(HIGHEST, Math.max(1.05, ...points.map((p) => p.y + 0.05)));
  const colour = {
    field: "key", type: "nominal", legend: null,
    scale: { domain: lines.map((l) => l.key), range: lines.map((l) => l.look.colour) },
  };
  const x = {
    field: "x", type: "quantitative", title: `${AXES[axis].label} (${AXES[axis].unit})`,
    axis: { tickCount: 5, format: "~s" },
  };
  const y = {
    field: "y", type: "quantitative",
    title: problem.split === "selection" ? "score, selection" : "score, validation",
    scale: { domain: [low, high], clamp: true, nice: false }, axis: { tickCount: 5 },
  };
  return {
    width: "container", height, background: null,
    padding: 4, autosize: { type: "fit", contains: "padding" },
    data: { values: points },
    layer: [
      {
        data: { values: [{ y: problem.target }] },
        mark: { type: "rule", strokeDash: [4, 4], color: ink, opacity: 0.55 },
        encoding: { y: { field: "y", type: "quantitative" } },
      },
      {
        mark: { type: "line", clip: true, interpolate: "linear" },
        encoding: {
          x, y, color: colour,
          strokeDash: {
            field: "key", type: "nominal", legend: null,
            scale: { domain: lines.map((l) => l.key), range: lines.map((l) => l.look.dash) },
          },
          strokeWidth: { field: "width", type: "quantitative", scale: null },
        },
      },
      {
        params: [{
          name: "near",
          select: { type: "point", on: "pointerover", clear: "pointerout", nearest: true },
        }],
        mark: { type: "point", filled: true, size: 60, clip: true },
        encoding: {
          x, y, color: colour, tooltip: { field: "place", type: "quantitative" },
          opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 },
        },
      },
    ],
    config: {
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: {
        labelColor: ink, titleColor: ink, domainColor: line, tickColor: line, gridColor: line,
        gridOpacity: 0.6, titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11,
      },
    },
  };
}

const drawn = [];
let turn = 0;

/** Draw a chart for each problem into #curves. `press(entry, problem)` is called on a press. */
async function drawCurves(entries, problems, ruleset, axis, press) {
  const mine = ++turn;
  hideTip();
  while (drawn.length) drawn.pop().finalize();
  const box = byId("curves");
  box.replaceChildren();
  for (const problem of problems) {
    const lines = entries
      .filter((e) => (e.pairs.get(problem.id)?.[ruleset] ?? []).length)
      .map((entry) => ({
        key: entry.key, look: entry.look, entry,
        points: meanCurve(problem, entry.pairs.get(problem.id)[ruleset], axis),
      }))
      .filter((l) => l.points.length);
    const points = [];
    const about = [];
    for (const l of lines) {
      for (const p of l.points) {
        points.push({ x: p.x, y: Math.max(LOWEST, p.y), key: l.key, place: about.length,
          width: l.look.width });
        about.push({ ...p, entry: l.entry });
      }
    }
    const place = el("div", { class: "chart", role: "img",
      "aria-label": `Score against ${AXES[axis].label} on ${problem.label}` });
    const figure = el("figure", { "data-problem": problem.id },
      el("figcaption", {}, problem.label), place);
    box.append(figure);
    if (!points.length) {
      place.replaceWith(el("p", { class: "soft" }, "No run here has a curve."));
      continue;
    }
    const found = await window.vegaEmbed(place, specOf(problem, points, lines, axis, 210), {
      actions: false, renderer: "svg", ast: true, defaultStyle: false,
      tooltip: (handler, event, item, value) => {
        if (value === null || value === undefined || value === "") return hideTip();
        return showTip(event, about[Number(value)], problem, ruleset, axis);
      },
    });
    if (mine !== turn) return found.finalize();
    drawn.push(found);
    found.view.addEventListener("click", (event, item) => {
      const datum = item?.datum?.datum ?? item?.datum;
      const hit = datum && about[datum.place];
      if (hit) press(hit.entry, problem);
    });
  }
  return undefined;
}

function hideTip() {
  byId("tip").hidden = true;
}

/** Beside the pointer: which curve, where on it, and with which settings it was run. */
function showTip(event, at, problem, ruleset, axis) {
  const tip = byId("tip");
  if (!at) return hideTip();
  const pair = at.entry.pairs.get(problem.id);
  const { drawn: own, others } = settingsShown(pair, ruleset, problem);
  tip.replaceChildren();
  put(tip,
    el("strong", {}, swatch(at.entry.look), at.entry.label),
    el("p", {}, `${problem.label}, score ${fixed2(at.y)} at ${short(at.x)} ${AXES[axis].unit}, ` +
      `mean of ${many(at.runs, "run")}`),
    definitions(own, "own"),
    definitions(others.slice(0, 14)),
    others.length > 14 ? el("p", { class: "soft" }, `and ${others.length - 14} more`) : null,
  );
  tip.hidden = false;
  const room = tip.getBoundingClientRect();
  const wide = document.documentElement.clientWidth;
  const left = event.clientX + 16 + room.width > wide ? event.clientX - 16 - room.width
    : event.clientX + 16;
  const top = Math.min(event.clientY + 12, window.innerHeight - room.height - 8);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
  return undefined;
}

/** The settings of a pair's finals: those that trials vary, and all others. */
function settingsShown(pair, ruleset, problem) {
  const { cell } = pair[ruleset][0];
  const all = settingsOf(cell, problem.free);
  const names = new Set(pair.trials.flatMap((t) => Object.keys(t.settings)));
  const rows = Object.entries(all);
  return {
    drawn: rows.filter(([n]) => names.has(n)),
    others: [["solver", cell.solver], ...rows.filter(([n, v]) => !names.has(n) && v !== null)],
  };
}

/** Names and values as a list. */
function definitions(rows, kind = "") {
  if (!rows.length) return null;
  return el("dl", { class: `pairs ${kind}` },
    rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, written(value))]));
}
