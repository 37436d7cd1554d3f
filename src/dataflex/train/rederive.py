"""Every recorded choice, derived again from the signals that were recorded with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dataflex.algorithms.base import PoolInfo, Progress, Selection
from dataflex.algorithms.select.gradient import recorded_similarities
from dataflex.algorithms.select.ifd import recorded_answer_losses
from dataflex.core.errors import DataFlexError, LedgerError
from dataflex.ledger.audit import Audit
from dataflex.ledger.files import read_columns
from dataflex.ledger.findings import Finding, damage, note
from dataflex.ledger.ledger import Ledger
from dataflex.ledger.run_facts import Facts
from dataflex.signals.file import read_scores
from dataflex.train.budget_record import recorded_signals
from dataflex.train.decide import MIX, Decision, Situation, candidates, decide, in_turn, initial_state, part
from dataflex.train.domains import domains_of
from dataflex.train.method import Method
from dataflex.train.settings import versions
from dataflex.train.trajectories import PLACE, source_codes, trajectories

TOLERANCE = 1e-6  # of recorded columns and notes, relative; rows must be equal


class NotAtHandError(Exception):
    """A signal that was not recorded and cannot be read any more."""


def rederive(audit: Audit, method: Method) -> list[Finding]:
    """Derive the choices of a record again; what does not follow is a finding.

    Args:
        audit: the record, read and verified.
        method: the components, built from run.yaml.
    """
    if audit.facts is None:
        return [note("choices", "not derived again: run.yaml does not say what is needed")]
    if method.follows_host:
        return [note("choices", "nothing was chosen: the host's own order was trained, which is not derived again")]
    try:
        columns = read_columns(audit.ledger.root / "rows.parquet", _columns(audit, method))
        pool = PoolInfo(num_tokens_N=columns["num_tokens"], num_label_tokens_N=columns["num_label_tokens"])
        if len(pool) != audit.facts.num_rows:
            raise LedgerError("rows.parquet is not the pool of this run")
        return _Derivation(audit, audit.facts, method, pool, columns).findings()
    except DataFlexError as error:
        return [note("choices", f"not derived again: {error}")]


def _columns(audit: Audit, method: Method) -> tuple[str, ...]:
    """The columns of rows.parquet that its decisions depend on."""
    by_column = [part.method.column for part in method.orders if part.method.by == "column"]
    domains = audit.run.get("domains", {})
    names = domains.get("names")
    known = (
        isinstance(domains.get("column"), str) and isinstance(names, list) and all(isinstance(n, str) for n in names)
    )
    if method.mixer is not None and not known:
        raise LedgerError("run.yaml does not say which column holds the domains, and their names")
    wanted = PLACE if {"trajectories", "source"} & method.selector.needs else ()
    known_columns = pq.read_schema(audit.ledger.root / "rows.parquet").names if wanted else ()
    former = [name for name in wanted if name in known_columns]
    return ("num_tokens", "num_label_tokens", *former, *by_column, *([domains["column"]] if method.mixer else []))


class _Derivation:
    """A run's decisions one after the other: the state of the method and the training counts go along."""

    def __init__(
        self, audit: Audit, facts: Facts, method: Method, pool: PoolInfo, columns: Mapping[str, np.ndarray]
    ) -> None:
        self._ledger, self._facts, self._method, self._columns = audit.ledger, facts, method, columns
        domains = audit.run.get("domains", {})
        self._domains = (
            domains_of(domains["column"], columns[domains["column"]], pool, domains["names"]) if method.mixer else None
        )
        self._target = audit.run.get("target", {})
        self._lines = [entry.content for _, entry in sorted(audit.history.in_force.items())]
        self._state: dict[str, np.ndarray] = {}
        self._trainable_N = self._scorable_N = pool.trainable_N
        self._counts_N = np.zeros(len(pool), dtype=np.int32)
        self._pool = pool
        # A selection without training: what its method was told is not the place in a run of its own.
        selection = audit.run.get("selection")
        self._told = selection.get("progress") if isinstance(selection, dict) else None

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        for number, line in enumerate(self._lines):
            where = f"segment {line['segment']}"
            try:
                if number == 0:
                    self._state = initial_state(self._method, self._pool, self._domains)
                found += [damage(where, said) for said in self._compare(line)]
            except (NotAtHandError, LedgerError) as reason:
                found.append(note(where, f"the choices from here on are not derived again: {reason}"))
                break
            except Exception as error:  # damaged signals may lead a method anywhere; it may be other people's
                why = str(error) if isinstance(error, DataFlexError) else f"{type(error).__name__}: {error}"
                found.append(damage(where, f"its choice cannot be derived again: {why}"))
                break
        return found

    def _compare(self, line: Mapping[str, Any]) -> list[str]:
        progress = self._progress(line)
        columns_N = self._ledger.signals_of(line)
        recorded_Q = self._ledger.rows_of(line)
        quota = (line["stop"] - line["start"]) * self._facts.global_batch
        signals: dict[str, np.ndarray] = {}
        at_hand, limited = in_turn(self._method.needs_at(progress))
        for name in [*at_hand, *limited]:
            if name in limited[:1]:
                _, self._state = candidates(
                    self._method, progress, self._state, signals, quota=quota, seed=self._facts.seed
                )
            signals[name] = self._signal(name, progress, columns_N, line)
        budget = (line.get("scoring") or {}).get("budget")
        if isinstance(budget, dict):
            signals |= recorded_signals(budget, columns_N)
        if self._told is not None and "initial_loss" in columns_N:
            baseline = {"loss": columns_N["initial_loss"]}
            self._state |= self._method.selector.observe(part(self._state), baseline, progress)
        if "loss" in signals and not self._method.limits_passes:
            self._scorable_N = self._trainable_N & np.isfinite(signals["loss"])
        at = Situation(
            signals=signals,
            domain_signals=self._domain_signals(line, progress),
            scorable_N=self._scorable_N,
            times_trained_N=self._counts_N,
            pool=self._pool,
            domains=self._domains,
            quota=quota,
            seed=self._facts.seed,
            why_uniform=budget.get("uniform") if isinstance(budget, dict) else None,
        )
        if self._method.mixer is not None and self._method.mixer.method.step_needs:
            self._state |= self._learned_by_step(line)
        decision = decide(self._method, progress, self._state, at)
        selection, rows_Q, self._state = decision.selection, decision.rows_Q, decision.state
        if np.any((recorded_Q < 0) | (recorded_Q >= len(self._counts_N))):
            raise LedgerError("it names rows that the pool does not have")
        self._counts_N = self._counts_N + np.bincount(recorded_Q, minlength=len(self._counts_N)).astype(np.int32)
        if self._told is not None and "initial_loss" not in selection.columns_N:
            columns_N = {name: values for name, values in columns_N.items() if name != "initial_loss"}
        return [
            *self._wrong_rows(line, rows_Q, recorded_Q),
            *_wrong_reasons(selection, columns_N, line),
            *self._wrong_mixture(line, decision),
        ]

    def _domain_signals(self, line: Mapping[str, Any], progress: Progress) -> dict[str, np.ndarray]:
        """What the mixer was given, as it was recorded."""
        names = self._method.domain_needs_at(progress)
        if not names or self._domains is None:
            return {}
        recorded = line.get("mix", {}).get("signals", {})
        if not names <= recorded.keys():
            raise NotAtHandError(f"the signals {_listed(names - recorded.keys())} of the mixer were not recorded")
        return {name: self._by_domain(recorded[name]) for name in names}

    def _by_domain(self, recorded: Mapping[str, float | None]) -> np.ndarray:
        assert self._domains is not None
        values = [recorded.get(name) for name in self._domains.info.names]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def _learned_by_step(self, line: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """State that a mixer learned in between, step by step, of which only the outcome is recorded."""
        columns = line.get("mix", {}).get("columns", {})
        names = {"alpha": f"{MIX}alpha_D", "excess": f"{MIX}lambda_D"}
        return {state: self._by_domain(columns[name]) for name, state in names.items() if name in columns}

    def _wrong_mixture(self, line: Mapping[str, Any], decision: Decision) -> list[str]:
        if decision.mixed is None or self._domains is None:
            return []
        recorded, names = line.get("mix"), self._domains.info.names
        if recorded is None:
            return ["it records no mixture, and the run has a mixer"]
        mixture = decision.mixed.mixture
        wrong = []
        if not _same_column(self._by_domain(recorded["proportions"]), np.asarray(mixture.proportions_D, dtype=float)):
            wrong.append("its proportions do not follow from its signals")
        if [recorded["counts"].get(name) for name in names] != decision.mixed.counts_D.tolist():
            wrong.append("its rows by domain do not follow from its proportions")
        return wrong

    def _progress(self, line: Mapping[str, Any]) -> Progress:
        plan = self._facts.plan
        if line["start"] >= plan.num_steps:
            raise LedgerError("it lies outside the schedule of run.yaml")
        segment = plan.segment_at(line["start"])
        if (segment.index, segment.start, segment.stop) != (line["segment"], line["start"], line["stop"]):
            raise LedgerError("it is not a segment of the schedule in run.yaml")
        return plan.progress(segment) if self._told is None else Progress(**self._told)

    def _signal(
        self, name: str, progress: Progress, columns_N: Mapping[str, np.ndarray], line: Mapping[str, Any]
    ) -> np.ndarray:
        """A signal as the method was given it."""
        if name == "times_trained":
            return self._counts_N.copy()
        kind, _, what = name.partition(":")
        if kind == "column":
            return np.asarray(self._columns[what], dtype=np.float64)
        if name == "trajectories":
            return self._trajectories(self._method.selector.path)
        if name == "learning_rate" and "learning_rate" in line["notes"]:
            return np.array([line["notes"]["learning_rate"]])
        if name == "source":
            return source_codes(self._columns, len(self._pool))
        if kind in ("file", "replay"):
            return self._from_path(kind, Path(str(what or self._method.selector.path)), progress)
        if name in (line.get("scoring") or {}).get("files", {}):
            return self._from_file(Path(line["scoring"]["files"][name]))
        if name == "target_sizes" and {"groups", "order"} <= self._target.keys():
            return np.array([self._target["groups"][group] for group in self._target["order"]], dtype=np.int64)
        recorded = _recorded(name, columns_N)
        if recorded is not None:
            return recorded
        raise NotAtHandError(f"the signal {name!r} was not recorded")

    def _trajectories(self, path: str) -> np.ndarray:
        try:
            return trajectories(path, len(self._pool), self._facts.data, self._columns)
        except (DataFlexError, OSError) as error:
            raise NotAtHandError(str(error)) from error

    def _from_file(self, path: Path) -> np.ndarray:
        """An array that was kept beside the record for its size."""
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise NotAtHandError(f"{path}, which it was decided on, cannot be read any more ({error})") from error

    def _from_path(self, name: str, path: Path, progress: Progress) -> np.ndarray:
        try:
            if name == "file":
                if not path.is_file():  # a pipe or a device would be waited for
                    raise NotAtHandError(f"the file {path}, which it read, is not there any more")
                return read_scores(str(path), len(self._pool), self._facts.data)
            former = Ledger(path)
            if not former.exists():
                raise NotAtHandError(f"the run {path}, which it repeats, is not there any more")
            if former.run().get("fingerprint", {}).get("data") != self._facts.data:
                raise NotAtHandError(f"{path} holds a run on other data now")
            line = former.line_of(progress.segment)
            if line is None:
                raise NotAtHandError(f"{path} has no segment {progress.segment} any more")
            return former.rows_of(line)
        except (DataFlexError, OSError) as error:
            raise NotAtHandError(str(error)) from error

    def _wrong_rows(self, line: Mapping[str, Any], rows_Q: np.ndarray, recorded_Q: np.ndarray) -> list[str]:
        if np.array_equal(rows_Q, recorded_Q):
            return []
        if np.array_equal(np.sort(rows_Q), np.sort(recorded_Q)):
            what = "its rows stand in another order than its recorded signals give"
        else:
            strange = np.setdiff1d(recorded_Q, rows_Q)
            example = f", such as row {strange[0]}" if len(strange) else ""
            what = f"its recorded signals give other rows than it records: {len(strange)} differ{example}"
        now, then = versions(), line["versions"]
        changed = [
            f"{name} {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name]
        ]
        path = getattr(self._method.selector, "path", None)
        reasons = [f"{path} may have changed since"] * bool(path) + [f"installed are {', '.join(changed)}"] * bool(
            changed
        )
        return [f"{what}; {'; '.join(reasons) or 'the record was changed since, or the method'}"]


def _wrong_reasons(selection: Selection, columns_N: Mapping[str, np.ndarray], line: Mapping[str, Any]) -> list[str]:
    """Recorded columns, notes and window that are not those of the choice."""
    wrong = []
    if selection.decision != line["decision"]:
        wrong.append(f"it records the decision {line['decision']!r}, its signals give {selection.decision!r}")
    names = columns_N.keys() - {"row", "times_trained"}
    if names != selection.columns_N.keys():
        wrong.append(f"it records the columns {_listed(names)}, its method gives {_listed(selection.columns_N)}")
    for name in sorted(names & selection.columns_N.keys()):
        if not _same_column(columns_N[name], np.asarray(selection.columns_N[name])):
            wrong.append(f"its column {name!r} does not follow from its signals")
    for name, given in (("notes", dict(selection.notes)), ("window", dict(selection.window or {}) or None)):
        if not _same(line[name], given):
            wrong.append(f"its {name} do not follow from its signals")
    return wrong


def _recorded(name: str, columns_N: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """A signal from the columns that were recorded of it."""
    if name == "similarities":
        return recorded_similarities(columns_N)
    if name == "answer_losses":
        return recorded_answer_losses(columns_N)
    return columns_N.get(name)


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


def _same_column(left: np.ndarray, right: np.ndarray) -> bool:
    if left.shape != right.shape or left.dtype.kind != right.dtype.kind:
        return False
    if left.dtype.kind != "f":
        return np.array_equal(left, right)
    return np.allclose(left, right, rtol=TOLERANCE, atol=0, equal_nan=True)


def _same(left: Any, right: Any) -> bool:
    """Equal JSON values, numbers within the tolerance."""
    if isinstance(right, np.generic):
        right = right.item()
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, float) and isinstance(right, (int, float)):
        return bool(np.isclose(left, right, rtol=TOLERANCE, atol=0))
    return left == right
