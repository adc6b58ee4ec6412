// From records of a file to rows of the leaderboard: which problem and role a record has, what of
// the page it repeats, and which settings of a method count as tuned and as shipped.

/** What differs between the settings of an arena's problem and those of a record, in words. */
function differences(want, have, free = []) {
  const names = [...new Set([...Object.keys(want), ...Object.keys(have)])].sort();
  return names
    .filter((n) => !free.includes(n) && canonical(want[n]) !== canonical(have[n]))
    .map((n) => `${n} ${written(have[n] ?? null)} (here ${written(want[n] ?? null)})`);
}

/** The problem that a record is of, and its role there; or the reason why it has none. */
function placeOf(record, model) {
  const { cell } = record;
  const alike = model.problems.filter((p) => p.task === cell.task);
  if (!alike.length) return { reason: `of task ${cell.task}, which is no problem of this arena` };
  const compared = alike.map((problem) => ({
    problem,
    task: differences(problem.settings, cell.task_settings, problem.free),
    budget: differences(problem.budget, cell.budget),
  }));
  const same = compared.filter((c) => !c.task.length);
  const fits = same.find((c) => !c.budget.length);
  if (!fits && same.length) {
    const { problem, budget } = same[0];
    return {
      reason: `of problem ${problem.label} in another version of the arena: ${budget.join(", ")}`,
    };
  }
  if (!fits) {
    const [nearest] = compared.sort((a, b) => a.task.length - b.task.length);
    return {
      reason: `of another problem: task ${cell.task}, nearest ${nearest.problem.label}, ` +
        `with ${nearest.task.join(", ")}`,
    };
  }
  const { seeds, tuning_seeds: tuning, budget } = model.arena;
  if (seeds.includes(cell.seed)) return { problem: fits.problem, role: "finals" };
  if (tuning.includes(cell.seed)) return { problem: fits.problem, role: "trials" };
  return { reason: `of seed ${cell.seed}, which plays in no trial and no final of budget ${budget}` };
}

/** A record of a file as the page keeps its own: with the curve's columns that it draws. */
function adopted(record, problem) {
  const curve = record.curve ?? {};
  const steps = curve.step ?? [];
  const at = (i) => Object.fromEntries(COUNTS.map((n) => [n, curve[`cost/${n}`]?.[i] ?? 0]));
  return {
    ...record,
    curve: {
      step: steps,
      cost: steps.map((_, i) => equivalents(problem, at(i))),
      seconds: curve["cost/seconds"] ?? [],
      value: curve[`${problem.split}/${problem.metric}`] ?? [],
    },
  };
}

/** Whether a record has the numbers that its problem is scored by. */
function isScorable(record, problem, role) {
  if (record.status !== "done") return true;
  const split = role === "finals" ? "test" : problem.split;
  return record.metrics[split]?.[problem.metric] !== undefined;
}

/** The settings by which runs of a method are told apart. */
function settingsOf(cell, free = []) {
  const out = {};
  const groups = [["method", cell.method_settings], ["solver", cell.solver_settings]];
  for (const [group, of] of groups) {
    for (const [name, value] of Object.entries(of)) out[`${group}.${name}`] = value;
  }
  for (const name of free) {
    if (name in cell.task_settings) out[`task.${name}`] = cell.task_settings[name];
  }
  return out;
}

/** Rows from the records of a file, and what is to be said of it: {entries, said, bad}. */
function entrantsOf(name, records, model) {
  const bad = new Map();
  const refuse = (reason) => bad.set(reason, (bad.get(reason) ?? 0) + 1);
  const methods = new Map();
  const seen = new Set();
  let known = 0;
  let unequal = 0;
  for (const record of records) {
    const { problem, role, reason } = placeOf(record, model);
    if (reason) refuse(reason);
    else if (!isScorable(record, problem, role)) {
      refuse(`of problem ${problem.label} and without its metric ${problem.metric}`);
    } else if (seen.has(record.key)) refuse("there twice");
    else if (model.known.has(record.key)) {
      known++;
      const [mine, theirs] = [model.known.get(record.key), record].map((r) => scoreOf(problem, r));
      if (mine === null || theirs === null ? mine !== theirs : Math.abs(mine - theirs) > 1e-6) {
        unequal++;
      }
    } else {
      const { method, solver } = record.cell;
      const id = canonical([method, solver]);
      if (!methods.has(id)) methods.set(id, { method, solver, problems: new Map() });
      const { problems } = methods.get(id);
      if (!problems.has(problem)) problems.set(problem, new Map());
      const groups = problems.get(problem);
      const settings = settingsOf(record.cell, problem.free);
      const key = canonical(settings);
      if (!groups.has(key)) groups.set(key, { settings, finals: [], trials: [] });
      groups.get(key)[role].push(adopted(record, problem));
    }
    seen.add(record.key);
  }
  const said = [];
  const entries = [];
  const idle = new Map();
  for (const { method, solver, problems } of methods.values()) {
    const pairs = new Map();
    const notes = new Map();
    let trials = 0;
    for (const problem of model.problems.filter((p) => problems.has(p))) {
      const groups = problems.get(problem);
      const note = (what) => notes.set(what, [...(notes.get(what) ?? []), problem.label]);
      const pair = pairOf(problem, [...groups.values()], model.arena, note);
      if (pair) pairs.set(problem.id, pair);
      else trials += sum([...groups.values()].map((g) => g.trials.length));
    }
    for (const [what, where] of notes) said.push(`${method} on ${where.join(", ")}: ${what}`);
    if (trials) idle.set(method, (idle.get(method) ?? 0) + trials);
    if (pairs.size) {
      const twice = [...methods.values()].filter((m) => m.method === method).length > 1;
      const label = twice ? `${method} with ${solver}` : method;
      entries.push({ id: `${name}/${method}/${solver}`, label, method, file: name, pairs });
    }
  }
  if (idle.size) {
    said.push(`${many(sum([...idle.values()]), "run")} of trials of ${[...idle.keys()].join(", ")}, ` +
      "which bring no finals of their own");
  }
  if (known) {
    said.push(`${many(known, "run")} of finals on this page already, ` +
      (unequal ? `${unequal} of them with another score: the page keeps its own`
        : "with the same scores"));
  }
  return { entries, said, bad };
}

/** What a method of a file has on a problem: its trials, and the finals of the settings that count
 * as tuned and as shipped; null where it has no finals. */
function pairOf(problem, groups, arena, note) {
  const finals = groups.filter((g) => g.finals.length);
  const tried = groups.filter((g) => g.trials.length);
  if (!finals.length) return null;
  const scored = tried.map((g) => ({
    scores: g.trials.map((r) =>
      r.status === "done" ? normalised(problem, r.metrics[problem.split][problem.metric].mean) : null,
    ),
  }));
  const means = scored.length ? trialMeans(scored) : [];
  const best = tried[means.indexOf(Math.max(...means))];
  let tuned = null;
  if (!tried.length) {
    if (finals.length > 1) {
      note(`finals of ${finals.length} settings and no trials, so nothing says which is the ` +
        "tuned one; left out");
      return null;
    }
    tuned = finals[0];
    note("no trials in the file, so its settings stand as tuned and as shipped");
  } else if (best.finals.length) tuned = best;
  else note("its best trial has played no finals, so it has no tuned row there");
  if (tried.length > arena.trials) {
    note(`tuned with ${many(tried.length, "trial")}, and the others with ${arena.trials}: no ` +
      "comparison at equal tuning");
  } else if (tried.length > 1 && tried.length < arena.trials) {
    note(`tuned with ${many(tried.length, "trial")}, and the others with ${arena.trials}`);
  }
  if (tried.some((g) => g.trials.length < arena.tuning_seeds.length)) {
    note(`trials on fewer than ${many(arena.tuning_seeds.length, "seed")}`);
  }
  const others = finals.filter((g) => g !== tuned);
  if (others.length > 1) {
    note(`finals of ${others.length} settings besides the tuned ones, so nothing says which are ` +
      "those as shipped");
  }
  const shipped = others.length === 1 ? others[0] : others.length ? null : tuned;
  for (const group of new Set([tuned, shipped])) {
    if (group && group.finals.length < arena.seeds.length) {
      note(`${group.finals.length} of ${many(arena.seeds.length, "seed")} have played, ` +
        (group === tuned ? "tuned" : "as shipped"));
    }
  }
  const order = [shipped, ...tried.filter((g) => g !== shipped)].filter((g) => g?.trials.length);
  const bySeed = (group) => (group ? [...group.finals] : []).sort((a, b) => a.cell.seed - b.cell.seed);
  const varied = varying(order.map((g) => g.settings));
  return {
    trials: order.map((g, i) => ({
      number: g === shipped ? 0 : shipped?.trials.length ? i : i + 1,
      settings: Object.fromEntries(varied.map((n) => [n, g.settings[n]])),
      scores: scored[tried.indexOf(g)].scores,
    })),
    chosen: tuned ? (tuned === shipped ? 0 : order.indexOf(tuned) + (shipped?.trials.length ? 0 : 1)) : null,
    tuned: bySeed(tuned),
    shipped: bySeed(shipped),
  };
}

/** The names whose values are not the same in all of several settings. */
function varying(several) {
  const names = [...new Set(several.flatMap(Object.keys))].sort();
  return names.filter((n) => new Set(several.map((s) => canonical(s[n] ?? null))).size > 1);
}
