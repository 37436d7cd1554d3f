// The sections on windows and on one decision, for one run.

function windowsPanel(run) {
  const windows = inForce(run)
    .filter((line) => line.window && isNumber(line.window.start_share))
    .map((line) => {
      const ranked = line.num_scored || 1;
      const planned = Array.isArray(line.planned_window)
        ? line.planned_window.map((rank) => rank / ranked)
        : [null, null];
      return {
        segment: line.segment,
        start: line.start,
        stop: line.stop,
        steps: steps(line.start, line.stop),
        from: line.window.start_share,
        to: line.window.end_share,
        plan_start: planned[0],
        plan_end: planned[1],
        window: `${percent(line.window.start_share, 1)} ${DASH} ${percent(line.window.end_share, 1)}`,
        planned: planned[0] === null ? "" : `${percent(planned[0], 1)} ${DASH} ${percent(planned[1], 1)}`,
        improved: isNumber(line.num_improved) ? line.num_improved / ranked : null,
        inside: isNumber(line.num_from_window) && line.num_rows ? line.num_from_window / line.num_rows : null,
        state: line.window_state ? say(`state ${line.window_state}`) : "",
      };
    });
  if (!windows.length) return empty("no windows", { method: run.method ?? DASH });
  return make(
    "div",
    {},
    legend(["square more", "legend window"], ["outline", "legend planned"], ["line less", "legend improved"]),
    chart((width) => windowsSpec(width, windows, run.planned_steps ?? reached(run)), say("windows title")),
  );
}

function decisionPanel(run, at) {
  if (!run.decisions.length) return empty("no decisions", { method: run.method ?? DASH });
  const decision = run.decisions[Math.min(at, run.decisions.length - 1)];
  const line = lineOf(run, decision.segment);
  const ranked = decision.num_ranked;
  const points = Array.from(decision.at, (rank, i) => ({
    at: ranked > 1 ? rank / (ranked - 1) : 0,
    rank,
    value: decision.value[i],
  }));
  const span = (from, to) => ({ from: from / ranked, to: to / ranked, label: `${whole(from)} ${DASH} ${whole(to)}` });
  const marks = {
    window: line.window && isNumber(line.window.start) ? span(line.window.start, line.window.end) : null,
    planned:
      Array.isArray(line.planned_window) && line.window_state !== "planned" ? span(...line.planned_window) : null,
    cut: isNumber(line.num_improved) && decision.ranking === "delta" ? line.num_improved / ranked : null,
  };
  let begun = 0;
  const parts = Array.from(decision.drawn, (count, i) => {
    const rows = decision.in_part[i];
    const part = {
      from: begun / ranked,
      to: (begun + rows) / ranked,
      drawn: count,
      rows,
      label: `${percent(begun / ranked)} ${DASH} ${percent((begun + rows) / ranked)}`,
    };
    const common = marks.window ? Math.min(part.to, marks.window.to) - Math.max(part.from, marks.window.from) : 0;
    part.inside = common > 0.25 * (part.to - part.from);
    begun += rows;
    return part;
  });
  const curve = make(
    "div",
    {},
    make("h4", {}, say(`curve ${decision.ranking}`)),
    chart((width) => curveSpec(width, points, marks, decision.ranking), say(`curve ${decision.ranking}`)),
    chart((width) => drawnSpec(width, parts), say("axis drawn")),
    caption(marks.window ? "curve caption window" : "curve caption"),
  );
  return make(
    "div",
    { class: "decision" },
    make("p", { class: "method" }, decisionLine(line)),
    make("div", { class: "pair" }, curve, densityFigure(decision)),
  );
}

function decisionLine(line) {
  const parts = [
    `${say("steps")} ${steps(line.start, line.stop)}`,
    sayKind(line.decision),
    say("num samples", { num: whole(line.num_rows) }),
  ];
  if (isNumber(line.num_improved))
    parts.push(say("num improved", { num: whole(line.num_improved), all: whole(line.num_scored) }));
  if (isNumber(line.num_from_window)) parts.push(say("num inside", { num: whole(line.num_from_window) }));
  if (isNumber(line.rank_correlation))
    parts.push(say("losses estimated", { rho: fixed(line.rank_correlation, 2) }));
  if (isNumber(line.window_hit)) parts.push(say("expected inside", { share: percent(line.window_hit) }));
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
    cells.push({
      x,
      x2: x + unit,
      y,
      y2: y + unit,
      count,
      weight: Math.sqrt(count / top),
      first: range(x),
      current: range(y),
    });
  });
  return make(
    "div",
    {},
    make("h4", {}, say("density title")),
    chart((width) => densitySpec(width, cells, low, high), say("density title")),
    caption("density caption"),
  );
}
