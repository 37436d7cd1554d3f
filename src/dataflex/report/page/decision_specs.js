// The pictures of decisions, as Vega-Lite: windows over the run, one ranking, where draws fell, losses then and now.

function windowsSpec(width, windows, lastStep) {
  const y = {
    type: "quantitative",
    title: say("axis ranking share"),
    scale: { domain: [0, 1], reverse: true },
    axis: { format: ".0%", tickCount: 5 },
  };
  const tooltip = [
    tip(say("segment"), "segment"),
    tip(say("steps"), "steps"),
    tip(say("window"), "window"),
    tip(say("planned window"), "planned"),
    tip(say("improved"), "improved", ".1%"),
    tip(say("drawn inside"), "inside", ".0%"),
    tip(say("state"), "state"),
  ];
  const span = {
    x: {
      field: "start",
      ...x(say("axis step"), { scale: { domain: [0, lastStep], nice: false }, axis: stepAxis(width) }),
    },
    x2: { field: "stop" },
  };
  return {
    width,
    height: 230,
    data: { values: windows },
    layer: [
      {
        transform: [{ filter: "isValid(datum.plan_start)" }],
        mark: { type: "rect", fillOpacity: 0, stroke: GREY, strokeDash: [3, 3], strokeWidth: 1.2 },
        encoding: { ...span, y: { field: "plan_start", ...y }, y2: { field: "plan_end" } },
      },
      {
        mark: { type: "rect", color: BLUE, opacity: 0.65, stroke: "var(--paper)", strokeWidth: 1 },
        encoding: { ...span, y: { field: "from", ...y }, y2: { field: "to" }, tooltip },
      },
      {
        transform: [{ filter: "isValid(datum.improved)" }],
        mark: { type: "rule", color: ORANGE, strokeWidth: 2.5 },
        encoding: { ...span, y: { field: "improved", ...y }, tooltip },
      },
    ],
  };
}

// Marks: {window: [a, b], planned: [a, b], cut} in shares of the ranking; each may be missing.
function curveSpec(width, points, marks, ranking) {
  const scale = { domain: [0, 1] };
  const share = x(null, { scale, axis: { format: ".0%", labels: false, ticks: false } });
  const layer = [];
  if (marks.planned)
    layer.push({
      data: { values: [marks.planned] },
      mark: { type: "rect", fillOpacity: 0, stroke: GREY, strokeDash: [4, 3], strokeWidth: 1.2 },
      encoding: { x: { field: "from", ...share }, x2: { field: "to" }, tooltip: [tip(say("planned window"), "label")] },
    });
  if (marks.window)
    layer.push({
      data: { values: [marks.window] },
      mark: { type: "rect", color: BLUE, opacity: 0.17 },
      encoding: { x: { field: "from", ...share }, x2: { field: "to" }, tooltip: [tip(say("window"), "label")] },
    });
  if (ranking === "delta")
    layer.push({
      data: { values: [{ zero: 0 }] },
      mark: { type: "rule", color: MUTED, strokeWidth: 1 },
      encoding: { y: { field: "zero", type: "quantitative" } },
    });
  layer.push({
    data: { values: points },
    mark: { type: "line", color: INK, strokeWidth: 2, interpolate: "monotone" },
    encoding: {
      x: { field: "at", ...share },
      y: { field: "value", ...x(say(`axis ${ranking}`), { scale: { zero: false } }) },
    },
  });
  layer.push({
    data: { values: points },
    mark: { type: "rule", opacity: 0, strokeWidth: Math.max(4, width / points.length) },
    encoding: {
      x: { field: "at", type: "quantitative" },
      tooltip: [
        tip(say("rank"), "rank", ",.0f"),
        tip(say("share of ranking"), "at", ".1%"),
        tip(say(`value ${ranking}`), "value", "+.4f"),
      ],
    },
  });
  if (marks.cut !== null)
    layer.push({
      data: { values: [{ cut: marks.cut }] },
      mark: { type: "rule", color: ORANGE, strokeWidth: 2, strokeDash: [6, 3] },
      encoding: { x: { field: "cut", type: "quantitative" } },
    });
  const labels = [];
  const apart =
    marks.planned && marks.window
      ? Math.abs(marks.planned.from + marks.planned.to - marks.window.from - marks.window.to) / 2
      : 1;
  if (marks.planned && apart > 0.14)
    layer.push({
      data: { values: [{ at: (marks.planned.from + marks.planned.to) / 2 }] },
      mark: { type: "text", baseline: "top", dy: 4, color: MUTED, text: say("planned window"), aria: false },
      encoding: { x: { field: "at", type: "quantitative" }, y: { value: 0 } },
    });
  if (marks.window) labels.push({ at: (marks.window.from + marks.window.to) / 2, text: say("window") });
  if (labels.length)
    layer.push({
      data: { values: labels },
      mark: { type: "text", baseline: "top", dy: 4, color: BLUE, fontWeight: 600, aria: false },
      encoding: { x: { field: "at", type: "quantitative" }, y: { value: 0 }, text: { field: "text" } },
    });
  if (marks.cut !== null) {
    const align = marks.cut > 0.6 ? "right" : "left";
    layer.push({
      data: { values: [{ at: marks.cut, text: say("last improved", { share: percent(marks.cut) }) }] },
      mark: {
        type: "text",
        align,
        dx: align === "left" ? 6 : -6,
        baseline: "bottom",
        dy: -4,
        color: ORANGE,
        fontWeight: 600,
        aria: false,
      },
      encoding: { x: { field: "at", type: "quantitative" }, y: { value: "height" }, text: { field: "text" } },
    });
  }
  return { width, height: 250, config: { axisY: { minExtent: 46, maxExtent: 46 } }, layer };
}

function drawnSpec(width, parts) {
  return {
    width,
    height: 74,
    data: { values: parts },
    config: { axisY: { minExtent: 46, maxExtent: 46 } },
    mark: { type: "rect", stroke: "var(--paper)", strokeWidth: 1 },
    encoding: {
      x: { field: "from", ...x(say("axis ranking"), { scale: { domain: [0, 1] }, axis: { format: ".0%" } }) },
      x2: { field: "to" },
      y: { field: "drawn", ...x(say("axis drawn"), { axis: { tickCount: 3, tickMinStep: 1, format: ",d" } }) },
      y2: { datum: 0 },
      color: { field: "inside", type: "nominal", legend: null, scale: { domain: [true, false], range: [BLUE, GREY] } },
      tooltip: [
        tip(say("share of ranking"), "label"),
        tip(say("draws"), "drawn", ",.0f"),
        tip(say("rows there"), "rows", ",.0f"),
      ],
    },
  };
}

function densitySpec(width, cells, low, high) {
  const scale = { domain: [low, high], nice: false, zero: false };
  return {
    width,
    height: Math.min(width, 330),
    layer: [
      {
        data: { values: cells },
        mark: { type: "rect", color: BLUE },
        encoding: {
          x: { field: "x", ...x(say("axis first loss"), { scale, axis: { tickCount: 7 } }) },
          x2: { field: "x2" },
          y: { field: "y", ...x(say("axis current loss"), { scale, axis: { tickCount: 7 } }) },
          y2: { field: "y2" },
          opacity: { field: "weight", type: "quantitative", legend: null, scale: { domain: [0, 1], range: [0.12, 1] } },
          tooltip: [
            tip(say("first loss"), "first"),
            tip(say("current loss"), "current"),
            tip(say("rows"), "count", ",.0f"),
          ],
        },
      },
      {
        data: { values: [{ v: low }, { v: high }] },
        mark: { type: "line", color: ORANGE, strokeDash: [6, 3], strokeWidth: 1.5 },
        encoding: { x: { field: "v", type: "quantitative" }, y: { field: "v", type: "quantitative" } },
      },
    ],
  };
}
