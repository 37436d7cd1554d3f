// The page's sections with pictures. Each function returns the content of one section for one run.

const lineOf = (run, segment) => run.lines.find((line) => line.kind === "segment" && line.in_force && line.segment === segment);
const inForce = (run) => run.lines.filter((line) => line.kind === "segment" && line.in_force);
const empty = (key, values) => make("p", { class: "empty" }, say(key, values));
const caption = (key, values) => make("p", { class: "caption" }, say(key, values));
const legend = (...items) => make("p", { class: "legend" }, ...items.map(([mark, key]) => make("span", {}, make("i", { class: `mark ${mark}`, "aria-hidden": "true" }), say(key))));

// --- summary

function summaryPanel(run, pool) {
  const facts = run.summary;
  const tiles = [
    tile(standing(run), say("tile steps"), whole(reached(run)), run.planned_steps ? say("of steps", { all: whole(run.planned_steps) }) : ""),
    tile("", say("tile samples"), whole(facts.num_trained), say("of them guided", { guided: whole(facts.num_guided_trained) })),
    tile("", say("tile distinct"), whole(facts.num_distinct), say("of pool", { all: whole(facts.num_rows), share: percent(facts.num_rows ? facts.num_distinct / facts.num_rows : NaN) })),
    tile("", say("tile choosing"), percent(facts.share_of_run), say("choosing seconds", { time: duration(facts.choosing_seconds) })),
    facts.num_passes
      ? tile("", say("tile scoring"), whole(facts.scored_tokens), say("scoring speed", { passes: whole(facts.num_passes), speed: whole(facts.scored_tokens / facts.scoring_seconds) }))
      : tile("", say("tile scoring"), "0", say("no passes")),
  ];
  const method = make("p", { class: "method" }, make("b", {}, String(run.method ?? DASH)), ` · ${say("batch", { batch: whole(run.global_batch) })} · ${say("seed", { seed: run.seed ?? DASH })} · ${say("written", { when: moment(run.written) })}`);
  return make("div", {}, method, make("div", { class: "tiles" }, ...tiles), findings(run, pool), problems(run));
}

function tile(badge, title, value, detail) {
  return make("div", { class: "tile" }, make("span", {}, title, badge ? make("em", { class: "badge" }, badge) : null), make("b", {}, value), make("small", {}, detail));
}

const reached = (run) => (isNumber(run.end_step) ? run.end_step : run.summary.recorded_steps);

function standing(run) {
  if (!isNumber(run.end_step)) return say("standing open");
  return run.planned_steps && run.end_step < run.planned_steps ? say("standing early") : say("standing finished");
}

function findings(run, pool) {
  const sentences = [];
  pool.groups.forEach((groups, g) => {
    const rated = ratedGroups(run, pool, g);
    if (!rated.guided) return;
    const clear = rated.groups.filter((group) => group.z >= 2.5).slice(0, 4);
    const list = clear.map((group) => say("finding item", { label: group.label, times: fixed(group.ratio, 1) })).join(say("comma"));
    sentences.push(clear.length ? say("finding preferred", { column: groups.column, list }) : say("finding none", { column: groups.column }));
  });
  const guided = inForce(run).filter((line) => line.guided && isNumber(line.num_from_window));
  if (guided.length) {
    sentences.push(say("finding window", { share: percent(sum(guided.map((line) => line.num_from_window)) / sum(guided.map((line) => line.num_rows))) }));
    const moved = guided.filter((line) => line.window_state && line.window_state !== "planned").length;
    sentences.push(moved ? say("finding moved", { moved: whole(moved), all: whole(guided.length) }) : say("finding unmoved", { all: whole(guided.length) }));
  }
  return sentences.length ? make("ul", { class: "findings" }, ...sentences.map((sentence) => make("li", {}, sentence))) : null;
}

function problems(run) {
  const items = run.problems.map((problem) => say("problem", { problem }));
  if (!isNumber(run.end_step)) items.push(say("problem open", { step: whole(run.summary.recorded_steps) }));
  for (const line of run.lines) {
    if (line.kind === "rollback") items.push(say("problem rollback", { segment: line.from_segment, reason: line.reason ?? "" }));
    if (line.kind === "segment" && line.in_force) for (const warning of line.warnings ?? []) items.push(say("problem warning", { steps: steps(line.start, line.stop), warning }));
  }
  if (!items.length) return null;
  const shown = items.slice(0, 4).map((item) => make("li", {}, item));
  const rest = items.slice(4).map((item) => make("li", {}, item));
  const more = rest.length ? make("details", {}, make("summary", {}, say("more", { num: whole(rest.length) })), make("ul", {}, ...rest)) : null;
  return make("div", { class: "notes" }, make("h4", {}, say("worth knowing")), make("ul", {}, ...shown), more);
}

// --- loss

function lossSection(runs) {
  const several = runs.length > 1;
  const points = runs.flatMap((run) => Object.entries(run.losses).flatMap(([name, series]) => {
    const kind = name === "loss" ? "train" : "eval";
    const title = kind === "train" ? say("training loss") : name === "eval_loss" ? say("evaluation loss") : name;
    return series.map(([step, loss]) => ({ step, loss, kind, series: several ? `${run.name}: ${title}` : title }));
  }));
  if (!points.length) return empty("no losses");
  const shade = (line) => say(line.guided ? "shade guided" : line.decision === "warm-up" ? "shade warm-up" : "shade unguided");
  const segments = inForce(runs[0]).map((line) => ({ start: line.start, stop: line.stop, kind: shade(line), segment: line.segment, steps: steps(line.start, line.stop), decision: sayKind(line.decision), samples: whole(line.num_rows) }));
  return make("div", {}, chart((width) => lossSpec(width, points, segments), say("loss title")), several ? caption("loss segments of", { name: runs[0].name }) : null);
}

// --- groups

function poolCounts(groups) {
  if (!groups.counts) {
    groups.counts = new Array(groups.labels.length).fill(0);
    for (const code of groups.codes) groups.counts[code] += 1;
  }
  return groups.counts;
}

const label = (groups, g) => (groups.labels[g] === "" ? say("without a value") : groups.labels[g]);

function rate(drawn, total, base) {
  const expected = total * base;
  const spread = Math.sqrt(total * base * (1 - base)) || 1;
  const ratio = base > 0 && total > 0 ? drawn / total / base : NaN;
  return { drawn, expected, base, share: total ? drawn / total : 0, ratio, z: (drawn - expected) / spread, side: drawn >= expected ? "more" : "less" };
}

// Groups of one column, the most preferred first: by guided draws, or by all draws where none was guided.
function ratedGroups(run, pool, column) {
  const groups = pool.groups[column];
  const counts = poolCounts(groups);
  const guided = Array.from(run.guided_draws[column] ?? []);
  const all = counts.map((_, g) => sum((run.draws[column] ?? []).map((period) => period[g])));
  const isGuided = sum(guided) > 0;
  const draws = isGuided ? guided : all;
  const total = sum(draws);
  const rated = draws.map((drawn, g) => ({ g, label: label(groups, g), ...rate(drawn, total, counts[g] / pool.num_rows) }));
  rated.sort((a, b) => b.z - a.z || a.g - b.g);
  return { guided: isGuided, total, groups: rated };
}

function preferredPanel(run, pool, column, limit = 26) {
  if (!pool.groups[column]) return empty("no groups");
  const rated = ratedGroups(run, pool, column);
  if (!rated.total) return empty("no draws");
  const half = limit / 2;
  const shown = rated.groups.length <= limit ? rated.groups : [...rated.groups.slice(0, half), ...rated.groups.slice(-half)];
  const rows = shown.filter((group) => isNumber(group.ratio)).map((group) => ({ ...group, one: 1, right: Math.max(group.ratio, 1), shares: `${percent(group.share, 1)} / ${percent(group.base, 1)}`, opacity: Math.abs(group.z) >= 2 ? 1 : 0.4 }));
  return make("div", {},
    rated.guided ? null : caption("no guided"),
    legend(["dot more", "legend more"], ["dot less", "legend less"], ["stroke", "legend base"]),
    chart((width) => preferredSpec(width, rows), say("preferred title", { column: pool.groups[column].column })),
    shown.length < rated.groups.length ? caption("groups shown", { shown: whole(shown.length), all: whole(rated.groups.length) }) : null);
}

function heatPanel(run, pool, column, limit = 26) {
  const groups = pool.groups[column];
  if (!groups || !run.periods.length) return empty("no groups");
  const order = ratedGroups(run, pool, column).groups;
  const shown = order.length <= limit ? order : [...order.slice(0, limit / 2), ...order.slice(-limit / 2)];
  const counts = poolCounts(groups);
  const few = run.periods.length <= 8; // then there is room for the kind of decision below the steps
  const names = run.periods.map((period) => steps(period.start, period.stop) + (few ? `|${period.decisions.map(sayKind).join(say("comma"))}` : ""));
  const cells = run.periods.flatMap((period, p) => {
    const total = sum(Array.from(run.draws[column][p]));
    const decision = period.decisions.map(sayKind).join(say("comma"));
    return shown.map(({ g, label: name }) => {
      const rated = rate(run.draws[column][p][g], total, counts[g] / pool.num_rows);
      return { ...rated, label: name, period: names[p], steps: steps(period.start, period.stop), decision, weight: Math.min(1, Math.abs(rated.z) / 4) };
    });
  });
  return make("div", {}, legend(["square more", "legend heat more"], ["square less", "legend heat less"]),
    chart((width) => heatSpec(width, cells, shown.map((group) => group.label), names), say("heat title", { column: groups.column })));
}

// --- windows and decisions

function windowsPanel(run) {
  const windows = inForce(run).filter((line) => line.window && isNumber(line.window.start_share)).map((line) => {
    const ranked = line.num_scored || 1;
    const planned = Array.isArray(line.planned_window) ? line.planned_window.map((rank) => rank / ranked) : [null, null];
    return {
      segment: line.segment, start: line.start, stop: line.stop, steps: steps(line.start, line.stop),
      from: line.window.start_share, to: line.window.end_share, plan_start: planned[0], plan_end: planned[1],
      window: `${percent(line.window.start_share, 1)} ${DASH} ${percent(line.window.end_share, 1)}`,
      planned: planned[0] === null ? "" : `${percent(planned[0], 1)} ${DASH} ${percent(planned[1], 1)}`,
      improved: isNumber(line.num_improved) ? line.num_improved / ranked : null,
      inside: isNumber(line.num_from_window) && line.num_rows ? line.num_from_window / line.num_rows : null,
      state: line.window_state ? say(`state ${line.window_state}`) : "",
    };
  });
  if (!windows.length) return empty("no windows", { method: run.method ?? DASH });
  return make("div", {}, legend(["square more", "legend window"], ["outline", "legend planned"], ["line less", "legend improved"]),
    chart((width) => windowsSpec(width, windows, run.planned_steps ?? reached(run)), say("windows title")));
}

function decisionPanel(run, at) {
  if (!run.decisions.length) return empty("no decisions", { method: run.method ?? DASH });
  const decision = run.decisions[Math.min(at, run.decisions.length - 1)];
  const line = lineOf(run, decision.segment);
  const ranked = decision.num_ranked;
  const points = Array.from(decision.at, (rank, i) => ({ at: ranked > 1 ? rank / (ranked - 1) : 0, rank, value: decision.value[i] }));
  const span = (from, to) => ({ from: from / ranked, to: to / ranked, label: `${whole(from)} ${DASH} ${whole(to)}` });
  const marks = {
    window: line.window && isNumber(line.window.start) ? span(line.window.start, line.window.end) : null,
    planned: Array.isArray(line.planned_window) && line.window_state !== "planned" ? span(...line.planned_window) : null,
    cut: isNumber(line.num_improved) && decision.ranking === "delta" ? line.num_improved / ranked : null,
  };
  let begun = 0;
  const parts = Array.from(decision.drawn, (count, i) => {
    const rows = decision.in_part[i];
    const part = { from: begun / ranked, to: (begun + rows) / ranked, drawn: count, rows, label: `${percent(begun / ranked)} ${DASH} ${percent((begun + rows) / ranked)}` };
    const common = marks.window ? Math.min(part.to, marks.window.to) - Math.max(part.from, marks.window.from) : 0;
    part.inside = common > 0.25 * (part.to - part.from);
    begun += rows;
    return part;
  });
  const curve = make("div", {}, make("h4", {}, say(`curve ${decision.ranking}`)),
    chart((width) => curveSpec(width, points, marks, decision.ranking), say(`curve ${decision.ranking}`)),
    chart((width) => drawnSpec(width, parts), say("axis drawn")), caption(marks.window ? "curve caption window" : "curve caption"));
  return make("div", { class: "decision" }, make("p", { class: "method" }, decisionLine(line)), make("div", { class: "pair" }, curve, densityFigure(decision)));
}

function decisionLine(line) {
  const parts = [`${say("steps")} ${steps(line.start, line.stop)}`, sayKind(line.decision), say("num samples", { num: whole(line.num_rows) })];
  if (isNumber(line.num_improved)) parts.push(say("num improved", { num: whole(line.num_improved), all: whole(line.num_scored) }));
  if (isNumber(line.num_from_window)) parts.push(say("num inside", { num: whole(line.num_from_window) }));
  if (line.window_state && line.window_state !== "planned") parts.push(say(`state ${line.window_state}`));
  return parts.join(" · ");
}

function densityFigure(decision) {
  if (!decision.density) return null;
  const { counts, low, high } = decision.density;
  const side = Math.round(Math.sqrt(counts.length));
  const unit = (high - low) / side;
  const top = Math.max(...counts);
  const cells = [];
  counts.forEach((count, i) => {
    if (!count) return;
    const y = low + Math.floor(i / side) * unit;
    const x = low + (i % side) * unit;
    const range = (from) => `${fixed(from, 2)} ${DASH} ${fixed(from + unit, 2)}`;
    cells.push({ x, x2: x + unit, y, y2: y + unit, count, weight: Math.sqrt(count / top), first: range(x), current: range(y) });
  });
  return make("div", {}, make("h4", {}, say("density title")), chart((width) => densitySpec(width, cells, low, high), say("density title")), caption("density caption"));
}

// --- times trained

function timesPanel(run) {
  const rows = sum(run.times_counts);
  if (!rows) return empty("no draws");
  const most = 20;
  const bars = run.times_counts.slice(0, most).map((count, times) => ({ times: String(times), rows: count }));
  const rest = sum(run.times_counts.slice(most));
  if (rest) bars.push({ times: `${most}+`, rows: rest });
  for (const bar of bars) Object.assign(bar, { share: bar.rows / rows, text: whole(bar.rows) });
  const times = make("div", {}, make("h4", {}, say("times title")), chart((width) => timesSpec(width, bars), say("times title")));
  return make("div", { class: "pair even" }, times, costFigure(run));
}

function costFigure(run) {
  const bars = inForce(run).filter((line) => isNumber(line.seconds)).flatMap((line) => {
    const scoring = Math.min(line.scoring_seconds ?? 0, line.seconds);
    const common = { segment: line.segment, start: line.start, stop: line.stop, steps: steps(line.start, line.stop) };
    return [{ ...common, part: say("scoring the pool"), seconds: scoring, from: 0, to: scoring }, { ...common, part: say("the rest"), seconds: line.seconds - scoring, from: scoring, to: line.seconds }];
  });
  if (!bars.length) return null;
  return make("div", {}, make("h4", {}, say("cost title")), chart((width) => costSpec(width, bars), say("cost title")));
}
