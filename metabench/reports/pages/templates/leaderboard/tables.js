// The two tables: standings, and scores by problem. Every column sorts.

const COLUMNS = [
  { id: "rank", of: (r) => r.rank, text: (r) => fixed2(r.rank), low: true },
  { id: "method", of: (r) => r.entry.label.toLowerCase(), low: true },
  { id: "score", of: (r) => r.score, text: (r) => fixed2(r.score) },
  { id: "interval", title: "95 % interval", of: (r) => r.low },
  { id: "retrained", of: (r) => r.retrained, text: (r) => fixed2(r.retrained) },
  { id: "target", of: (r) => r.target, text: (r) => percent(r.target) },
  { id: "cost", title: "a run", of: (r) => r.cost, text: (r) => short(r.cost), low: true },
  { id: "near", of: (r) => r.near, text: (r) => percent(r.near) },
  { id: "regret", of: (r) => r.regret, text: (r) => fixed2(r.regret), low: true },
  { id: "lost", of: (r) => r.lost, text: (r) => (r.lost ? String(r.lost) : "0"), low: true },
];

const FAILED = "every final of it failed";

/** Rows in order of a value; what has none is last in both directions, what is not ranked too. */
function sorted(rows, of, down) {
  const last = (r) => (r.rank === null ? 2 : 0) + (of(r) === null || of(r) === undefined ? 1 : 0);
  return [...rows].sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    const way = x < y ? -1 : x > y ? 1 : 0;
    return last(a) - last(b) || (down ? -way : way) || b.score - a.score;
  });
}

/** A head whose button sorts by its column. */
function head(column, title, state, sort, hint) {
  const here = state.by === column.id;
  return el("th", { scope: "col", class: column.id === "method" ? "name" : null,
    "aria-sort": here ? (state.down ? "descending" : "ascending") : null },
  el("button", { type: "button", "data-column": column.id, title: hint, click: () => sort(column) },
    title, el("span", { class: "arrow", "aria-hidden": "true" },
      here ? (state.down ? "\u25bc" : "\u25b2") : "")));
}

/** The next state of sorting after a press on a column: its best first, then the other way. */
function pressed(state, column) {
  const down = state.by === column.id ? !state.down : !column.low;
  return { by: column.id, down };
}

function nameCell(row, remove) {
  const { entry } = row;
  return el("th", { scope: "row", class: "name" }, swatch(entry.look), el("span", {}, entry.label),
    entry.file ? el("span", { class: "badge", title: `from ${entry.file}` }, "yours") : null,
    entry.file ? el("button", { type: "button", class: "close small", click: () => remove(entry.file),
      "aria-label": `Remove ${entry.file}` }, "\u00d7") : null);
}

/** A score's interval as a bar between the lowest of all rows (or 0) and the highest (or 1). */
function bar(row, rows) {
  const from = Math.max(-1, Math.min(0, ...rows.map((r) => r.low)));
  const to = Math.max(1, Math.min(1.5, ...rows.map((r) => r.high)));
  const at = (x) => `${(100 * (Math.min(to, Math.max(from, x)) - from)) / (to - from)}%`;
  const line = el("span", { class: "line" });
  const dot = el("span", { class: "dot" });
  const zero = el("span", { class: "zero" });
  zero.style.left = at(0);
  line.style.left = at(row.low);
  line.style.right = `calc(100% - ${at(row.high)})`;
  dot.style.left = at(row.score);
  for (const part of [line, dot]) part.style.background = row.entry.look.colour;
  const said = `${fixed2(row.low)} to ${fixed2(row.high)}`;
  return el("td", { class: "interval" }, el("span", { class: "bar", "aria-hidden": "true" }, zero,
    line, dot), el("span", { class: "ends" }, said));
}

/** The columns of the standings: that of the second readout only where a problem of the page has
 * one. */
function columnsOf(problems) {
  const anew = problems.some((p) => p.retrained);
  return COLUMNS.filter((c) => c.id !== "retrained" || anew);
}

/** Draw the standings. `state`: {by, down}; `sort(column)` and `remove(file)` are called back. */
function drawStandings(rows, columns, state, axis, sort, remove) {
  const titles = { cost: `a run (${AXES[axis].unit})` };
  const hints = { rank: "mean rank over the problems", retrained: "what the lam found is worth",
    target: "runs that reach the target",
    cost: `${AXES[axis].label} of a run`, near: "settings near the best",
    regret: "what the settings as shipped lack", lost: "runs without numbers" };
  const column = columns.find((c) => c.id === state.by) ?? columns[0];
  byId("standings").replaceChildren(
    el("caption", { class: "unseen" }, "Standings"),
    el("thead", {}, el("tr", {}, columns.map((c) =>
      head(c, titles[c.id] ?? c.title ?? c.id, state, sort, hints[c.id])))),
    el("tbody", {}, sorted(rows, column.of, state.down).map((row) =>
      el("tr", { "data-entry": row.entry.id,
        class: [row.entry.file ? "yours" : "", row.rank === null ? "unranked" : ""].join(" ") },
      columns.map((c) => {
        if (c.id === "method") return nameCell(row, remove);
        if (c.id === "interval") return bar(row, rows);
        if (c.id === "rank") return rankCell(row, c);
        return el("td", { class: c.id }, c.text(row));
      })))));
}

/** The mean rank, marked where other rows are shown to be better; a dash where there is none. */
function rankCell(row, column) {
  if (row.rank === null) {
    const why = row.failed ? "every final failed"
      : `has not played ${row.missing.map((p) => p.label).join(", ")}`;
    return el("td", { class: "soft", title: `not ranked: ${why}` }, "\u2013");
  }
  if (!row.better.length) return el("td", { class: "rank" }, column.text(row));
  return el("td", { class: "rank", title: shownWorse(row) }, column.text(row),
    el("span", { class: "mark" }, WORSE));
}

/** Who of the entries is not ranked, by cause: [{cause, who, where}], the cause that
 * keeps most away first. Entries of no track that is shown have none. */
function unranked(entries, problems, ruleset) {
  const groups = new Map();
  for (const entry of entries) {
    const some = problems.some((p) => (entry.pairs.get(p.id)?.[ruleset] ?? []).length);
    for (const problem of problems) {
      const causes = failedThroughout(entry, problems) ? [FAILED]
        : causesOf(entry, problem, ruleset, some);
      for (const cause of causes) {
        if (!groups.has(cause)) groups.set(cause, { cause, who: new Set(), where: new Set() });
        groups.get(cause).who.add(entry);
        groups.get(cause).where.add(problem);
      }
    }
  }
  return [...groups.values()].sort((a, b) =>
    b.who.size - a.who.size || b.where.size - a.where.size);
}

/** Why an entry has no finals on a problem; nothing where it has, and where nobody expects it:
 * `some` says whether it plays on others of those that are shown. */
function causesOf(entry, problem, ruleset, some) {
  const pair = entry.pairs.get(problem.id);
  if ((pair?.[ruleset] ?? []).length) return [];
  const refused = entry.refused?.[problem.id];
  if (refused || !some) return refused ?? [];
  if (pair) return [`${entry.file} has no finals of it ${RULESETS[ruleset]}`];
  return [entry.file ? `${entry.file} has no finals of it` : "the arena does not have it play there"];
}

/** Say who is not ranked, folded up; what is unfolded stays so. */
function drawUnranked(groups, problems) {
  const box = byId("unranked");
  const who = new Set(groups.flatMap((g) => [...g.who]));
  box.hidden = !who.size;
  box.querySelector("summary").textContent =
    `Not ranked: ${many(who.size, "method")}, ${[
      groups.some((g) => g.cause !== FAILED) ? "not played on every problem" : "",
      groups.some((g) => g.cause === FAILED) ? "every final failed" : "",
    ].filter(Boolean).join(" or ")}`;
  box.querySelector("ul").replaceChildren(...groups.map(({ cause, who: names, where }) =>
    el("li", { title: [...where].map((p) => p.label).join("; ") },
      el("span", { class: "cause" }, cause),
      el("span", { class: "soft" }, ` (${where.size} of ${many(problems.length, "problem")})`),
      el("span", { class: "who" },
        el("strong", {}, many(names.size, "method")), `: ${[...names].map((e) => e.label).join(", ")}`))));
}

/** Draw the scores by problem; `open(entry, problem)` is called on a press. */
function drawProblems(rows, problems, state, ruleset, axis, sort, open) {
  const value = (problem) => (r) => {
    const records = r.entry.pairs.get(problem.id)?.[ruleset] ?? [];
    return records.length ? mean(filled(records.map((x) => scoreOf(problem, x)))) : null;
  };
  const columns = problems.map((p) => ({ id: p.id, label: p.label, of: value(p), problem: p }));
  const column = columns.find((c) => c.id === state.by);
  // By name or as the standings stand, where no problem is chosen.
  const name = COLUMNS[1];
  const ordered = column ? rows.map((r) => ({ ...r, rank: 0 })) : rows;
  const of = column ? column.of : state.by === name.id ? name.of : (r) => r.rank;
  byId("by-problem").replaceChildren(
    el("caption", { class: "unseen" }, "Score by problem"),
    el("thead", {}, el("tr", {}, head(name, "method", state, sort),
      columns.map((c) => head(c, c.label, state, sort, `track ${c.problem.track}, ${c.problem.task}`)))),
    el("tbody", {}, sorted(ordered, of, state.down).map((row) =>
      el("tr", { "data-entry": row.entry.id, class: row.entry.file ? "yours" : null },
        el("th", { scope: "row", class: "name" }, swatch(row.entry.look),
          el("span", {}, row.entry.label)),
        columns.map((c) => problemCell(row.entry, c, c.of(row), ruleset, axis, open))))));
}

function problemCell(entry, column, score, ruleset, axis, open) {
  const { problem } = column;
  if (score === null) return el("td", { class: "soft" }, "\u2013");
  const records = entry.pairs.get(problem.id)[ruleset];
  const cost = medianCost(records.map((r) => costToTarget(problem, r, axis)));
  const shade = Math.round(Math.max(0, Math.min(1, score)) * 10);
  return el("td", { class: `shade shade-${shade}` },
    el("button", { type: "button", click: () => open(entry, problem),
      "aria-label": `${entry.label} on ${problem.label}: ${fixed2(score)}; open its runs` },
    el("span", { class: "value" }, fixed2(score)),
    el("span", { class: "cost" }, cost === null ? "not reached"
      : `${short(cost)} ${axis === "cost" ? "" : AXES[axis].unit}`.trim())));
}
