"""The other decisions of a run: mixtures over time, losses of domains, coefficients of the loss, orders."""

from __future__ import annotations

from typing import Any

from dataflex.ledger.summary import components
from dataflex.report.record import Record, mapping

MOST_DOMAINS = 30  # curves of one picture; the largest are shown


def parts_content(record: Record) -> dict[str, Any] | None:
    """What decided beside the selector, and what came of it; None in a run of a selector alone."""
    parts = mapping(record.run.get("parts"))
    if not parts:
        return None
    in_force = {line["segment"]: line for line in record.segments}
    trained = {
        line["segment"]: line for line in record.lines if line["kind"] == "trained" and line.get("segment") in in_force
    }
    shown = _domains(record)
    return {
        "components": [
            {"decides": word, "method": str(part.get("method")), "params": _params(part)}
            for word, part in components(parts)
        ],
        "domains": shown,
        "num_domains": len(mapping(record.run.get("domains")).get("names") or []),
        "mix": [
            {
                "segment": line["segment"],
                "start": line["start"],
                "stop": line["stop"],
                "decision": str(mapping(line["mix"]).get("decision")),
                "proportions": _of(mapping(line["mix"]).get("proportions"), shown),
                "counts": _of(mapping(line["mix"]).get("counts"), shown),
            }
            for line in record.segments
            if "mix" in line
        ],
        "trained": [
            {
                "segment": line["segment"],
                "start": line["start"],
                "stop": line["stop"],
                "losses": _of(line.get("domain_losses"), shown),
                "weights": mapping(line.get("weights")) or None,
            }
            for _, line in sorted(trained.items())
        ],
    }


def _domains(record: Record) -> list[str]:
    """The domains to draw: those with the most rows drawn, in the run's order."""
    names = [str(name) for name in mapping(record.run.get("domains")).get("names") or []]
    drawn = dict.fromkeys(names, 0)
    for line in record.segments:
        for name, count in mapping(mapping(line.get("mix")).get("counts")).items():
            drawn[name] = drawn.get(name, 0) + count
    kept = set(sorted(names, key=lambda name: -drawn[name])[:MOST_DOMAINS])
    return [name for name in names if name in kept]


def _of(values: Any, names: list[str]) -> list[float | None]:
    """One number for each name, in their order."""
    return [mapping(values).get(name) for name in names]


def _params(part: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in mapping(part.get("params")).items() if value is not None)
