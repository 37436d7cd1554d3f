"""The checks that every selector must pass, and the pool they run on."""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dataflex.algorithms.base import LIMITED_SIGNALS, PoolInfo, Selection, Selector
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.core.seeds import segment_rng

SCHEDULE = Schedule(warmup_step=1, update_step=1, update_times=3)
PLAN = SegmentPlan.dynamic(SCHEDULE, num_epochs=2, pool_steps=100)
QUOTA = 6


@dataclasses.dataclass(frozen=True)
class Pool:
    """Rows with the attributes that signals are made of; row ``i`` is fully described by entry ``i`` of each."""

    label_tokens_N: np.ndarray
    prompt_tokens_N: np.ndarray
    start_N: np.ndarray  # loss at step 0; NaN or inf: cannot be scored
    fall_N: np.ndarray  # how far the loss falls in one step; negative: it gets worse
    scores_N: np.ndarray  # of the file; NaN: not listed

    @classmethod
    def of_size(cls, num_rows: int, seed: int = 0) -> "Pool":
        """Rows that differ in everything and can all be drawn."""
        rng = np.random.default_rng(seed)
        return cls(
            label_tokens_N=rng.permutation(num_rows) + 3,
            prompt_tokens_N=10 * rng.permutation(num_rows) + 5,
            start_N=(2 + rng.permutation(num_rows) / num_rows).astype(np.float32),
            fall_N=((rng.permutation(num_rows) + 1) / num_rows / 10 - 0.02).astype(np.float32),
            scores_N=rng.permutation(num_rows) / 7 + 0.1,
        )

    def __len__(self) -> int:
        return len(self.start_N)

    def take(self, rows: np.ndarray) -> "Pool":
        """The pool that holds ``rows`` of this one, in that order."""
        return Pool(**{name: values_N[rows] for name, values_N in vars(self).items()})

    def with_bad_rows(self) -> "Pool":
        """Rows 0, 7: no label token; 3: not listed and no loss; 5: an infinite loss."""
        bad = {name: values_N.copy() for name, values_N in vars(self).items()}
        bad["label_tokens_N"][[0, 7]] = 0
        bad["start_N"][[0, 3, 7]] = np.nan
        bad["start_N"][5] = np.inf
        bad["scores_N"][[3, 5]] = np.nan
        return Pool(**bad)

    def all_equal(self) -> "Pool":
        """Every row like row 0."""
        return self.take(np.zeros(len(self), dtype=int))

    @property
    def embeddings_NxE(self) -> np.ndarray:
        """Unit vectors, float32; NaN for a row without a loss."""
        vectors_Nx3 = np.stack([self.fall_N * 10, self.scores_N - 3, self.start_N - 2.5], axis=1)
        with np.errstate(invalid="ignore"):
            return (vectors_Nx3 / np.linalg.norm(vectors_Nx3, axis=1, keepdims=True)).astype(np.float32)

    @property
    def info(self) -> PoolInfo:
        return PoolInfo(num_tokens_N=self.prompt_tokens_N + self.label_tokens_N, num_label_tokens_N=self.label_tokens_N)


@dataclasses.dataclass(frozen=True)
class SelectorCase:
    """A selector, the signals that are not known here, and what it is excused from.

    ``signals`` maps a name to a function of (pool, progress, quota). ``ranks_by_row``: equal scores are ranked by row
    number, so that equal rows need not have equal weights. ``measured_by_chance``: so are the rows that it measures.
    """

    selector: Any
    signals: Mapping[str, Callable[[Pool, Any, int], np.ndarray]] = dataclasses.field(default_factory=dict)
    ranks_by_row: bool = False
    allows_repeats: bool = False
    measured_by_chance: bool = False

    def __repr__(self) -> str:
        changed = [
            f"{f.name}={getattr(self.selector, f.name)}"
            for f in dataclasses.fields(self.selector)
            if getattr(self.selector, f.name) != f.default
        ]
        return f"{type(self.selector).__name__}({', '.join(changed)})"

    def can_draw(self, pool: Pool) -> np.ndarray:
        """Rows that this method may draw."""
        drawable_N = pool.label_tokens_N > 0
        if {
            "loss",
            "similarities",
            "embeddings",
            "answer_losses",
            "trajectories",
        } & self.selector.needs:  # a row without a loss has no gradient either
            drawable_N = drawable_N & np.isfinite(pool.start_N)
        if "file" in self.selector.needs:
            drawable_N = drawable_N & np.isfinite(pool.scores_N)
        return drawable_N

    def measure(self, pool: Pool, progress, times_trained_N: np.ndarray, quota: int) -> dict[str, np.ndarray]:
        """The signals that the selector asks for at this decision, read-only."""
        known = {
            "loss": lambda: (pool.start_N - pool.fall_N * progress.step).astype(np.float32),
            "times_trained": lambda: times_trained_N.copy(),
            "file": lambda: pool.scores_N.copy(),
            "reference_loss": lambda: (pool.start_N * 0.9 - pool.fall_N * 5).astype(np.float32),
            "training_loss": lambda: np.where(times_trained_N > 0, pool.start_N - pool.fall_N, np.nan).astype(
                np.float32
            ),
            "answer_losses": lambda: np.stack([pool.start_N, pool.start_N + pool.fall_N * 9], axis=1),
            "trajectories": lambda: np.stack([pool.start_N - pool.fall_N * t for t in range(3)], axis=1),
            "source": lambda: (pool.scores_N > np.nanmedian(pool.scores_N)).astype(np.int64),
            "embeddings": lambda: pool.embeddings_NxE,
            "target_embeddings": lambda: np.eye(3, dtype=np.float32)[:2],
        }
        wanted = self.selector.needs_at(progress)
        assert wanted <= self.selector.needs, f"{wanted} is asked for, {self.selector.needs} is declared"
        return {
            name: read_only(self.signals[name](pool, progress, quota) if name in self.signals else known[name]())
            for name in sorted(wanted)
        }


def read_only(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.flags.writeable = False
    return array


def only(rows: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """The values of ``rows``, NaN for the others, read-only."""
    kept_N = np.full_like(values_N, np.nan)
    kept_N[rows] = values_N[rows]
    return read_only(kept_N)


def frozen_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: read_only(array) for name, array in state.items()}


def saved_and_loaded(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    np.savez(file, **state)  # type: ignore[arg-type]
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def run(
    case: SelectorCase,
    pool: Pool,
    *,
    quota: int = QUOTA,
    num_decisions: int | None = None,
    seed: int = 0,
    between: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = frozen_state,
) -> list[Selection]:
    """Train through the plan and return the first ``num_decisions`` decisions (default: all).

    Warm-ups are observed and train nothing here. ``between`` is applied to the state after every segment.
    """
    selector, selections = case.selector, []
    state = between(selector.init(pool.info))
    times_trained_N = np.zeros(len(pool), dtype=np.int32)
    for segment in PLAN.segments():
        if len(selections) == num_decisions:
            break
        progress = PLAN.progress(segment)
        signals = case.measure(pool, progress, times_trained_N, quota)
        if progress.is_warmup and not getattr(selector, "serves_warmup", False):
            state = between(selector.observe(state, signals, progress))
            continue
        rng = segment_rng(seed, segment.index, "candidates")
        at_hand = {name: values for name, values in signals.items() if name not in LIMITED_SIGNALS}
        rows = None
        if hasattr(selector, "candidates"):
            rows, state = selector.candidates(state, at_hand, quota, progress, rng)
        if rows is not None:
            signals = {name: only(rows, v) if name in LIMITED_SIGNALS else v for name, v in signals.items()}
        state = between(state)
        selection, state = selector.select(state, signals, quota, progress, segment_rng(seed, segment.index, "select"))
        state = between(state)
        np.add.at(times_trained_N, selection.rows_Q, 1)
        selections.append(selection)
    return selections


def same(one: Selection, other: Selection) -> bool:
    return (
        one.rows_Q.tolist() == other.rows_Q.tolist()
        and (one.decision, one.ordered, one.warnings) == (other.decision, other.ordered, other.warnings)
        and one.window == other.window
        and one.notes == other.notes
        and one.columns_N.keys() == other.columns_N.keys()
        and all(np.array_equal(v, other.columns_N[k], equal_nan=v.dtype.kind == "f") for k, v in one.columns_N.items())
    )


def all_same(ones: list[Selection], others: list[Selection]) -> bool:
    return len(ones) == len(others) and all(same(a, b) for a, b in zip(ones, others, strict=True))


class SelectorSuite:
    """The checks; a subclass provides the fixture ``case``. Inputs are read-only in all of them."""

    def test_it_is_a_frozen_value_that_serves_the_protocol_and_names_its_source(self, case):
        assert isinstance(case.selector, Selector)
        selector: Any = case.selector
        assert type(selector).__dataclass_params__.frozen
        assert all(f.kw_only for f in dataclasses.fields(selector))
        assert selector.source
        assert "Source:" in (type(selector).__doc__ or "")
        assert selector == dataclasses.replace(selector)

    def test_the_same_arguments_give_the_same_result(self, case):
        pool = Pool.of_size(40).with_bad_rows()
        assert all_same(run(case, pool), run(case, pool))

    def test_neither_state_nor_signals_are_changed(self, case):
        pool = Pool.of_size(40).with_bad_rows()
        before = {name: values_N.copy() for name, values_N in vars(pool).items()}
        run(case, pool)  # arrays that are handed over are read-only: writing to one raises
        assert all(np.array_equal(before[name], values_N, equal_nan=True) for name, values_N in vars(pool).items())

    def test_every_selection_has_exactly_the_quota_of_valid_rows(self, case):
        pool = Pool.of_size(40).with_bad_rows()
        for selection in run(case, pool):
            rows_Q = selection.rows_Q
            assert rows_Q.dtype == np.int64
            assert rows_Q.shape == (QUOTA,)
            assert rows_Q.min() >= 0
            assert rows_Q.max() < len(pool)
            assert case.allows_repeats or len(set(rows_Q.tolist())) == QUOTA

    def test_rows_that_cannot_be_scored_are_never_drawn_and_weigh_nothing(self, case):
        pool = Pool.of_size(40).with_bad_rows()
        drawable_N = case.can_draw(pool)
        assert 30 < drawable_N.sum() < 40
        for seed in range(3):
            for selection in run(case, pool, seed=seed):
                assert np.all(drawable_N[selection.rows_Q])
                weight_N = selection.columns_N.get("weight", drawable_N)
                assert np.all(weight_N[~drawable_N] == 0)
                assert np.all(weight_N[drawable_N] >= 0)

    def test_columns_have_an_entry_for_every_row(self, case):
        pool = Pool.of_size(40).with_bad_rows()
        for selection in run(case, pool):
            assert all(column_N.shape == (40,) for column_N in selection.columns_N.values())

    def test_notes_and_window_are_plain_json_and_warnings_are_sentences(self, case):
        for pool in (Pool.of_size(40).with_bad_rows(), Pool.of_size(40).all_equal(), Pool.of_size(QUOTA)):
            for selection in run(case, pool):
                for part in (selection.notes, selection.window):
                    assert json.loads(json.dumps(part, allow_nan=False)) == part
                assert selection.decision.isidentifier()
                assert isinstance(selection.ordered, bool)
                assert isinstance(selection.warnings, tuple)
                assert all(isinstance(w, str) and w and "\n" not in w for w in selection.warnings)

    def test_permuting_the_pool_permutes_what_was_recorded(self, case):
        pool = Pool.of_size(40)
        order = np.random.default_rng(5).permutation(40)
        if case.measured_by_chance:
            return
        plain, permuted = run(case, pool), run(case, pool.take(order))
        for one, other in zip(plain, permuted, strict=True):
            assert one.columns_N.keys() == other.columns_N.keys()
            for name, column_N in one.columns_N.items():
                is_float = column_N.dtype.kind == "f"
                assert np.array_equal(column_N[order], other.columns_N[name], equal_nan=is_float), name
            assert one.window == other.window

    def test_a_method_without_chance_chooses_the_same_samples_from_a_permuted_pool(self, case):
        pool = Pool.of_size(40)
        plain, *others = (run(case, pool, num_decisions=1, seed=seed)[0] for seed in range(4))
        if "replay" in case.selector.needs or not all(same(plain, other) for other in others):
            return  # told which rows, or drawn by chance
        order = np.random.default_rng(5).permutation(40)
        permuted = run(case, pool.take(order), num_decisions=1)[0]
        assert order[permuted.rows_Q].tolist() == plain.rows_Q.tolist()

    def test_rows_that_are_all_equal_weigh_the_same(self, case):
        pool = Pool.of_size(40).all_equal()
        for selection in run(case, pool):
            weight_N = selection.columns_N.get("weight", np.ones(40))
            if not case.ranks_by_row:
                assert np.ptp(weight_N) == 0
            elif "rank" in selection.columns_N:
                assert selection.columns_N["rank"].tolist() == list(range(40))
                assert np.all(np.diff(np.flatnonzero(weight_N == weight_N.max())) == 1)

    def test_a_pool_of_duplicates_is_a_pool(self, case):
        pool = Pool.of_size(20).take(np.repeat(np.arange(20), 2))
        for selection in run(case, pool):
            assert case.allows_repeats or len(set(selection.rows_Q.tolist())) == QUOTA
            for name, column_N in selection.columns_N.items():
                if name != "rank" and (not case.ranks_by_row or name in ("loss", "delta")):
                    is_float = column_N.dtype.kind == "f"
                    assert np.array_equal(column_N[0::2], column_N[1::2], equal_nan=is_float), name

    def test_one_row_is_enough_for_a_quota_of_one(self, case):
        pool = Pool.of_size(40)
        assert all(len(selection.rows_Q) == 1 for selection in run(case, pool, quota=1))

    def test_a_quota_of_all_that_can_be_drawn_takes_every_one_of_them(self, case):
        pool = Pool.of_size(40).with_bad_rows()
        drawable = np.flatnonzero(case.can_draw(pool)).tolist()
        for selection in run(case, pool, quota=len(drawable)):
            if not case.allows_repeats:
                assert sorted(selection.rows_Q.tolist()) == drawable

    def test_a_pool_of_one_row(self, case):
        assert all(selection.rows_Q.tolist() == [0] for selection in run(case, Pool.of_size(1), quota=1))

    def test_a_run_that_is_saved_and_loaded_after_every_segment_goes_on_as_if_nothing_had_happened(self, case):
        pool = Pool.of_size(40).with_bad_rows()
        assert all_same(run(case, pool, between=saved_and_loaded), run(case, pool))
