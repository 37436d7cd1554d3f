"""The content of the page: all runs, packed so that a page stays under its bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dataflex import __version__
from dataflex.report.decision import Condensed
from dataflex.report.losses import loss_series
from dataflex.report.pack import Packer, plain
from dataflex.report.parts import parts_content
from dataflex.report.pool import Pool, read_pool
from dataflex.report.record import Record, is_guided, mapping, names_of, read_record, title_of, without_secrets
from dataflex.report.tally import Memory, Tally, tally

MAX_TABLE_ROWS = 250_000  # over all runs; rows beyond that are in the ledger's files
FULL_TEXTS = 200  # rows at either end of each order whose whole excerpt is kept
TEXT_LENGTHS = (500, 300, 200, 150, 100, 80, 60, 40, 25, 12)


class Reader:
    """Reads runs again and again; pools are read once, decisions once."""

    def __init__(self, run_dirs: Sequence[str | Path]) -> None:
        self._run_dirs = list(run_dirs)
        self._memory = [Memory() for _ in run_dirs]
        self._pools: dict[tuple[Any, ...], tuple[Pool, str | None]] = {}

    def read(self) -> tuple[list[Record], list[Pool], bytes]:
        """The runs, the pools they draw from, and the packed content of the runs.

        Raises:
            LedgerError: a directory holds no run, or its ledger is damaged.
        """
        records = [read_record(run_dir) for run_dir in self._run_dirs]
        pools: dict[str, Pool] = {}
        packer, runs = Packer(), []
        for record, name, memory in zip(records, names_of(records), self._memory, strict=True):
            pool, problem = self._pool(record)
            if pool.key not in pools:
                pools[pool.key] = pool
            total = tally(record, pool.num_rows, memory)
            total.problems[:0] = [problem] if problem else []
            run = run_content(record, pool, total, packer, MAX_TABLE_ROWS // len(records))
            runs.append({"name": name, "pool": list(pools).index(pool.key), **run})
        content = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "dataflex": __version__,
            "pools": [pool.key for pool in pools.values()],
            "runs": runs,
        }
        return records, list(pools.values()), packer.block(content)

    def _pool(self, record: Record) -> tuple[Pool, str | None]:
        path = record.ledger.root / "rows.parquet"
        try:
            stat = path.stat()
            key = (str(path), stat.st_mtime_ns, stat.st_size)
        except OSError:
            return read_pool(record)
        if key not in self._pools:
            self._pools[key] = read_pool(record)
        return self._pools[key]


def run_content(record: Record, pool: Pool, total: Tally, packer: Packer, max_rows: int) -> dict[str, Any]:
    """One run, its arrays handed to the packer."""
    orders = extremes(total)
    rows = table_rows(total, orders, max_rows)
    numbers = packer.numbers
    shown = np.unique(np.concatenate([order[:FULL_TEXTS] for order in orders]))
    return {
        "path": str(record.path),
        "method": title_of(record),
        "global_batch": record.global_batch,
        "planned_steps": record.planned_steps,
        "seed": record.run.get("seed"),
        "config": yaml.safe_dump(plain(without_secrets(record.run)), sort_keys=False, allow_unicode=True),
        "end_step": None if record.end is None else record.end.get("step"),
        "written": _written(record),
        "summary": summary(record, total),
        "problems": total.problems,
        "lines": lines_content(record),
        "decisions": [decision_content(segment, condensed, numbers) for segment, condensed in total.decisions],
        "losses": loss_series(record),
        "parts": parts_content(record),
        "periods": total.periods,
        "draws": [
            [numbers(np.bincount(groups.codes_N[rows], minlength=len(groups.labels))) for rows in total.period_rows]
            for groups in pool.groups
        ],
        "guided_draws": [
            numbers(np.bincount(groups.codes_N, weights=total.guided_times_N, minlength=len(groups.labels)))
            for groups in pool.groups
        ],
        "times_counts": np.bincount(total.times_N).tolist() if len(total.times_N) else [],
        "first_segment": total.first_segment,
        "last_segment": total.last_segment,
        "rows": None if len(rows) == pool.num_rows else numbers(rows),
        "times": numbers(total.times_N[rows]),
        "first": None if total.first_N is None else numbers(total.first_N[rows], 4),
        "last": None if total.last_N is None else numbers(total.last_N[rows], 4),
        "texts": dict(zip(shown.tolist(), pool.texts_of(shown), strict=False)),
    }


def extremes(total: Tally) -> list[np.ndarray]:
    """All rows in the orders that the page offers: most and least often trained, most and least improved."""
    orders = [np.argsort(-total.times_N, kind="stable"), np.argsort(total.times_N, kind="stable")]
    if total.first_N is not None and total.last_N is not None:
        delta_N = total.first_N.astype(np.float64) - total.last_N.astype(np.float64)
        finite_N = np.isfinite(delta_N)
        for sign in (-1, 1):
            orders.append(np.argsort(np.where(finite_N, sign * delta_N, np.inf), kind="stable"))
    return orders


def table_rows(total: Tally, orders: list[np.ndarray], max_rows: int) -> np.ndarray:
    """Rows that the page's table holds: all, or of a very large pool an equal number from each end of each order."""
    num_rows = len(total.times_N)
    if num_rows <= max_rows:
        return np.arange(num_rows)
    return np.unique(np.concatenate([order[: max_rows // len(orders)] for order in orders]))


def summary(record: Record, total: Tally) -> dict[str, Any]:
    """Counts and costs of a run."""
    lines = record.segments
    scorings = [mapping(line.get("scoring")) for line in lines]
    measured = [scoring for scoring in scorings if scoring.get("source") == "measured"]
    ended = record.lines[-1] if record.lines and record.lines[-1]["kind"] == "end" else {}
    cost = mapping(ended.get("choosing"))  # of the whole run: until then it is that of its last decision
    return {
        "num_rows": len(total.times_N),
        "num_segments": len(lines),
        "num_guided": sum(is_guided(line) for line in lines),
        "recorded_steps": max((line["stop"] for line in lines), default=0),
        "num_trained": int(total.times_N.sum()),
        "num_guided_trained": int(total.guided_times_N.sum()),
        "num_distinct": int(np.count_nonzero(total.times_N)),
        "share_of_run": cost.get("share_of_run", lines[-1].get("share_of_run") if lines else None),
        "choosing_seconds": cost.get(
            "seconds", sum(mapping(line.get("seconds")).get("total") or 0.0 for line in lines)
        ),
        "num_passes": len(measured),
        "scored_rows": sum(scoring.get("num_rows") or 0 for scoring in measured),
        "scored_tokens": sum(scoring.get("num_tokens") or 0 for scoring in measured),
        "scoring_seconds": sum(scoring.get("seconds") or 0.0 for scoring in measured),
        "num_rollbacks": sum(line["kind"] == "rollback" for line in record.lines),
        "num_warnings": sum(len(line.get("warnings") or ()) for line in lines),
    }


LINE_KEYS = ("kind", "segment", "start", "stop", "decision", "num_rows", "num_distinct_rows", "window", "warnings")
BUDGET_KEYS = ("rank_correlation", "window_hit")  # of estimates under a scoring budget
NOTE_KEYS = ("num_scored", "num_unscored", "num_improved", "num_from_window", "planned_window", "window_state", "tau")


def lines_content(record: Record) -> list[dict[str, Any]]:
    """The ledger's lines as the page shows them; those that were rolled back stay visible."""
    in_force = {line["segment"]: line for line in record.segments}
    shown = [line for line in record.lines if line["kind"] != "trained"]  # those are drawn as pictures
    return [line_content(line, line == in_force.get(line.get("segment", -1))) for line in shown]


def line_content(line: Mapping[str, Any], in_force: bool) -> dict[str, Any]:
    if line["kind"] != "segment":
        return {key: line[key] for key in ("kind", "step", "from_segment", "reason") if key in line}
    notes, scoring = mapping(line.get("notes")), mapping(line.get("scoring"))
    budget = mapping(scoring.get("budget"))
    return {
        **{key: line.get(key) for key in LINE_KEYS},
        **{key: notes[key] for key in NOTE_KEYS if key in notes},
        **{key: budget[key] for key in BUDGET_KEYS if key in budget},
        "source": scoring.get("source"),
        "scored_rows": scoring.get("num_rows"),
        "scored_tokens": scoring.get("num_tokens"),
        "scoring_seconds": scoring.get("seconds"),
        "seconds": mapping(line.get("seconds")).get("total"),
        "share_of_run": line.get("share_of_run"),
        "guided": is_guided(line),
        "in_force": in_force,
    }


def decision_content(segment: int, condensed: Condensed, numbers: Callable[..., Any]) -> dict[str, Any]:
    density = condensed.density
    return {
        "segment": segment,
        "ranking": condensed.ranking,
        "num_ranked": condensed.num_ranked,
        "at": numbers(condensed.at_P),
        "value": numbers(condensed.value_P, 5),
        "drawn": numbers(condensed.drawn_B),
        "in_part": numbers(condensed.in_part_B),
        "density": density and {"counts": numbers(density[0].ravel()), "low": density[1], "high": density[2]},
    }


def pools_block(pools: Sequence[Pool], num_chars: int) -> bytes:
    """Labels, lengths and the beginnings of texts of all pools, packed."""
    packer = Packer()
    content = [
        {
            "key": pool.key,
            "num_rows": pool.num_rows,
            "num_chars": num_chars,
            "texts": pool.beginnings(num_chars) if pool.num_rows <= MAX_TABLE_ROWS else [],
            "tokens": None if pool.tokens_N is None else packer.numbers(pool.tokens_N),
            "groups": [
                {"column": groups.column, "labels": groups.labels, "codes": packer.numbers(groups.codes_N)}
                for groups in pool.groups
            ],
        }
        for pool in pools
    ]
    return packer.block({"pools": content})


def fitting_pools_block(pools: Sequence[Pool], max_bytes: int) -> bytes:
    """The block with as much of each text as fits; whole excerpts where the pool is small."""
    total_chars = sum(_num_chars(pool) for pool in pools)
    for num_chars in TEXT_LENGTHS:
        # Text shrinks to a quarter at best: what cannot fit is not tried.
        shortest = min(total_chars, sum(pool.num_rows for pool in pools) * num_chars)
        if shortest / 8 > max_bytes:
            continue
        block = pools_block(pools, num_chars)
        if len(block) <= max_bytes:
            return block
    return pools_block(pools, 0)


def _num_chars(pool: Pool) -> int:
    return 0 if pool.texts is None else pool.texts.nbytes


def _written(record: Record) -> str | None:
    """When the ledger was written last."""
    try:
        seconds = record.ledger.path.stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
