"""The report of a large run: how long it takes, how much memory and how large the page is, how soon it is seen.

python -m benchmarks.report [--rows 100000] [--decisions 30] [--out FILE.json]

Builds a synthetic ledger (Delta Loss over a pool whose losses fall by source), builds its page in a process of its own,
opens it in headless Chromium where that is installed, and follows the run while one more segment is written.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.core.seeds import segment_rng
from dataflex.ledger.ledger import Ledger

SOURCES, STEP_ROWS, UPDATE_STEP = 16, 64, 50
LIMITS = {"build_s": 20.0, "peak_mib": 2048.0, "page_mb": 5.0, "first_paint_s": 2.0, "follow_s": 5.0}


class SyntheticRun:
    """A run of Delta Loss without a model: losses fall at a rate of their source's own."""

    def __init__(self, output_dir: Path, num_rows: int, num_decisions: int) -> None:
        self.ledger = Ledger(output_dir)
        self._rng = np.random.default_rng(0)
        self._source_N = self._rng.integers(SOURCES, size=num_rows)
        self._initial_N = self._rng.gamma(4.0, 0.6, num_rows).astype(np.float32)
        self._method = DeltaLoss(window_size=0.2)
        schedule = Schedule(warmup_step=UPDATE_STEP, update_step=UPDATE_STEP, update_times=num_decisions + 2)
        self._plan = SegmentPlan.dynamic(schedule, num_epochs=1, pool_steps=num_rows // STEP_ROWS, max_steps=None)
        tokens_N = self._rng.integers(20, 900, num_rows)
        info = PoolInfo(num_tokens_N=tokens_N, num_label_tokens_N=tokens_N // 2)
        self._state: Any = self._method.init(info)
        self._segments = self._plan.segments()
        geometry = {"world_size": 1, "accumulation": 1, "micro_batch": STEP_ROWS}
        run = {
            "run_id": "benchmark",
            "fingerprint": {"num_rows": num_rows},
            "method": "delta_loss",
            "params": {"window_size": 0.2},
            "plan": {"num_steps": self._plan.num_steps},
            "geometry": geometry,
            "seed": 0,
        }
        rows = {
            "row": np.arange(num_rows),
            "num_tokens": tokens_N,
            "num_label_tokens": tokens_N // 2,
            "dataset": [f"set_{source % 3}" for source in self._source_N],
            "source": [f"source_{source:02d}" for source in self._source_N],
            "excerpt": texts(num_rows, self._rng),
        }
        self.ledger.begin(run, rows)
        for _ in range(num_decisions + 1):  # the warm-up, then the decisions
            self.decide()

    def decide(self) -> None:
        """Record the next segment."""
        segment = next(self._segments)
        progress, quota = self._plan.progress(segment), segment.num_steps * STEP_ROWS
        rng = segment_rng(0, segment.index, "select")
        if segment.is_warmup:
            rows_Q = rng.choice(len(self._source_N), quota, replace=False)
            self._append(segment, rows_Q, {}, decision="warm-up", window=None, notes={}, warnings=[])
            return
        fall = 1 - np.exp(-segment.index / 12) * (0.3 + 0.05 * self._source_N) * 0.8
        noise = self._rng.normal(0, 0.12, len(fall))
        losses_N = (self._initial_N * (1.15 - 0.5 * fall) + noise).clip(0.01).astype(np.float32)
        selection, self._state = self._method.select(self._state, {"loss": losses_N}, quota, progress, rng)
        self._append(
            segment,
            selection.rows_Q,
            dict(selection.columns_N),
            decision=selection.decision,
            window=selection.window,
            notes=dict(selection.notes),
            warnings=list(selection.warnings),
        )

    def _append(self, segment: Any, rows_Q: np.ndarray, columns_N: dict[str, np.ndarray], **said: Any) -> None:
        scoring = {"source": "measured", "num_rows": 10, "num_tokens": 4000, "seconds": 2.0} if columns_N else None
        line = {
            "segment": segment.index,
            "start": segment.start,
            "stop": segment.stop,
            "cycle": segment.cycle,
            "update": segment.update,
            "method": "delta_loss",
            "params": {"window_size": 0.2},
            "seed": 0,
            "num_rows": len(rows_Q),
            "num_distinct_rows": len(np.unique(rows_Q)),
            "quantiles": {},
            "scoring": scoring,
            "seconds": {"total": 2.5 if columns_N else 0.1, "select": 0.1},
            "share_of_run": 0.2,
            "versions": {},
            **said,
        }
        self.ledger.append(line, rows_Q, columns_N)


def texts(num_rows: int, rng: np.random.Generator) -> list[str]:
    """Excerpts of the greatest length, of made-up words: they compress no better than prose."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 4000)]
    weights = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(len(words), (num_rows, 84), p=weights / weights.sum())
    return [" ".join(words[word] for word in row)[:500] for row in drawn]


def build(run_dir: str, page: str) -> dict[str, float]:
    """Build the page in a process of its own, whose peak memory is this page's alone."""
    code = (
        "import resource, sys, time; began = time.perf_counter()\n"
        "from dataflex.report.page import write_report\n"
        "write_report([sys.argv[1]], sys.argv[2])\n"
        "print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, run_dir, page], capture_output=True, text=True, check=True)
    seconds, kib = done.stdout.split()
    return {"build_s": float(seconds), "peak_mib": int(kib) / 1024, "page_mb": Path(page).stat().st_size / 1e6}


def wait(driver: Any, script: str, what: str, seconds: float = 60.0) -> Any:
    """The value of a script once it is true."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        value = driver.execute_script(f"return {script}")
        if value:
            return value
        time.sleep(0.02)
    raise TimeoutError(what)


def browse(page: str, make_server: Callable[[], Any], decide: Callable[[], None]) -> dict[str, float]:
    """First paint and complete drawing of the page from disk; delay of a new segment in the followed page."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        paints, complete = [], []
        for _ in range(5):
            driver.get("about:blank")
            driver.get(f"file://{page}")
            wait(driver, "document.documentElement.dataset.drawn", "the page was not drawn")
            paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            paints.append(wait(driver, paint, "no paint") / 1000)
            complete.append(
                driver.execute_script("return window.performance.getEntriesByName('drawn')[0].startTime") / 1000
            )
        server = make_server()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver.get(f"http://127.0.0.1:{server.server_address[1]}/")
        delays = []
        before = int(
            wait(
                driver, "document.documentElement.dataset.drawn && document.documentElement.dataset.segments", "no page"
            )
        )
        for number in range(2):
            decide()
            began = time.perf_counter()
            wanted = before + number + 1
            wait(driver, f"document.documentElement.dataset.segments === '{wanted}'", "the segment was not shown")
            delays.append(time.perf_counter() - began)
        server.shutdown()
        server.server_close()
        return {"first_paint_s": max(paints), "drawn_s": max(complete), "follow_s": max(delays)}
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--decisions", type=int, default=30)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir, page = Path(folder) / "run", str(Path(folder) / "report.html")
        run = SyntheticRun(run_dir, args.rows, args.decisions)
        figures = build(str(run_dir), page)
        if Path("/usr/bin/chromedriver").exists():
            from dataflex.report.follow import make_server

            figures |= browse(page, lambda: make_server([run_dir], 0), run.decide)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, value in figures.items():
        limit = f"  (limit {LIMITS[name]:g})" if name in LIMITS else ""
        print(f"{name:>14} {value:9.2f}{limit}")
    print(f"{'server':>14} {own:9.0f} MiB at most, with the ledger's making")
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
