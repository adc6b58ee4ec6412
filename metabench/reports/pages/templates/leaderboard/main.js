// What is shown, and everything that changes it.

const RULESETS = { tuned: "tuned", shipped: "as shipped" };
const model = {};

/** The page's data: base64, gzip, JSON. */
async function unpacked() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser is too old for this page: it cannot unpack its data");
  }
  const packed = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** Problems, entries and records from the page's data. */
function prepare(data) {
  const records = data.records.map((r) => ({ ...r, environment: data.environments[r.environment] }));
  const problems = new Map(data.problems.map((p) => [p.id, p]));
  const entries = data.entries.map((entry) => ({
    ...entry,
    pairs: new Map(Object.entries(entry.pairs).map(([id, pair]) => [id, {
      ...pair,
      tuned: pair.tuned.map((i) => records[i]),
      shipped: pair.shipped.map((i) => records[i]),
      trials: pair.trials.map((t) => ({
        ...t,
        scores: t.values.map((v) => (v === null ? null : normalised(problems.get(id), v))),
      })),
    }])),
  }));
  Object.assign(model, {
    arena: data.arena, contract: data.contract, schema: data.schema, tracks: data.tracks,
    problems: data.problems, entries, dropped: [], hidden: new Set(),
    absent: data.absent.map((entry) => ({ ...entry, pairs: new Map() })),
    known: new Map(records.map((r) => [r.key, r])),
  });
  model.state = {
    track: Object.keys(data.tracks)[0], ruleset: "tuned", axis: "cost",
    problems: new Set(data.problems.map((p) => p.id)),
    standings: { by: "rank", down: false }, table: { by: "", down: false },
  };
}

const ofTrack = () => model.problems.filter((p) => p.track === model.state.track);
const wanted = () => ofTrack().filter((p) => model.state.problems.has(p.id));

/** Every entry, the page's and those dropped, each with a key and a look of its own. */
function everyone() {
  const all = [...model.entries, ...model.dropped];
  all.forEach((e, i) => {
    e.key = `e${i}`;
    e.look = e.file ? lookOf(i - model.entries.length, true) : lookOf(i, false);
  });
  return all;
}

/** One of several, as a row of radio buttons. */
function choice(legend, name, options, chosen, change) {
  return el("fieldset", {}, el("legend", {}, legend), el("div", { class: "segments" },
    Object.entries(options).map(([value, label]) => el("label", {},
      el("input", { type: "radio", name, value, checked: value === chosen,
        change: () => change(value) }), el("span", {}, label)))));
}

function drawControls() {
  const { state } = model;
  const set = (name) => (value) => {
    state[name] = value;
    if (name === "track") drawControls();
    refresh();
  };
  const tracks = Object.keys(model.tracks);
  const toggle = (id) => (event) => {
    if (event.target.checked) state.problems.add(id);
    else state.problems.delete(id);
    refresh();
  };
  const all = (on) => () => {
    for (const p of ofTrack()) {
      if (on) state.problems.add(p.id);
      else state.problems.delete(p.id);
    }
    drawControls();
    refresh();
  };
  byId("controls").replaceChildren(
    tracks.length > 1 ? choice("Track", "track",
      Object.fromEntries(tracks.map((t) => [t, `${t}: ${model.tracks[t]}`])), state.track,
      set("track")) : "",
    choice("Settings", "ruleset", RULESETS, state.ruleset, set("ruleset")),
    choice("Cost", "axis", Object.fromEntries(Object.entries(AXES).map(([k, a]) => [k, a.label])),
      state.axis, set("axis")),
    el("fieldset", { class: "wide" }, el("legend", {}, "Problems"), el("div", { class: "chips" },
      ofTrack().map((p) => el("label", { class: "chip" },
        el("input", { type: "checkbox", name: "problem", value: p.id,
          checked: state.problems.has(p.id), change: toggle(p.id) }), el("span", {}, p.label))),
      el("button", { type: "button", class: "link", click: all(true) }, "all"),
      el("button", { type: "button", class: "link", click: all(false) }, "none"))),
  );
}

/** Rank and draw anew; the charts too, unless only a table is sorted. */
function refresh() {
  const { state } = model;
  const problems = wanted();
  const entries = everyone();
  model.rows = problems.length ? standings(entries, problems, state.ruleset, state.axis) : [];
  model.tests = judge(model.rows);
  drawTables();
  const playing = model.rows.map((r) => r.entry);
  drawLegend(playing);
  model.drawing = drawCurves(playing.filter((e) => !model.hidden.has(e.id)), problems,
    state.ruleset, state.axis, (entry, problem) => openPair(entry, problem, state.ruleset))
    .catch(fail);
}

function drawTables() {
  const { state, rows } = model;
  const problems = wanted();
  const track = `Track ${state.track}, ${model.tracks[state.track]}, ${RULESETS[state.ruleset]}`;
  byId("standings-said").replaceChildren(
    problems.length ? shown(`${track}: ${many(problems.length, "problem")}.`) : "Choose a problem.",
  );
  drawVerdict(rows, problems, ofTrack(), model.tests);
  drawUnranked(unranked([...model.entries, ...model.absent, ...model.dropped], problems,
    state.ruleset), problems);
  const sort = (name) => (column) => {
    state[name] = pressed(state[name], column);
    drawTables();
    const table = byId(name === "standings" ? "standings" : "by-problem");
    [...table.querySelectorAll("th button")].find((b) => b.dataset.column === column.id)?.focus();
  };
  drawStandings(rows, columnsOf(model.problems), state.standings, state.axis, sort("standings"), remove);
  drawProblems(rows, problems, state.table, state.ruleset, state.axis, sort("table"),
    (entry, problem) => openPair(entry, problem, state.ruleset));
}

function drawLegend(entries) {
  const toggle = (entry) => () => {
    if (!model.hidden.delete(entry.id)) model.hidden.add(entry.id);
    refresh();
  };
  byId("legend").replaceChildren(...entries.map((e) => el("button", {
    type: "button", class: "chip", "aria-pressed": String(!model.hidden.has(e.id)),
    click: toggle(e),
  }, swatch(e.look), e.label)));
}

/** Take in files: rows for what can be ranked, words for what cannot. */
async function take(files) {
  for (const file of files) {
    const place = el("div", { class: "message" }, el("p", {}, `Reading ${file.name} ...`));
    byId("messages").prepend(place);
    try {
      const { records, refused } = await readRecords(file, model.contract, model.schema);
      const { entries, said, bad } = entrantsOf(file.name, records, model);
      model.dropped = [...model.dropped.filter((e) => e.file !== file.name), ...entries];
      told(place, file.name, entries, said, bad, refused);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      place.className = "message bad";
      place.replaceChildren(el("p", {}, el("strong", {}, file.name), `: ${error.message}.`));
    }
  }
  const track = model.dropped.length && everyoneIn(model.state.track);
  if (track === false) {
    model.state.track = Object.keys(model.tracks).find(everyoneIn) ?? model.state.track;
    drawControls();
  }
  refresh();
}

/** Whether a dropped row plays in a track. */
function everyoneIn(track) {
  const ids = new Set(model.problems.filter((p) => p.track === track).map((p) => p.id));
  return model.dropped.some((e) => [...e.pairs.keys()].some((id) => ids.has(id)));
}

/** Say what came of a file. */
function told(place, name, entries, said, bad, refused) {
  const lines = [...bad].map(([reason, n]) => `${many(n, "record")} left out: ${reason}`);
  for (const [reason, numbers] of refused) {
    const which = numbers.length === 1 ? `line ${numbers[0]}`
      : `lines ${numbers.slice(0, 5).join(", ")}${numbers.length > 5 ? ", ..." : ""}`;
    lines.push(`${many(numbers.length, "line")} left out: ${which}: ${reason}`);
  }
  const rows = entries.map((e) => `${e.label} on ${many(e.pairs.size, "problem")}`);
  const result = rows.length ? `now in the tables and charts: ${rows.join(", ")}.`
    : "no row comes of it.";
  place.className = `message ${rows.length ? "good" : "bad"}`;
  place.replaceChildren(
    el("p", {}, el("strong", {}, name), `: ${result}`),
    said.length + lines.length ? el("ul", {}, [...said, ...lines].map((t) => el("li", {}, t))) : "",
  );
}

/** Take the rows of a file away. */
function remove(file) {
  model.dropped = model.dropped.filter((e) => e.file !== file);
  refresh();
}

function listen() {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!hasFiles(event)) return;
    event.preventDefault();
    take([...event.dataTransfer.files]).catch(fail);
  });
  byId("file").addEventListener("change", (event) => {
    take([...event.target.files]).catch(fail);
    event.target.value = "";
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  const panel = byId("panel");
  panel.addEventListener("click", (event) => event.target === panel && panel.close());
  byId("curves").addEventListener("pointerleave", hideTip);
  document.addEventListener("scroll", hideTip, { passive: true });
  dark.addEventListener("change", refresh);
  let width = window.innerWidth;
  let waiting = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(refresh, 150);
  });
}

/** Something that should not happen: said on the page, and in the console. */
function fail(error) {
  console.error(error);
  byId("failure").replaceChildren(el("p", { class: "message bad" },
    `This page has a fault: ${error.message ?? error}. Reload it; the rest of it may be wrong.`));
}

async function start() {
  prepare(await unpacked());
  const { arena, entries, problems } = model;
  byId("facts").textContent = shown(
    `${many(entries.length, "method")}, ${many(problems.length, "problem")}; each method tuned with ` +
    `${many(arena.trials, "trial")} on ${many(arena.tuning_seeds.length, "seed")} and played on ` +
    `${many(arena.seeds.length, "fresh seed")}, at equal counted cost.`);
  byId("main").hidden = false;
  drawControls();
  listen();
  refresh();
  await model.drawing;
  document.documentElement.dataset.ready = "yes";
}

start().catch(fail);
