// The page's sections with pictures. Each function returns the content of one section for one run.

const lineOf = (run, segment) =>
  run.lines.find((line) => line.kind === "segment" && line.in_force && line.segment === segment);
const inForce = (run) => run.lines.filter((line) => line.kind === "segment" && line.in_force);
const empty = (key, values) => make("p", { class: "empty" }, say(key, values));
const caption = (key, values) => make("p", { class: "caption" }, say(key, values));
const legend = (...items) =>
  make(
    "p",
    { class: "legend" },
    ...items.map(([mark, key]) =>
      make("span", {}, make("i", { class: `mark ${mark}`, "aria-hidden": "true" }), say(key)),
    ),
  );

// --- loss

function lossSection(runs) {
  const several = runs.length > 1;
  const points = runs.flatMap((run) =>
    Object.entries(run.losses).flatMap(([name, series]) => {
      const kind = name === "loss" ? "train" : "eval";
      const title = kind === "train" ? say("training loss") : name === "eval_loss" ? say("evaluation loss") : name;
      return series.map(([step, loss]) => ({ step, loss, kind, series: several ? `${run.name}: ${title}` : title }));
    }),
  );
  if (!points.length) return empty("no losses");
  const shade = (line) =>
    say(line.guided ? "shade guided" : line.decision === "warm-up" ? "shade warm-up" : "shade unguided");
  const segments = inForce(runs[0]).map((line) => ({
    start: line.start,
    stop: line.stop,
    kind: shade(line),
    segment: line.segment,
    steps: steps(line.start, line.stop),
    decision: sayKind(line.decision),
    samples: whole(line.num_rows),
  }));
  return make(
    "div",
    {},
    chart((width) => lossSpec(width, points, segments), say("loss title")),
    several ? caption("loss segments of", { name: runs[0].name }) : null,
  );
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

// Standard deviations from a uniform draw that count as more than chance.
const CLEAR = 2.5;

function rate(drawn, total, base) {
  const expected = total * base;
  const spread = Math.sqrt(total * base * (1 - base)) || 1;
  const ratio = base > 0 && total > 0 ? drawn / total / base : NaN;
  return {
    drawn,
    expected,
    base,
    share: total ? drawn / total : 0,
    ratio,
    z: (drawn - expected) / spread,
    side: drawn >= expected ? "more" : "less",
  };
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
  const rated = draws.map((drawn, g) => ({
    g,
    label: label(groups, g),
    ...rate(drawn, total, counts[g] / pool.num_rows),
  }));
  rated.sort((a, b) => b.z - a.z || a.g - b.g);
  return { guided: isGuided, total, groups: rated };
}

function preferredPanel(run, pool, column, limit = 26) {
  if (!pool.groups[column]) return empty("no groups");
  const rated = ratedGroups(run, pool, column);
  if (!rated.total) return empty("no draws");
  const half = limit / 2;
  const shown =
    rated.groups.length <= limit ? rated.groups : [...rated.groups.slice(0, half), ...rated.groups.slice(-half)];
  const rows = shown
    .filter((group) => isNumber(group.ratio))
    .map((group) => ({
      ...group,
      one: 1,
      right: Math.max(group.ratio, 1),
      shares: `${percent(group.share, 1)} / ${percent(group.base, 1)}`,
      opacity: Math.abs(group.z) >= CLEAR ? 1 : 0.4,
    }));
  return make(
    "div",
    {},
    rated.guided ? null : caption("no guided"),
    legend(["dot more", "legend more"], ["dot less", "legend less"], ["stroke", "legend base"]),
    chart((width) => preferredSpec(width, rows), say("preferred title", { column: pool.groups[column].column })),
    shown.length < rated.groups.length
      ? caption("groups shown", { shown: whole(shown.length), all: whole(rated.groups.length) })
      : null,
  );
}

function heatPanel(run, pool, column, limit = 26) {
  const groups = pool.groups[column];
  if (!groups || !run.periods.length) return empty("no groups");
  const order = ratedGroups(run, pool, column).groups;
  const shown = order.length <= limit ? order : [...order.slice(0, limit / 2), ...order.slice(-limit / 2)];
  const counts = poolCounts(groups);
  const few = run.periods.length <= 8; // then there is room for the kind of decision below the steps
  const names = run.periods.map(
    (period) => steps(period.start, period.stop) + (few ? `|${period.decisions.map(sayKind).join(say("comma"))}` : ""),
  );
  const cells = run.periods.flatMap((period, p) => {
    const total = sum(Array.from(run.draws[column][p]));
    const decision = period.decisions.map(sayKind).join(say("comma"));
    return shown.map(({ g, label: name }) => {
      const rated = rate(run.draws[column][p][g], total, counts[g] / pool.num_rows);
      return {
        ...rated,
        label: name,
        period: names[p],
        steps: steps(period.start, period.stop),
        decision,
        weight: Math.min(1, Math.abs(rated.z) / 4),
      };
    });
  });
  return make(
    "div",
    {},
    legend(["square more", "legend heat more"], ["square less", "legend heat less"]),
    chart(
      (width) =>
        heatSpec(
          width,
          cells,
          shown.map((group) => group.label),
          names,
        ),
      say("heat title", { column: groups.column }),
    ),
  );
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
  const times = make(
    "div",
    {},
    make("h4", {}, say("times title")),
    chart((width) => timesSpec(width, bars), say("times title")),
  );
  return make("div", { class: "pair even" }, times, costFigure(run));
}

function costFigure(run) {
  const bars = inForce(run)
    .filter((line) => isNumber(line.seconds))
    .flatMap((line) => {
      const scoring = Math.min(line.scoring_seconds ?? 0, line.seconds);
      const common = { segment: line.segment, start: line.start, stop: line.stop, steps: steps(line.start, line.stop) };
      return [
        { ...common, part: say("scoring the pool"), seconds: scoring, from: 0, to: scoring },
        { ...common, part: say("the rest"), seconds: line.seconds - scoring, from: scoring, to: line.seconds },
      ];
    });
  if (!bars.length) return null;
  return make(
    "div",
    {},
    make("h4", {}, say("cost title")),
    chart((width) => costSpec(width, bars), say("cost title")),
  );
}
