// The summary of a run: where it stands, what it cost, what stands out, what went otherwise than usual.

function summaryPanel(run, pool) {
  const facts = run.summary;
  const tiles = [
    tile(
      standing(run),
      say("tile steps"),
      whole(reached(run)),
      run.planned_steps ? say("of steps", { all: whole(run.planned_steps) }) : "",
    ),
    tile(
      "",
      say("tile samples"),
      whole(facts.num_trained),
      say("of them guided", { guided: whole(facts.num_guided_trained) }),
    ),
    tile(
      "",
      say("tile distinct"),
      whole(facts.num_distinct),
      say("of pool", {
        all: whole(facts.num_rows),
        share: percent(facts.num_rows ? facts.num_distinct / facts.num_rows : NaN),
      }),
    ),
    tile(
      "",
      say("tile choosing"),
      percent(facts.share_of_run),
      say("choosing seconds", { time: duration(facts.choosing_seconds) }),
    ),
    facts.num_passes
      ? tile(
          "",
          say("tile scoring"),
          whole(facts.scored_tokens),
          say("scoring speed", {
            passes: whole(facts.num_passes),
            speed: whole(facts.scored_tokens / facts.scoring_seconds),
          }),
        )
      : tile("", say("tile scoring"), "0", say("no passes")),
  ];
  const method = make(
    "p",
    { class: "method" },
    make("b", {}, String(run.method ?? DASH)),
    ` · ${say("batch", { batch: whole(run.global_batch) })} · ${say("seed", { seed: run.seed ?? DASH })} · ${say("written", { when: moment(run.written) })}`,
  );
  return make("div", {}, method, make("div", { class: "tiles" }, ...tiles), findings(run, pool), problems(run));
}

function tile(badge, title, value, detail) {
  return make(
    "div",
    { class: "tile" },
    make("span", {}, title, badge ? make("em", { class: "badge" }, badge) : null),
    make("b", {}, value),
    make("small", {}, detail),
  );
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
    const clear = rated.groups.filter((group) => group.z >= CLEAR).slice(0, 4);
    const list = clear
      .map((group) => say("finding item", { label: group.label, times: fixed(group.ratio, group.ratio < 1.5 ? 2 : 1) }))
      .join(say("comma"));
    sentences.push(
      clear.length
        ? say("finding preferred", { column: groups.column, list })
        : say("finding none", { column: groups.column }),
    );
  });
  const guided = inForce(run).filter((line) => line.guided && isNumber(line.num_from_window));
  if (guided.length) {
    sentences.push(
      say("finding window", {
        share: percent(sum(guided.map((line) => line.num_from_window)) / sum(guided.map((line) => line.num_rows))),
      }),
    );
    const moved = guided.filter((line) => line.window_state && line.window_state !== "planned").length;
    sentences.push(
      moved
        ? say("finding moved", { moved: whole(moved), all: whole(guided.length) })
        : say("finding unmoved", { all: whole(guided.length) }),
    );
  }
  return sentences.length
    ? make("ul", { class: "findings" }, ...sentences.map((sentence) => make("li", {}, sentence)))
    : null;
}

function problems(run) {
  const items = run.problems.map((problem) => say("problem", { problem }));
  if (!isNumber(run.end_step)) items.push(say("problem open", { step: whole(run.summary.recorded_steps) }));
  for (const line of run.lines) {
    if (line.kind === "rollback")
      items.push(say("problem rollback", { segment: line.from_segment, reason: line.reason ?? "" }));
    if (line.kind === "segment" && line.in_force)
      for (const warning of line.warnings ?? [])
        items.push(say("problem warning", { steps: steps(line.start, line.stop), warning }));
  }
  if (!items.length) return null;
  const shown = items.slice(0, 4).map((item) => make("li", {}, item));
  const rest = items.slice(4).map((item) => make("li", {}, item));
  const more = rest.length
    ? make("details", {}, make("summary", {}, say("more", { num: whole(rest.length) })), make("ul", {}, ...rest))
    : null;
  return make("div", { class: "notes" }, make("h4", {}, say("worth knowing")), make("ul", {}, ...shown), more);
}
