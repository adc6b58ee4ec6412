// Scores, ranks and intervals, as metabench/analysis/arena.py and stats.py have them.

const NEAR = 0.9;
const LEAST = -0.25; // what a run that scores less is worth to a method's regret
const SAMPLES = 2000;
const RETRAINED = "test@retrained"; // metabench.store.record
const COUNTS = [
  "inner_gradients", "outer_gradients", "hvps", "mixed_products", "function_evaluations",
];

/** The sum, with what each addition rounds off (Neumaier), so that means of shares are Python's. */
function sum(values) {
  let [total, lost] = [0, 0];
  for (const v of values) {
    const next = total + v;
    lost += Math.abs(total) >= Math.abs(v) ? total - next + v : v - next + total;
    total = next;
  }
  return total + lost;
}
const mean = (values) => sum(values) / values.length;

/** 0 without outer learning, 1 at the bound. */
const normalised = (problem, value) => (value - problem.fixed) / (problem.bound - problem.fixed);

/** The score of a run in the finals; null where it ended without numbers. */
function scoreOf(problem, record) {
  if (record.status !== "done") return null;
  return normalised(problem, record.metrics.test[problem.metric].mean);
}

/** The score of a theta that is trained anew at the lam found; null where the run, or that training,
 * ended without numbers. */
function anewOf(problem, record) {
  const found = record.status === "done" ? record.metrics[RETRAINED]?.[problem.metric] : undefined;
  return found === undefined ? null : normalised(problem, found.mean);
}

/** Scores with what a run without numbers counts: 0, or the worst beside it if that is lower. */
function filled(scores) {
  const worst = Math.min(0, ...scores.filter((s) => s !== null));
  return scores.map((s) => (s === null ? worst : s));
}

/** Ranks, 1 for the highest; values that round-off alone tells apart share a rank. */
function ranks(values) {
  const size = Math.max(...values.map(Math.abs)) || 1;
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const out = new Array(values.length);
  for (let start = 0; start < order.length; ) {
    let end = start + 1;
    while (end < order.length && values[order[start]] - values[order[end]] <= 1e-9 * size) end++;
    for (let k = start; k < end; k++) out[order[k]] = (start + 1 + end) / 2;
    start = end;
  }
  return out;
}

/** The mean without the lowest and the highest quarter. */
function iqm(values) {
  const sorted = Float64Array.from(values).sort();
  const cut = Math.floor(0.25 * sorted.length);
  let total = 0;
  for (let i = cut; i < sorted.length - cut; i++) total += sorted[i];
  return total / (sorted.length - 2 * cut);
}

/** Numbers in [0, 1), the same ones for the same seed (mulberry32). */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** The value below which the share q lies, linear between two. */
function quantile(sorted, q) {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

/** The 95 % interval of the interquartile mean, resampled within groups. */
function interval(groups) {
  const draw = generator(1);
  const all = new Float64Array(sum(groups.map((g) => g.length)));
  const found = new Float64Array(SAMPLES);
  for (let s = 0; s < SAMPLES; s++) {
    let at = 0;
    for (const group of groups) {
      for (let i = 0; i < group.length; i++) all[at++] = group[Math.floor(draw() * group.length)];
    }
    found[s] = iqm(all);
  }
  found.sort();
  return [quantile(found, 0.025), quantile(found, 0.975)];
}

/** The mean score of each trial; `trials` have `scores`, null where a run had no numbers. A run
 * below `least` counts as that. */
function trialMeans(trials, least = -Infinity) {
  const worst = Math.min(0, ...trials.flatMap((t) => t.scores).filter((s) => s !== null));
  return trials.map((t) => mean(t.scores.map((s) => Math.max(least, s ?? worst))));
}

/** The share of trials that end near the best, and what the settings as shipped lack to it (null
 * where they are not among the trials); null for a single trial. */
function robustness(trials) {
  if (trials.length < 2) return null;
  const scores = trialMeans(trials);
  const best = Math.max(...scores);
  const near = scores.filter((s) => s >= (best > 0 ? NEAR * best : best)).length / scores.length;
  const shipped = trials.findIndex((t) => t.number === 0);
  const worth = trialMeans(trials, LEAST);
  return { near, regret: shipped < 0 ? null : Math.max(...worth) - worth[shipped] };
}

/** Counts in inner gradients at a problem's prices; null where one that was taken has no price. */
function equivalents(problem, counts) {
  let total = 0;
  for (const name of COUNTS) {
    const n = counts[name] ?? 0;
    if (n && !(name in problem.prices)) return null;
    if (n) total += n * problem.prices[name];
  }
  return total;
}

const AXES = {
  cost: { label: "counted cost", unit: "inner gradients", of: (p, r) => equivalents(p, r.cost) },
  seconds: { label: "wall seconds", unit: "s", of: (p, r) => r.cost.seconds ?? null },
  step: { label: "outer steps", unit: "steps", of: (p, r) => r.steps },
};

/** Where a run first had the target, on an axis; null: never. */
function costToTarget(problem, record, axis) {
  const at = record.curve.value.findIndex(
    (v) => v !== null && normalised(problem, v) >= problem.target,
  );
  return at < 0 ? null : record.curve[axis][at] ?? null;
}

/** The median of costs, null being dearer than all; null where half or more are. */
function medianCost(costs) {
  const sorted = costs.map((c) => c ?? Infinity).sort((a, b) => a - b);
  const half = sorted.length >> 1;
  const middle = sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  return Number.isFinite(middle) ? middle : null;
}

/** The mean learning curve of runs: points with x on the axis, y the score, and how many runs. */
function meanCurve(problem, records, axis) {
  const curves = records.filter((r) => r.status === "done").map((r) => r.curve);
  const looks = Math.min(...curves.map((c) => c.value.length));
  const out = [];
  for (let i = 0; curves.length && i < looks; i++) {
    const xs = curves.map((c) => c[axis][i]);
    const ys = curves.map((c) => c.value[i]);
    if ([...xs, ...ys].some((v) => v === null || v === undefined)) continue;
    out.push({ x: mean(xs), y: mean(ys.map((v) => normalised(problem, v))), runs: curves.length });
  }
  return out;
}

/** Whether every tuned final of an entry on these problems ended in an exception: where its method
 * stands is not known then. */
function failedThroughout(entry, problems) {
  const finals = problems.flatMap((p) => entry.pairs.get(p.id)?.tuned ?? []);
  return finals.length > 0 && finals.every((r) => r.status === "failed");
}

/** A row of the standings for each entry that has played: ranked where it played all problems, and
 * did not fail throughout. `places`: its ranks, problem by problem; none where it is not ranked. */
function standings(entries, problems, ruleset, axis) {
  const rows = [];
  for (const entry of entries) {
    const played = problems.filter((p) => (entry.pairs.get(p.id)?.[ruleset] ?? []).length);
    if (!played.length) continue;
    const pairs = played.map((p) => entry.pairs.get(p.id));
    const raw = played.map((p, i) => pairs[i][ruleset].map((r) => scoreOf(p, r)));
    const groups = raw.map(filled);
    const anew = played.flatMap((p, i) =>
      (p.retrained ? filled(pairs[i][ruleset].map((r) => anewOf(p, r))) : []),
    );
    const each = pairs.map((pair) => robustness(pair.trials)).filter((e) => e !== null);
    const regrets = each.map((e) => e.regret).filter((r) => r !== null);
    const hit = played.flatMap((p, i) =>
      pairs[i][ruleset].map((r) => costToTarget(p, r, "step") !== null),
    );
    const costs = played.map((p, i) => {
      const of = pairs[i][ruleset].map((r) => AXES[axis].of(p, r)).filter((c) => c !== null);
      return of.length ? mean(of) : null;
    });
    const [low, high] = interval(groups);
    rows.push({
      entry, low, high,
      gone: raw.map((of) => of.every((s) => s === null)),
      missing: problems.filter((p) => !played.includes(p)),
      failed: failedThroughout(entry, problems),
      means: groups.map(mean),
      places: [],
      rank: null,
      score: iqm(groups.flat()),
      retrained: anew.length ? iqm(anew) : null,
      target: mean(hit.map(Number)),
      cost: costs.some((c) => c === null) ? null : mean(costs),
      near: each.length ? mean(each.map((e) => e.near)) : null,
      regret: regrets.length ? mean(regrets) : null,
      lost: raw.flat().filter((s) => s === null).length,
    });
  }
  const ranked = rows.filter((r) => !r.missing.length && !r.failed);
  problems.forEach((_, i) => {
    const kept = ranked.filter((r) => !r.gone[i]);
    const at = ranks(kept.map((r) => r.means[i]));
    // Who lost every run shares the last ranks: a crash is not to stand above a result.
    const last = (kept.length + 1 + ranked.length) / 2;
    ranked.forEach((r) => r.places.push(r.gone[i] ? last : at[kept.indexOf(r)]));
  });
  ranked.forEach((r) => {
    r.rank = mean(r.places);
  });
  return rows;
}
