// The panel: what a method did on a problem, and one record of it in full.

/** Open the panel on a method's settings, trials and runs on a problem. */
function openPair(entry, problem, ruleset) {
  const pair = entry.pairs.get(problem.id);
  const records = pair[ruleset];
  const { drawn: own, others } = settingsShown(pair, ruleset, problem);
  const how = ruleset === "tuned" ? "tuned" : "as shipped";
  fill(`${entry.label} on ${problem.label}, ${how}`, [
    el("p", { class: "soft" },
      `Task ${problem.task}; ${problem.metric}: ${short(problem.fixed)} without outer learning ` +
      `(score 0), ${short(problem.bound)} at best (score 1).`),
    el("h3", {}, "Runs of the finals"),
    el("div", { class: "scroll" }, el("table", { class: "plain runs" },
      el("thead", {}, el("tr", {}, ["seed", "score", problem.metric, "cost", "seconds", "steps",
        ...(problem.retrained ? ["retrained"] : [])].map((t) =>
        el("th", {}, t)))),
      el("tbody", {}, records.map((record) => runRow(entry, problem, ruleset, record))))),
    el("h3", {}, "Settings"),
    definitions(own, "own"),
    definitions(others),
    pair.trials.length ? trialTable(pair, ruleset) : el("p", { class: "soft" }, "No trials here."),
  ]);
}

function runRow(entry, problem, ruleset, record) {
  const score = scoreOf(problem, record);
  const open = () => openRecord(entry, problem, ruleset, record);
  return el("tr", {},
    el("th", { scope: "row" }, el("button", { type: "button", class: "link", click: open,
      title: "Open the record" }, `seed ${record.cell.seed}`)),
    el("td", {}, score === null ? record.status : fixed2(score)),
    el("td", {}, score === null ? "" : short(record.metrics.test[problem.metric].mean, 4)),
    el("td", {}, short(AXES.cost.of(problem, record), 4)),
    el("td", {}, short(AXES.seconds.of(problem, record), 3)),
    el("td", {}, short(record.steps)),
    problem.retrained ? el("td", {}, fixed2(anewOf(problem, record))) : null);
}

function trialTable(pair, ruleset) {
  const means = trialMeans(pair.trials);
  const names = [...new Set(pair.trials.flatMap((t) => Object.keys(t.settings)))];
  const played = ruleset === "tuned" ? pair.chosen : 0;
  return [
    el("h3", {}, "Trials, scored on what chooses them"),
    el("div", { class: "scroll" }, el("table", { class: "plain trials" },
      el("thead", {}, el("tr", {}, ["trial", "score", "lost", ...names].map((t) => el("th", {}, t)))),
      el("tbody", {}, pair.trials.map((t, i) =>
        el("tr", { class: t.number === played ? "chosen" : null },
          el("th", { scope: "row" }, t.number === 0 ? "0, as shipped" : t.number),
          el("td", {}, fixed2(means[i])),
          el("td", {}, t.scores.filter((s) => s === null).length || ""),
          names.map((n) => el("td", {}, written(t.settings[n] ?? "")))))))),
  ];
}

/** Open the panel on one record. */
function openRecord(entry, problem, ruleset, record) {
  const score = scoreOf(problem, record);
  const measured = Object.entries(record.metrics).flatMap(([split, of]) =>
    Object.entries(of).map(([name, e]) => [
      `${split}/${name}`,
      `${short(e.mean, 5)}${e.ci95 ? ` \u00b1 ${short(e.ci95, 2)}` : ""}` +
        ` (${many(e.n ?? 1, "episode")})`,
    ]));
  const counted = AXES.cost.of(problem, record);
  const cost = [["counted cost", counted], ...Object.entries(record.cost)];
  const { versions, machine, git, ...about } = record.environment;
  const course = {
    status: record.status, reason: record.reason, "outer steps": record.steps,
    "tested step": record.selected_step, attempts: record.attempts, started: record.started,
    ended: record.ended, ...record.notes,
  };
  const { cell } = record;
  fill(`${entry.label} on ${problem.label}, seed ${cell.seed}`, [
    el("button", { type: "button", class: "link",
      click: () => openPair(entry, problem, ruleset) }, "\u2190 all runs"),
    el("p", { class: "big" }, score === null ? `No score: ${record.status}`
      : `Score ${fixed2(score)}`),
    record.reason ? el("p", { class: "message bad" }, record.reason) : null,
    el("div", { id: "record-chart" }),
    el("div", { class: "groups" }, [
      ["Measured", measured],
      ["Cost", cost.map(([n, v]) => [n.replaceAll("_", " "), short(v, 4)])],
      ["Run", rowsOf(course)],
      [`Method ${cell.method}`, rowsOf(cell.method_settings)],
      [`Solver ${cell.solver}`, rowsOf(cell.solver_settings)],
      [`Task ${cell.task}`, rowsOf(cell.task_settings)],
      ["lam", rowsOf(record.lam)],
      ["Versions", rowsOf(versions)],
      ["Machine", rowsOf(machine)],
      ["Code", rowsOf(git)],
      ["Environment", rowsOf(about)],
    ].filter(([, rows]) => rows.length).map(([title, rows]) =>
      el("section", {}, el("h3", {}, title), definitions(rows)))),
    record.traceback ? [el("h3", {}, "Traceback"), el("pre", {}, record.traceback)] : null,
    el("p", { class: "soft key" }, `Key ${record.key}`),
    el("details", {}, el("summary", {}, "As JSON"), el("pre", {}, JSON.stringify(record, null, 1))),
  ]);
  drawRecord(problem, record, entry);
}

/** Names and values of an object that have one; what lies deeper with all names on the way. */
function rowsOf(object, deep = 4) {
  return Object.entries(isObject(object) ? object : {})
    .filter(([, v]) => v !== null && v !== "")
    .flatMap(([name, v]) => (isObject(v) && deep
      ? rowsOf(v, deep - 1).map(([inner, x]) => [`${name}.${inner}`, x])
      : [[name, /^\d{4}-\d\d-\d\dT/.test(v) ? v.replace("T", " ").replace("+00:00", " UTC") : v]]));
}

/** The learning curve of one record. */
async function drawRecord(problem, record, entry) {
  const axis = model.state.axis;
  const one = { ...record, status: "done" };
  const points = meanCurve(problem, [one], axis)
    .map((p) => ({ x: p.x, y: Math.max(LOWEST, p.y), key: entry.key, place: 0,
      width: entry.look.width }));
  if (points.length < 2) return;
  const spec = specOf(problem, points, [{ key: entry.key, look: entry.look }], axis, 150);
  await window.vegaEmbed(byId("record-chart"), spec, {
    actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: () => {},
  });
}

/** Show the panel with a title and what is under it. */
function fill(title, content) {
  hideTip();
  const panel = byId("panel");
  const close = el("button", { type: "button", class: "close", "aria-label": "Close",
    click: () => panel.close() }, "\u00d7");
  panel.replaceChildren(el("header", {}, el("h2", { id: "panel-title" }, title), close));
  put(panel, el("div", { class: "inside" }, content));
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
}
