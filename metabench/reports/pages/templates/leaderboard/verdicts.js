// What the tests of the ranks say of the standings that are shown, and who is worse than whom.

const WORSE = "\u2020"; // metabench.reports.tables.renderers
const LEVEL = `${100 * ALPHA}\u00a0%`;

/** Test the ranks of the rows that have one, the best first; each row is given those that it is
 * shown to be worse than (`better`). Null where there are too few rows or problems. */
function judge(rows) {
  const ranked = rows.filter((r) => r.rank !== null)
    .sort((a, b) => a.rank - b.rank || b.score - a.score);
  const places = (ranked[0]?.places ?? []).map((_, i) => ranked.map((r) => r.places[i]));
  const found = tested(places);
  for (const row of rows) row.better = [];
  if (found) ranked.forEach((r, i) => { r.better = found.better[i].map((j) => ranked[j]); });
  return found;
}

const shownWorse = (row) =>
  `shown to be worse than ${row.better.map((r) => r.entry.label).join("; ")}`;

/** Say below the standings whether the methods can be told apart; `all`: the problems of the track,
 * `problems` those that are chosen. */
function drawVerdict(rows, problems, all, found) {
  const ranked = rows.filter((r) => r.rank !== null);
  const worse = ranked.filter((r) => r.better.length).sort((a, b) => b.rank - a.rank);
  byId("standings-tests").replaceChildren(...(problems.length
    ? [el("strong", {}, found ? gist(ranked, worse) : "Not tested"),
      shown(found ? numbers(found) : tooFew(ranked, problems)), shown(unlikeTables(ranked, problems, all))]
    : []));
  const box = byId("worse");
  box.hidden = !worse.length;
  box.querySelector("ul").replaceChildren(...worse.map((row) =>
    el("li", {}, el("strong", {}, row.entry.label), `: ${shownWorse(row)}`)));
}

function gist(ranked, worse) {
  if (!worse.length) return "No method is shown to be worse than another.";
  const are = worse.length === 1 ? "is" : "are";
  return `${worse.length} of ${many(ranked.length, "method")} ${are} shown to be worse than some ` +
    `other (${WORSE}); without a mark: not told apart.`;
}

const tooFew = (ranked, problems) => `: it would need ${FEWEST_METHODS} methods on ` +
  `${FEWEST_PROBLEMS} problems, and there are ${ranked.length} on ${problems.length}. Ranks describe ` +
  "these problems, and say nothing of others.";

/** The tests in numbers. */
function numbers(found) {
  const { statistic, freedom, p, critical } = found;
  const apart = `more than ${critical.toFixed(2)} apart`;
  const differ = p < ALPHA
    ? `differ at ${LEVEL} for all pairs together (Nemenyi) where they lie ${apart}.`
    : `would have to lie ${apart} to differ (Nemenyi, ${LEVEL} for all pairs together). The ` +
      `Friedman test finds no difference among the methods at ${LEVEL}.`;
  const few = critical < freedom ? "" : ` Too few problems: that is no less than the largest ` +
    `possible difference, ${freedom}; the order is a description only.`;
  return ` Tests of the ranks, a block a problem (means over seeds): Friedman\u2019s chi-squared is ` +
    `${statistic.toFixed(1)} with ${many(freedom, "degree")} of freedom, p = ` +
    `${Number(p.toPrecision(2))}. Two mean ranks ${differ}${few}`;
}

/** Where the tests are not those of the arena's own tables: why. */
function unlikeTables(ranked, problems, all) {
  const yours = ranked.filter((r) => r.entry.file).length;
  const part = problems.length < all.length ? ` This is said of ${problems.length} of the ` +
    `track\u2019s ${many(all.length, "problem")}; whoever chooses problems by their results finds ` +
    "differences that are none." : "";
  return part + (yours ? ` It is said with ${many(yours, "row")} from files, which the arena\u2019s ` +
    "own tables are without: ranks and tests depend on who takes part." : "");
}
