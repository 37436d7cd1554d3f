// What each picture is, as Vega-Lite. Colours are names of the style sheet, so that theme and print need no redrawing.

const INK = "var(--ink)";
const MUTED = "var(--muted)";
const LINE = "var(--line)";
const BLUE = "var(--blue)";
const ORANGE = "var(--orange)";
const GREY = "var(--grey)";
const SERIES = ["var(--blue)", "var(--orange)", "var(--green)", "var(--purple)", "var(--yellow)", "var(--sky)"];
const FONT =
  'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif';

const CONFIG = {
  background: null,
  font: FONT,
  view: { stroke: null },
  axis: {
    labelColor: MUTED,
    titleColor: MUTED,
    domainColor: LINE,
    tickColor: LINE,
    gridColor: LINE,
    gridOpacity: 0.7,
    labelFontSize: 11,
    titleFontSize: 11.5,
    titleFontWeight: 400,
    titlePadding: 8,
    labelPadding: 5,
    tickSize: 4,
  },
  axisX: { grid: false },
  axisY: { domain: false, ticks: false },
  legend: {
    labelColor: MUTED,
    titleColor: MUTED,
    labelFontSize: 11.5,
    titleFontWeight: 400,
    orient: "top",
    symbolType: "square",
  },
  text: { color: INK, font: FONT, fontSize: 11 },
};

// Steps are whole numbers, and a label needs some room.
const stepAxis = (width) => ({ format: ",d", tickMinStep: 1, tickCount: Math.max(3, Math.floor(width / 80)) });
const tip = (title, field, format) => ({
  title,
  field,
  type: "nominal",
  ...(format ? { type: "quantitative", format } : {}),
});
const x = (title, extra = {}) => ({ type: "quantitative", title, ...extra });

function lossSpec(width, points, segments) {
  const names = [...new Set(points.map((point) => point.series))];
  const domain = [...new Set(segments.map((segment) => segment.kind))];
  const range = names.length > 2 ? SERIES : [INK, ORANGE];
  const shades = {
    [say("shade warm-up")]: GREY,
    [say("shade unguided")]: "var(--yellow)",
    [say("shade guided")]: BLUE,
  };
  const losses = points.map((point) => point.loss);
  const low = Math.min(...losses);
  const room = (Math.max(...losses) - low) * 0.06 || 0.1;
  const y = x(say("axis loss"), { scale: { domain: [low - room, Math.max(...losses) + room], nice: false } });
  const from = {
    field: "start",
    ...x(say("axis step"), { scale: { nice: false, zero: false }, axis: stepAxis(width) }),
  };
  return {
    width,
    height: 260,
    resolve: { scale: { color: "independent" } },
    layer: [
      {
        data: { values: segments },
        mark: { type: "rect", opacity: 0.11 },
        encoding: {
          x: from,
          x2: { field: "stop" },
          color: {
            field: "kind",
            type: "nominal",
            title: null,
            scale: { domain, range: domain.map((kind) => shades[kind]) },
            legend: { symbolOpacity: 0.45, symbolStrokeWidth: 0 },
          },
          tooltip: [
            tip(say("segment"), "segment"),
            tip(say("steps"), "steps"),
            tip(say("decision"), "decision"),
            tip(say("samples"), "samples"),
          ],
        },
      },
      {
        data: { values: segments },
        mark: { type: "rule", color: LINE },
        encoding: { x: { field: "start", type: "quantitative" } },
      },
      {
        data: { values: points },
        mark: { type: "line", strokeWidth: 2, point: points.length < 80 * names.length ? { size: 28 } : false },
        encoding: {
          x: { field: "step", type: "quantitative" },
          y: { field: "loss", ...y },
          color: {
            field: "series",
            type: "nominal",
            title: null,
            scale: { domain: names, range },
            legend: { symbolType: "stroke", symbolStrokeWidth: 2.5 },
          },
          strokeDash: {
            field: "kind",
            type: "nominal",
            legend: null,
            scale: {
              domain: ["train", "eval"],
              range: [
                [1, 0],
                [5, 3],
              ],
            },
          },
          tooltip: [tip(say("axis step"), "step", ",.0f"), tip("", "series"), tip(say("loss"), "loss", ".4f")],
        },
      },
    ],
  };
}

function preferredSpec(width, groups) {
  const y = {
    field: "label",
    type: "nominal",
    sort: groups.map((group) => group.label),
    title: null,
    axis: { labelLimit: 190, grid: true, labelColor: INK, labelPadding: 12 },
  };
  const tooltip = [
    tip("", "label"),
    tip(say("guided draws"), "drawn", ",.0f"),
    tip(say("expected draws"), "expected", ",.1f"),
    tip(say("share of draws"), "share", ".1%"),
    tip(say("share of pool"), "base", ".1%"),
    tip(say("standard deviations"), "z", "+.1f"),
  ];
  const ratios = groups.map((group) => group.ratio);
  const [least, most] = [Math.min(1, ...ratios), Math.max(1, ...ratios)];
  const start = least < 0.5 ? 0 : least - 0.01; // labels of the greatest ratio need about 110 pixels on the right
  const ratio = x(say("axis ratio"), {
    scale: { domain: [start, start + (most - start) / (1 - Math.min(0.5, 110 / (width - 190)))], nice: false },
    axis: { labelExpr: "'×' + datum.label", grid: true, tickCount: 6 },
  });
  const opacity = { field: "opacity", type: "quantitative", legend: null, scale: null };
  return {
    width,
    height: 21 * groups.length,
    data: { values: groups },
    encoding: { y },
    layer: [
      {
        mark: { type: "rule", strokeWidth: 3, strokeOpacity: 0.5 },
        encoding: {
          opacity,
          x: { field: "one", ...ratio },
          x2: { field: "ratio" },
          color: {
            field: "side",
            type: "nominal",
            legend: null,
            scale: { domain: ["more", "less"], range: [BLUE, ORANGE] },
          },
          tooltip,
        },
      },
      {
        data: { values: [{ one: 1 }] },
        mark: { type: "rule", color: GREY, strokeWidth: 1.5 },
        encoding: { y: null, x: { field: "one", type: "quantitative" } },
      },
      {
        mark: { type: "point", filled: true, size: 90 },
        encoding: {
          opacity,
          x: { field: "ratio", type: "quantitative" },
          color: {
            field: "side",
            type: "nominal",
            legend: null,
            scale: { domain: ["more", "less"], range: [BLUE, ORANGE] },
          },
          tooltip,
        },
      },
      {
        mark: { type: "text", align: "left", dx: 9, fontSize: 10.5 },
        encoding: { x: { field: "right", type: "quantitative" }, text: { field: "shares", type: "nominal" } },
      },
    ],
  };
}

function heatSpec(width, cells, labels, periods) {
  const tooltip = [
    tip("", "label"),
    tip(say("steps"), "steps"),
    tip(say("decision"), "decision"),
    tip(say("draws"), "drawn", ",.0f"),
    tip(say("expected draws"), "expected", ",.1f"),
    tip(say("share of draws"), "share", ".1%"),
    tip(say("share of pool"), "base", ".1%"),
  ];
  const encoding = {
    x: {
      field: "period",
      type: "ordinal",
      sort: periods,
      title: say("axis steps"),
      axis: {
        labelAngle: periods.length > 8 ? -45 : 0,
        labelOverlap: true,
        domain: false,
        ticks: false,
        labelExpr: "split(datum.label, '|')",
      },
    },
    y: { field: "label", type: "nominal", sort: labels, title: null, axis: { labelLimit: 190, labelColor: INK } },
  };
  const colour = {
    field: "side",
    type: "nominal",
    legend: null,
    scale: { domain: ["more", "less"], range: [BLUE, ORANGE] },
  };
  const layer = [
    {
      mark: { type: "rect", stroke: "var(--paper)", strokeWidth: 1.5 },
      encoding: {
        ...encoding,
        color: colour,
        opacity: {
          field: "weight",
          type: "quantitative",
          legend: null,
          scale: { domain: [0, 1], range: [0.03, 0.72] },
        },
        tooltip,
      },
    },
  ];
  if (periods.length <= 16)
    layer.push({
      mark: { type: "text", fontSize: 10.5, aria: false },
      encoding: { ...encoding, text: { field: "drawn", type: "quantitative" } },
    });
  return { width, height: 20 * labels.length, data: { values: cells }, layer };
}

function timesSpec(width, bars) {
  const encoding = {
    x: {
      field: "times",
      type: "ordinal",
      sort: bars.map((bar) => bar.times),
      title: say("axis times"),
      axis: { labelAngle: 0, labelOverlap: true, ticks: false },
    },
    y: { field: "rows", ...x(say("axis rows"), { axis: { format: "~s", tickCount: 4 } }) },
    tooltip: [
      tip(say("axis times"), "times"),
      tip(say("rows"), "rows", ",.0f"),
      tip(say("share of pool"), "share", ".1%"),
    ],
  };
  const layer = [{ mark: { type: "bar", color: BLUE, opacity: 0.85, cornerRadiusEnd: 2 }, encoding }];
  if (bars.length <= 14)
    layer.push({
      mark: { type: "text", dy: -8, fontSize: 11, color: MUTED, aria: false },
      encoding: { ...encoding, text: { field: "text", type: "nominal" } },
    });
  return { width: Math.min(width, Math.max(180, bars.length * 64)), height: 200, data: { values: bars }, layer };
}

function costSpec(width, bars) {
  const domain = [say("scoring the pool"), say("the rest")];
  return {
    width,
    height: 200,
    data: { values: bars },
    mark: { type: "rect", opacity: 0.85 },
    encoding: {
      x: { field: "start", ...x(say("axis step"), { axis: stepAxis(width), scale: { nice: false, zero: false } }) },
      x2: { field: "stop" },
      y: { field: "from", ...x(say("axis seconds"), { axis: { tickCount: 4 } }) },
      y2: { field: "to" },
      color: { field: "part", type: "nominal", title: null, scale: { domain, range: [BLUE, GREY] } },
      tooltip: [
        tip(say("segment"), "segment"),
        tip(say("steps"), "steps"),
        tip("", "part"),
        tip(say("axis seconds"), "seconds", ",.2f"),
      ],
    },
  };
}
