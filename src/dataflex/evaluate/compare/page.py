"""The results for people: a table in Markdown, and one HTML page with the curves and the differences drawn."""

from __future__ import annotations

import html as markup
import math
from collections.abc import Mapping
from typing import Any

from dataflex.core.packages import drawing_package
from dataflex.evaluate.compare.results import METRICS, caution

TITLES = {"steps": "Equal steps", "compute": "Equal compute"}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse;margin:1em 0;font-size:14px}th,td{padding:.3em .7em;border-bottom:1px solid #ddd;"
    "text-align:right}td{white-space:nowrap}th:first-child,td:first-child{text-align:left}li{overflow-wrap:anywhere}"
    ".wide{overflow-x:auto}svg{max-width:100%;min-width:600px;height:auto}"  # a narrow window scrolls them alone
)
HELD_OUT_NOTES = {
    "num_trained": "are rows of the pool as well",
    "num_cut": "are cut at cutoff_len, their answers perhaps too",
}
BESIDE = 0.006  # of the run's length
HEADERS = (
    *("method", "steps", "held-out loss", "exact match", "choosing, s", "training, s"),
    *("choosing, FLOPs", "training, FLOPs", "together"),
)


def markdown(content: Mapping[str, Any]) -> str:
    """The whole result as Markdown."""
    parts = ["# Comparison", _opening(content)]
    for budget, section in content["budgets"].items():
        parts += [f"## {TITLES[budget]}", _aim(section), _markdown_table(section)]
        parts += ["\n".join(f"- {sentence}" for sentence in _sentences(content, section))]
    return "\n\n".join([*parts, _closing(content)]) + "\n"


def html(content: Mapping[str, Any]) -> str:
    """The same as a page that needs no network and runs no script: the pictures are drawn already."""
    parts = ["<h1>Comparison</h1>", _paragraph(_opening(content))]
    for budget, section in content["budgets"].items():
        parts += [f"<h2>{TITLES[budget]}</h2>", _paragraph(_aim(section)), _html_table(section)]
        parts += [_wide(_svg(curves(content, section))), _wide(_svg(forest(content, section)))]
        parts += ["<ul>", *(f"<li>{markup.escape(s)}</li>" for s in _sentences(content, section)), "</ul>"]
    body = "\n".join([*parts, _paragraph(_closing(content))])
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>Comparison</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def curves(content: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Vega-Lite: the metric by steps, each method the mean over its seeds; bars are t intervals."""
    from dataflex.evaluate.compare.statistics import t_interval

    metric, values = content["metric"], []
    for method, row in section["methods"].items():
        finished = [run["curve"] for run in row["runs"].values() if "problem" not in run]
        for step in sorted({int(step) for curve in finished for step in curve}):
            interval = t_interval([curve[str(step)][metric] for curve in finished if str(step) in curve])
            half = 0.0 if math.isnan(interval.half_width) else interval.half_width
            low, high = interval.mean - half, interval.mean + half
            values.append({"method": method, "step": step, "value": interval.mean, "low": low, "high": high})
        if finished:
            start = content["start"][metric]
            values.append({"method": method, "step": 0, "value": start, "low": start, "high": start})
    methods, last = list(section["methods"]), max((value["step"] for value in values), default=0)
    for value in values:  # bars of several methods at the same step stand beside each other
        place = methods.index(value["method"]) - (len(methods) - 1) / 2
        value["at"] = value["step"] + (place * BESIDE * last if value["step"] else 0)
    whole = {"format": ",d", "tickMinStep": 1}
    x = {"field": "at", "type": "quantitative", "title": "optimizer steps", "axis": whole}
    y = {"type": "quantitative", "title": METRICS[metric], "scale": {"zero": False}}
    color = {"field": "method", "type": "nominal", "sort": methods, "title": None}
    line = {"mark": {"type": "line", "point": True}, "encoding": {"x": x, "y": {**y, "field": "value"}, "color": color}}
    band = {
        "mark": {"type": "rule", "opacity": 0.7},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": color},
    }
    title = f"{METRICS[metric].capitalize()} (mean over seeds, bars: 95% t intervals)"
    return _spec(title, values, [band, line], height=300)


def forest(content: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Vega-Lite: the paired differences with their intervals, beside zero."""
    values = [
        {
            "pair": f"{found['method']} − {found['baseline']}",
            "mean": found["mean"],
            "low": found["mean"] - (found["half_width"] or 0.0),
            "high": found["mean"] + (found["half_width"] or 0.0),
            "told": "yes" if found["p_holm"] is not None and found["p_holm"] < 0.05 else "no",
        }
        for found in section["differences"]
    ]
    y = {"field": "pair", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 300}}
    title = f"difference in {METRICS[content['metric']]}, paired by seed"
    x = {"type": "quantitative", "title": title, "axis": {"tickCount": 8, "labelFlush": False}}
    scale = {"domain": ["yes", "no"], "range": ["#1f6fb4", "#999999"]}
    color = {"field": "told", "type": "nominal", "scale": scale, "title": "told from noise (Holm)"}
    zero = {"mark": {"type": "rule", "strokeDash": [4, 3], "color": "#555"}, "encoding": {"x": {"datum": 0}}}
    rule = {
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
    }
    point = {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"x": {**x, "field": "mean"}}}
    for layer in (rule, point):
        layer["encoding"] |= {"y": y, "color": color}
    return _spec("Differences (95% t intervals)", values, [zero, rule, point], height=24 * max(2, len(values)))


def _spec(title: str, values: list[dict[str, Any]], layers: list[dict[str, Any]], *, height: int) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {"text": title, "anchor": "start"},
        # A browser's font may be wider than the one that the picture was laid out with.
        "padding": {"left": 24, "right": 24, "top": 6, "bottom": 6},
        "config": {"legend": {"titleLimit": 0, "labelLimit": 0}, "axis": {"labelLimit": 260}},
        "width": 640,
        "height": height,
        "data": {"values": values},
        "layer": layers,
    }


def _svg(spec: dict[str, Any]) -> str:
    return drawing_package().vegalite_to_svg(spec)


def _rows(section: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for method, row in section["methods"].items():
        if row["loss"] is None:
            rows.append((method, "failed", *[""] * (len(HEADERS) - 2)))
            continue
        failed = f" ({len(row['failed'])} failed)" if row["failed"] else ""
        choosing, training = row["choosing_flops"]["mean"], row["training_flops"]["mean"]
        aim = section["aim"].get("flops")
        spent = f"{(choosing + training) / aim:.1%} of the aim" if aim else f"{choosing + training:.3g} FLOPs"
        seconds = (f"{row[name]['mean']:.1f}" for name in ("choosing_s", "training_s"))
        flops = (f"{value:.3g}" for value in (choosing, training))
        steps = f"{row['num_steps']['mean']:.0f}"
        rows.append((method + failed, steps, *(_interval(row[m]) for m in METRICS), *seconds, *flops, spent))
    return rows


def _interval(interval: Mapping[str, Any]) -> str:
    half = interval["half_width"]
    return f"{interval['mean']:.4f}" + ("" if half is None else f" ± {half:.4f}")


def _markdown_table(section: Mapping[str, Any]) -> str:
    lines = [HEADERS, tuple("---" if i == 0 else "---:" for i in range(len(HEADERS))), *_rows(section)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _html_table(section: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{name}</th>" for name in HEADERS)
    body = ("".join(f"<td>{markup.escape(cell)}</td>" for cell in cells) for cells in _rows(section))
    return _wide(f"<table><tr>{head}</tr>{''.join(f'<tr>{cells}</tr>' for cells in body)}</table>")


def _wide(element: str) -> str:
    return f'<div class="wide">{element}</div>'


def _opening(content: Mapping[str, Any]) -> str:
    start, seeds = content["start"], content["seeds"]
    known = "".join(
        f" {start[name]:,} of the held-out rows {what}." for name, what in HELD_OUT_NOTES.items() if start.get(name)
    )
    return (
        f"Seeds: {', '.join(map(str, seeds))}. The model that every run starts from has a held-out loss of "
        f"{start['loss']:.4f} per answer token and answers {start['exact_match']:.1%} of {start['num_rows']:,} "
        f"held-out rows exactly.{known} Values are means over the seeds ± half of the 95% t interval."
    )


def _aim(section: Mapping[str, Any]) -> str:
    aim = section["aim"]
    if "flops" not in aim:
        return f"Every run trains {aim['num_steps']} optimizer steps; what choosing costs comes on top."
    lengths = ", ".join(f"{method} {num}" for method, num in aim["num_steps"].items())
    return (
        f"Every method may spend {aim['flops']:.4g} FLOPs on choosing and training together. Steps that this pays for: "
        f"{lengths}."
    )


def _sentences(content: Mapping[str, Any], section: Mapping[str, Any]) -> list[str]:
    found = section["differences"]
    widths = [math.nan if d["half_width"] is None else d["half_width"] for d in found]
    failed = [f"{row['runs'][str(seed)]['problem']}." for row in section["methods"].values() for seed in row["failed"]]
    num_seeds = min((d["num"] for d in found), default=len(content["seeds"]))  # failed runs leave a pair fewer
    return [*(d["sentence"] for d in found), caution(num_seeds, widths, len(found)), *failed]


def _closing(content: Mapping[str, Any]) -> str:
    return (
        "FLOPs are counted as 2 x weights x tokens for a forward, and a trained token as "
        f"{content['forwards_per_trained_token']:g} forwards; attention's products, padding and what gradient "
        "checkpointing computes twice are not in them. "
        "Seconds are the run's own: loading the model and measuring held-out rows are not in them. Exact match: greedy "
        "decoding writes the answer token for token."
    )


def _paragraph(text: str) -> str:
    return f"<p>{markup.escape(text)}</p>"
