// What each picture is, as Vega-Lite. Colours are names of the style sheet, so that theme and print need no redrawing.

const INK = "var(--ink)";
const MUTED = "var(--muted)";
const LINE = "var(--line)";
const BLUE = "var(--blue)";
const ORANGE = "var(--orange)";
const GREY = "var(--grey)";
const SERIES = ["var(--blue)", "var(--orange)", "var(--green)", "var(--purple)", "var(--yellow)", "var(--sky)"];
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif';

const CONFIG = {
  background: null,
  font: FONT,
  view: { stroke: null },
  axis: {
    labelColor: MUTED, titleColor: MUTED, domainColor: LINE, tickColor: LINE, gridColor: LINE, gridOpacity: 0.7,
    labelFontSize: 11, titleFontSize: 11.5, titleFontWeight: 400, titlePadding: 8, labelPadding: 5, tickSize: 4,
  },
  axisX: { grid: false },
  axisY: { domain: false, ticks: false },
  legend: { labelColor: MUTED, titleColor: MUTED, labelFontSize: 11.5, titleFontWeight: 400, orient: "top", symbolType: "square" },
  text: { color: INK, font: FONT, fontSize: 11 },
};

// Steps are whole numbers, and a label needs some room.
const stepAxis = (width) => ({ format: ",d", tickMinStep: 1, tickCount: Math.max(3, Math.floor(width / 80)) });
const tip = (title, field, format) => ({ title, field, type: "nominal", ...(format ? { type: "quantitative", format } : {}) });
const x = (title, extra = {}) => ({ type: "quantitative", title, ...extra });

function lossSpec(width, points, segments) {
  const names = [...new Set(points.map((point) => point.series))];
  const domain = [...new Set(segments.map((segment) => segment.kind))];
  const range = names.length > 2 ? SERIES : [INK, ORANGE];
  const shades = { [say("shade warm-up")]: GREY, [say("shade unguided")]: "var(--yellow)", [say("shade guided")]: BLUE };
  const losses = points.map((point) => point.loss);
  const low = Math.min(...losses);
  const room = (Math.max(...losses) - low) * 0.06 || 0.1;
  const y = x(say("axis loss"), { scale: { domain: [low - room, Math.max(...losses) + room], nice: false } });
  const from = { field: "start", ...x(say("axis step"), { scale: { nice: false, zero: false }, axis: stepAxis(width) }) };
  return {
    width, height: 260,
    resolve: { scale: { color: "independent" } },
    layer: [
      {
        data: { values: segments }, mark: { type: "rect", opacity: 0.11 },
        encoding: {
          x: from, x2: { field: "stop" },
          color: { field: "kind", type: "nominal", title: null, scale: { domain, range: domain.map((kind) => shades[kind]) }, legend: { symbolOpacity: 0.45, symbolStrokeWidth: 0 } },
          tooltip: [tip(say("segment"), "segment"), tip(say("steps"), "steps"), tip(say("decision"), "decision"), tip(say("samples"), "samples")],
        },
      },
      { data: { values: segments }, mark: { type: "rule", color: LINE }, encoding: { x: { field: "start", type: "quantitative" } } },
      {
        data: { values: points }, mark: { type: "line", strokeWidth: 2, point: points.length < 80 * names.length ? { size: 28 } : false },
        encoding: {
          x: { field: "step", type: "quantitative" },
          y: { field: "loss", ...y },
          color: { field: "series", type: "nominal", title: null, scale: { domain: names, range }, legend: { symbolType: "stroke", symbolStrokeWidth: 2.5 } },
          strokeDash: { field: "kind", type: "nominal", legend: null, scale: { domain: ["train", "eval"], range: [[1, 0], [5, 3]] } },
          tooltip: [tip(say("axis step"), "step", ",.0f"), tip("", "series"), tip(say("loss"), "loss", ".4f")],
        },
      },
    ],
  };
}

function preferredSpec(width, groups) {
  const y = { field: "label", type: "nominal", sort: groups.map((group) => group.label), title: null, axis: { labelLimit: 190, grid: true, labelColor: INK, labelPadding: 12 } };
  const tooltip = [
    tip("", "label"), tip(say("guided draws"), "drawn", ",.0f"), tip(say("expected draws"), "expected", ",.1f"),
    tip(say("share of draws"), "share", ".1%"), tip(say("share of pool"), "base", ".1%"), tip(say("standard deviations"), "z", "+.1f"),
  ];
  const ratios = groups.map((group) => group.ratio);
  const [least, most] = [Math.min(1, ...ratios), Math.max(1, ...ratios)];
  const start = least < 0.5 ? 0 : least - 0.01; // labels of the greatest ratio need about 110 pixels on the right
  const ratio = x(say("axis ratio"), { scale: { domain: [start, start + (most - start) / (1 - Math.min(0.5, 110 / (width - 190)))], nice: false }, axis: { labelExpr: "'×' + datum.label", grid: true, tickCount: 6 } });
  const opacity = { field: "opacity", type: "quantitative", legend: null, scale: null };
  return {
    width, height: 21 * groups.length, data: { values: groups },
    encoding: { y },
    layer: [
      { mark: { type: "rule", strokeWidth: 3, strokeOpacity: 0.5 }, encoding: { opacity, x: { field: "one", ...ratio }, x2: { field: "ratio" }, color: { field: "side", type: "nominal", legend: null, scale: { domain: ["more", "less"], range: [BLUE, ORANGE] } }, tooltip } },
      { data: { values: [{ one: 1 }] }, mark: { type: "rule", color: GREY, strokeWidth: 1.5 }, encoding: { y: null, x: { field: "one", type: "quantitative" } } },
      { mark: { type: "point", filled: true, size: 90 }, encoding: { opacity, x: { field: "ratio", type: "quantitative" }, color: { field: "side", type: "nominal", legend: null, scale: { domain: ["more", "less"], range: [BLUE, ORANGE] } }, tooltip } },
      { mark: { type: "text", align: "left", dx: 9, fontSize: 10.5 }, encoding: { x: { field: "right", type: "quantitative" }, text: { field: "shares", type: "nominal" } } },
    ],
  };
}

function heatSpec(width, cells, labels, periods) {
  const tooltip = [
    tip("", "label"), tip(say("steps"), "steps"), tip(say("decision"), "decision"), tip(say("draws"), "drawn", ",.0f"),
    tip(say("expected draws"), "expected", ",.1f"), tip(say("share of draws"), "share", ".1%"), tip(say("share of pool"), "base", ".1%"),
  ];
  const encoding = {
    x: { field: "period", type: "ordinal", sort: periods, title: say("axis steps"), axis: { labelAngle: periods.length > 8 ? -45 : 0, labelOverlap: true, domain: false, ticks: false, labelExpr: "split(datum.label, '|')" } },
    y: { field: "label", type: "nominal", sort: labels, title: null, axis: { labelLimit: 190, labelColor: INK } },
  };
  const colour = { field: "side", type: "nominal", legend: null, scale: { domain: ["more", "less"], range: [BLUE, ORANGE] } };
  const layer = [{
    mark: { type: "rect", stroke: "var(--paper)", strokeWidth: 1.5 },
    encoding: { ...encoding, color: colour, opacity: { field: "weight", type: "quantitative", legend: null, scale: { domain: [0, 1], range: [0.03, 0.72] } }, tooltip },
  }];
  if (periods.length <= 16) layer.push({ mark: { type: "text", fontSize: 10.5, aria: false }, encoding: { ...encoding, text: { field: "drawn", type: "quantitative" } } });
  return { width, height: 20 * labels.length, data: { values: cells }, layer };
}

function windowsSpec(width, windows, lastStep) {
  const y = { type: "quantitative", title: say("axis ranking share"), scale: { domain: [0, 1], reverse: true }, axis: { format: ".0%", tickCount: 5 } };
  const tooltip = [
    tip(say("segment"), "segment"), tip(say("steps"), "steps"), tip(say("window"), "window"), tip(say("planned window"), "planned"),
    tip(say("improved"), "improved", ".1%"), tip(say("drawn inside"), "inside", ".0%"), tip(say("state"), "state"),
  ];
  const span = { x: { field: "start", ...x(say("axis step"), { scale: { domain: [0, lastStep], nice: false }, axis: stepAxis(width) }) }, x2: { field: "stop" } };
  return {
    width, height: 230, data: { values: windows },
    layer: [
      { transform: [{ filter: "isValid(datum.plan_start)" }], mark: { type: "rect", fillOpacity: 0, stroke: GREY, strokeDash: [3, 3], strokeWidth: 1.2 }, encoding: { ...span, y: { field: "plan_start", ...y }, y2: { field: "plan_end" } } },
      { mark: { type: "rect", color: BLUE, opacity: 0.65, stroke: "var(--paper)", strokeWidth: 1 }, encoding: { ...span, y: { field: "from", ...y }, y2: { field: "to" }, tooltip } },
      { transform: [{ filter: "isValid(datum.improved)" }], mark: { type: "rule", color: ORANGE, strokeWidth: 2.5 }, encoding: { ...span, y: { field: "improved", ...y }, tooltip } },
    ],
  };
}

// Marks: {window: [a, b], planned: [a, b], cut} in shares of the ranking; each may be missing.
function curveSpec(width, points, marks, ranking) {
  const scale = { domain: [0, 1] };
  const share = x(null, { scale, axis: { format: ".0%", labels: false, ticks: false } });
  const layer = [];
  if (marks.planned) layer.push({ data: { values: [marks.planned] }, mark: { type: "rect", fillOpacity: 0, stroke: GREY, strokeDash: [4, 3], strokeWidth: 1.2 }, encoding: { x: { field: "from", ...share }, x2: { field: "to" }, tooltip: [tip(say("planned window"), "label")] } });
  if (marks.window) layer.push({ data: { values: [marks.window] }, mark: { type: "rect", color: BLUE, opacity: 0.17 }, encoding: { x: { field: "from", ...share }, x2: { field: "to" }, tooltip: [tip(say("window"), "label")] } });
  if (ranking === "delta") layer.push({ data: { values: [{ zero: 0 }] }, mark: { type: "rule", color: MUTED, strokeWidth: 1 }, encoding: { y: { field: "zero", type: "quantitative" } } });
  layer.push({
    data: { values: points }, mark: { type: "line", color: INK, strokeWidth: 2, interpolate: "monotone" },
    encoding: { x: { field: "at", ...share }, y: { field: "value", ...x(say(`axis ${ranking}`), { scale: { zero: false } }) } },
  });
  layer.push({
    data: { values: points }, mark: { type: "rule", opacity: 0, strokeWidth: Math.max(4, width / points.length) },
    encoding: { x: { field: "at", type: "quantitative" }, tooltip: [tip(say("rank"), "rank", ",.0f"), tip(say("share of ranking"), "at", ".1%"), tip(say(`value ${ranking}`), "value", "+.4f")] },
  });
  if (marks.cut !== null) layer.push({ data: { values: [{ cut: marks.cut }] }, mark: { type: "rule", color: ORANGE, strokeWidth: 2, strokeDash: [6, 3] }, encoding: { x: { field: "cut", type: "quantitative" } } });
  const labels = [];
  const apart = marks.planned && marks.window ? Math.abs(marks.planned.from + marks.planned.to - marks.window.from - marks.window.to) / 2 : 1;
  if (marks.planned && apart > 0.14) layer.push({ data: { values: [{ at: (marks.planned.from + marks.planned.to) / 2 }] }, mark: { type: "text", baseline: "top", dy: 4, color: MUTED, text: say("planned window"), aria: false }, encoding: { x: { field: "at", type: "quantitative" }, y: { value: 0 } } });
  if (marks.window) labels.push({ at: (marks.window.from + marks.window.to) / 2, text: say("window") });
  if (labels.length) layer.push({ data: { values: labels }, mark: { type: "text", baseline: "top", dy: 4, color: BLUE, fontWeight: 600, aria: false }, encoding: { x: { field: "at", type: "quantitative" }, y: { value: 0 }, text: { field: "text" } } });
  if (marks.cut !== null) {
    const align = marks.cut > 0.6 ? "right" : "left";
    layer.push({ data: { values: [{ at: marks.cut, text: say("last improved", { share: percent(marks.cut) }) }] }, mark: { type: "text", align, dx: align === "left" ? 6 : -6, baseline: "bottom", dy: -4, color: ORANGE, fontWeight: 600, aria: false }, encoding: { x: { field: "at", type: "quantitative" }, y: { value: "height" }, text: { field: "text" } } });
  }
  return { width, height: 250, config: { axisY: { minExtent: 46, maxExtent: 46 } }, layer };
}

function drawnSpec(width, parts) {
  return {
    width, height: 74, data: { values: parts }, config: { axisY: { minExtent: 46, maxExtent: 46 } },
    mark: { type: "rect", stroke: "var(--paper)", strokeWidth: 1 },
    encoding: {
      x: { field: "from", ...x(say("axis ranking"), { scale: { domain: [0, 1] }, axis: { format: ".0%" } }) }, x2: { field: "to" },
      y: { field: "drawn", ...x(say("axis drawn"), { axis: { tickCount: 3, tickMinStep: 1, format: ",d" } }) }, y2: { datum: 0 },
      color: { field: "inside", type: "nominal", legend: null, scale: { domain: [true, false], range: [BLUE, GREY] } },
      tooltip: [tip(say("share of ranking"), "label"), tip(say("draws"), "drawn", ",.0f"), tip(say("rows there"), "rows", ",.0f")],
    },
  };
}

function densitySpec(width, cells, low, high) {
  const scale = { domain: [low, high], nice: false, zero: false };
  return {
    width, height: Math.min(width, 330),
    layer: [
      {
        data: { values: cells }, mark: { type: "rect", color: BLUE },
        encoding: {
          x: { field: "x", ...x(say("axis first loss"), { scale, axis: { tickCount: 7 } }) }, x2: { field: "x2" },
          y: { field: "y", ...x(say("axis current loss"), { scale, axis: { tickCount: 7 } }) }, y2: { field: "y2" },
          opacity: { field: "weight", type: "quantitative", legend: null, scale: { domain: [0, 1], range: [0.12, 1] } },
          tooltip: [tip(say("first loss"), "first"), tip(say("current loss"), "current"), tip(say("rows"), "count", ",.0f")],
        },
      },
      { data: { values: [{ v: low }, { v: high }] }, mark: { type: "line", color: ORANGE, strokeDash: [6, 3], strokeWidth: 1.5 }, encoding: { x: { field: "v", type: "quantitative" }, y: { field: "v", type: "quantitative" } } },
    ],
  };
}

function timesSpec(width, bars) {
  const encoding = {
    x: { field: "times", type: "ordinal", sort: bars.map((bar) => bar.times), title: say("axis times"), axis: { labelAngle: 0, labelOverlap: true, ticks: false } },
    y: { field: "rows", ...x(say("axis rows"), { axis: { format: "~s", tickCount: 4 } }) },
    tooltip: [tip(say("axis times"), "times"), tip(say("rows"), "rows", ",.0f"), tip(say("share of pool"), "share", ".1%")],
  };
  const layer = [{ mark: { type: "bar", color: BLUE, opacity: 0.85, cornerRadiusEnd: 2 }, encoding }];
  if (bars.length <= 14) layer.push({ mark: { type: "text", dy: -8, fontSize: 11, color: MUTED, aria: false }, encoding: { ...encoding, text: { field: "text", type: "nominal" } } });
  return { width: Math.min(width, Math.max(180, bars.length * 64)), height: 200, data: { values: bars }, layer };
}

function costSpec(width, bars) {
  const domain = [say("scoring the pool"), say("the rest")];
  return {
    width, height: 200, data: { values: bars }, mark: { type: "rect", opacity: 0.85 },
    encoding: {
      x: { field: "start", ...x(say("axis step"), { axis: stepAxis(width), scale: { nice: false, zero: false } }) }, x2: { field: "stop" },
      y: { field: "from", ...x(say("axis seconds"), { axis: { tickCount: 4 } }) }, y2: { field: "to" },
      color: { field: "part", type: "nominal", title: null, scale: { domain, range: [BLUE, GREY] } },
      tooltip: [tip(say("segment"), "segment"), tip(say("steps"), "steps"), tip("", "part"), tip(say("axis seconds"), "seconds", ",.2f")],
    },
  };
}
