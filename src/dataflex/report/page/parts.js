// The section on mixture, weights and order, for one run.

function partsPanel(run) {
  const parts = run.parts;
  if (!parts) return empty("no parts", { method: run.method ?? DASH });
  const named = parts.components.map((part) =>
    make(
      "li",
      {},
      make("b", {}, `${say(`decides ${part.decides}`)}: ${part.method}`),
      part.params ? make("span", { class: "params" }, ` (${part.params})`) : null,
    ),
  );
  const pictures = [mixtureFigure(parts), domainLossFigure(parts), weightFigure(parts)].filter(Boolean);
  return make("div", {}, make("ul", { class: "components" }, ...named), ...pictures);
}

// Points of one curve a domain: a value for each span of steps.
const spans = (lines, names, valuesOf) =>
  lines.flatMap((line) =>
    valuesOf(line).flatMap((value, d) =>
      isNumber(value)
        ? [{ start: line.start, stop: line.stop, steps: steps(line.start, line.stop), name: names[d], value, d, line }]
        : [],
    ),
  );

function mixtureFigure(parts) {
  if (!parts.mix.length) return null;
  const points = spans(parts.mix, parts.domains, (line) => line.proportions).map((point) => ({
    ...point,
    decision: sayKind(point.line.decision),
    rows: point.line.counts[point.d],
    all: sum(point.line.counts.filter(isNumber)),
    line: undefined,
  }));
  const options = { title: say("axis proportion"), format: ".0%", domain: [0, Math.max(...points.map((p) => p.value))] };
  const tips = [
    tip(say("decision"), "decision"),
    tip(say("proportion"), "value", ".2%"),
    tip(say("rows"), "rows", ",.0f"),
  ];
  return figure("mixture title", (width) => spansSpec(width, points, parts.domains, options, tips), omitted(parts));
}

function domainLossFigure(parts) {
  const points = spans(parts.trained, parts.domains, (line) => line.losses).map((p) => ({ ...p, line: undefined }));
  if (!points.length) return null;
  const options = { title: say("axis loss"), format: ".2f" };
  const tips = [tip(say("loss"), "value", ".4f")];
  return figure("domain loss title", (width) => spansSpec(width, points, parts.domains, options, tips), null);
}

function weightFigure(parts) {
  const bands = parts.trained.filter((line) => line.weights && isNumber(line.weights.mean));
  if (!bands.length) return null;
  const points = bands.map((line) => ({
    start: line.start,
    stop: line.stop,
    steps: steps(line.start, line.stop),
    low: line.weights.min,
    high: line.weights.max,
    mean: line.weights.mean,
    effective: line.weights.effective_share,
    zero: line.weights.zero_share,
  }));
  return figure("weights title", (width) => weightsSpec(width, points), caption("weights caption"));
}

const omitted = (parts) =>
  parts.num_domains > parts.domains.length
    ? caption("domains shown", { shown: whole(parts.domains.length), all: whole(parts.num_domains) })
    : null;

const figure = (title, build, below) => make("div", {}, make("h4", {}, say(title)), chart(build, say(title)), below);

const spanX = (width) => ({
  x: { field: "start", ...x(say("axis step"), { scale: { nice: false, zero: false }, axis: stepAxis(width) }) },
  x2: { field: "stop" },
});

function spansSpec(width, points, names, { title, format, domain }, tips) {
  const y = x(title, { scale: domain ? { domain } : { zero: false }, axis: { format, tickCount: 5 } });
  const color = {
    field: "name",
    type: "nominal",
    title: null,
    scale: { domain: names, range: names.map((_, i) => SERIES[i % SERIES.length]) },
    legend: { symbolType: "stroke", symbolStrokeWidth: 3, columns: Math.max(1, Math.floor(width / 150)) },
  };
  const tooltip = [tip("", "name"), tip(say("steps"), "steps"), ...tips];
  return {
    width,
    height: 200,
    data: { values: points },
    mark: { type: "rule", strokeWidth: 3, strokeCap: "butt" },
    encoding: { ...spanX(width), y: { field: "value", ...y }, color, tooltip },
  };
}

function weightsSpec(width, points) {
  const y = x(say("axis weight"), { axis: { format: ".2f", tickCount: 5 } });
  const tooltip = [
    tip(say("steps"), "steps"),
    tip(say("mean weight"), "mean", ".4f"),
    tip(say("smallest"), "low", ".4f"),
    tip(say("largest"), "high", ".4f"),
    tip(say("effective share"), "effective", ".1%"),
    tip(say("zero share"), "zero", ".1%"),
  ];
  return {
    width,
    height: 150,
    data: { values: points },
    layer: [
      {
        mark: { type: "rect", color: BLUE, opacity: 0.25, stroke: "var(--paper)" },
        encoding: { ...spanX(width), y: { field: "low", ...y }, y2: { field: "high" }, tooltip },
      },
      {
        mark: { type: "rule", color: INK, strokeWidth: 2 },
        encoding: { ...spanX(width), y: { field: "mean", ...y }, tooltip },
      },
    ],
  };
}
