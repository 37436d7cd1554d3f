"""What a method remembers comes back from a checkpoint bit for bit, whatever arrays it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.catalog import SELECTORS
from dataflex.core.errors import DataFlexError
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.core.seeds import segment_rng
from dataflex.train.checkpoint import read_state, write_state

NUM_ROWS = 50
PLAN = SegmentPlan.dynamic(Schedule(warmup_step=1, update_step=1, update_times=3), num_epochs=2, pool_steps=9)
PARAMS: dict[str, list[dict[str, Any]]] = {
    "delta_loss": [{}, {"baseline": "run_start"}, {"replacement": True, "normalize": "initial"}],
    "loss": [{}],
    "random": [{}, {"replacement": True}],
    "length": [{}, {"take": "band"}],
    "static": [{"path": "scores.npy"}, {"path": "scores.npy", "draw": "weighted"}],
    "replay": [{"path": "former"}],
    "less": [{}, {"draw": "softmax", "aggregate": "mean"}, {"memory": "lr_sum"}],
    "icons": [{}, {"tie_break": "row"}],
    "cluster_less": [{"cluster_size": 4}],
    "near": [{}, {"walk": "round_robin"}],
    "tsds": [{}, {"draw": "multinomial"}],
    "rho_loss": [{"reference": "model", "ratio": 0.3}],
    "ifd": [{}, {"ratio": "loss", "upper": None}],
    "s2l": [{"path": "former", "n_clusters": 3}, {"path": "former", "by_source": True}],
    "infobatch": [{}, {"r": 0.0}],
}
CASES = [(name, params) for name, several in PARAMS.items() for params in several]


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()  # NaN and -0.0 as well


def signals_at(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    losses_N = rng.random(NUM_ROWS).astype(np.float32)
    losses_N[[3, 9]] = np.nan, np.inf
    similarities_NxG = rng.standard_normal((NUM_ROWS, 2)).astype(np.float32)
    similarities_NxG[[3, 9]] = np.nan
    embeddings_NxE = rng.standard_normal((NUM_ROWS, 4)).astype(np.float32)
    embeddings_NxE[[4, 11]] = np.nan
    return {
        "embeddings": embeddings_NxE / np.linalg.norm(embeddings_NxE, axis=1, keepdims=True),
        "learning_rate": np.array([0.1 / (1 + step)]),
        "target_embeddings": np.eye(4, dtype=np.float32)[:3],
        "reference_loss": rng.random(NUM_ROWS).astype(np.float32),
        "training_loss": losses_N,
        "answer_losses": rng.random((NUM_ROWS, 2)).astype(np.float32),
        "trajectories": rng.random((NUM_ROWS, 4)).astype(np.float32),
        "source": np.arange(NUM_ROWS) % 3,
        "similarities": similarities_NxG,
        "target_sizes": np.array([3, 5]),
        "loss": losses_N,
        "times_trained": rng.integers(0, 3, NUM_ROWS).astype(np.int32),
        "file": np.where(np.arange(NUM_ROWS) % 5 == 0, np.nan, np.arange(NUM_ROWS) / 3 + 0.1),
        "replay": np.arange(6) + step,
    }


def step_on(selector: Any, state: Any, segment: Any) -> tuple[Any, list[int]]:
    progress = PLAN.progress(segment)
    signals = {name: signals_at(segment.start)[name] for name in selector.needs_at(progress)}
    if progress.is_warmup and not selector.serves_warmup:
        return selector.observe(state, signals, progress), []
    _, state = selector.candidates(state, signals, 6, progress, segment_rng(5, segment.index, "candidates"))
    selection, state = selector.select(state, signals, 6, progress, segment_rng(5, segment.index, "select"))
    return state, selection.rows_Q.tolist()


def test_every_method_of_the_catalog_has_a_case() -> None:
    assert PARAMS.keys() == SELECTORS.keys()


@pytest.mark.parametrize(("name", "params"), CASES, ids=[f"{name}-{params}" for name, params in CASES])
def test_the_state_of_every_method_survives_a_checkpoint_after_every_segment(
    name: str, params: dict[str, Any], tmp_path: Path
) -> None:
    selector = SELECTORS[name](**params)
    labels_N = np.arange(NUM_ROWS) % 4
    state = selector.init(PoolInfo(num_tokens_N=labels_N + 7, num_label_tokens_N=labels_N))
    for segment in PLAN.segments():
        meta = {"step": segment.start, "run_id": "狐", "seconds": {"running": 0.1}}
        write_state(tmp_path / f"checkpoint-{segment.start}", state, meta)
        restored, read_meta = read_state(tmp_path / f"checkpoint-{segment.start}")
        assert read_meta == meta
        assert restored.keys() == dict(state).keys()
        for key, values in state.items():
            assert_same(np.asarray(values), restored[key])
        state, rows = step_on(selector, state, segment)
        other_state, other_rows = step_on(selector, restored, segment)
        assert other_rows == rows
        for key, values in state.items():
            assert_same(np.asarray(values), np.asarray(other_state[key]))


plain_arrays = hnp.arrays(
    st.sampled_from([np.bool_, np.int8, np.int32, np.int64, np.uint16, np.float16, np.float32, np.float64]),
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), plain_arrays, max_size=4
    ),
    st.sampled_from(["as it is", "reversed", "transposed", "read-only"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arrays_that_a_method_may_keep_come_back_as_they_were(
    tmp_path: Path, arrays: dict[str, np.ndarray], layout: str
) -> None:
    views = {
        "as it is": lambda values: values,
        "reversed": lambda values: values[::-1],
        "transposed": lambda values: values.T,
        "read-only": lambda values: np.broadcast_to(values, (2, *values.shape)),
    }
    arrays = {f"state.{name}": views[layout](values) for name, values in arrays.items()}
    write_state(tmp_path, arrays, {})
    restored, _ = read_state(tmp_path)
    assert restored.keys() == arrays.keys()
    for name, values in arrays.items():
        assert_same(values, restored[name])


@pytest.mark.parametrize("value", [np.float64(0.1), np.array(7), np.array(True)], ids=repr)
def test_a_single_number_comes_back_without_an_axis(tmp_path: Path, value: np.ndarray) -> None:
    write_state(tmp_path, {"momentum": value}, {})
    assert_same(np.asarray(value), read_state(tmp_path)[0]["momentum"])


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([1j]), np.array([None])], ids=["text", "complex", "object"]
)
def test_a_state_that_is_no_numbers_is_a_sentence_and_nothing_is_written(tmp_path: Path, value: np.ndarray) -> None:
    with pytest.raises(DataFlexError, match=r"state 'momentum' holds .*; a state is made of numbers only"):
        write_state(tmp_path, {"momentum": value}, {})
    assert list(tmp_path.iterdir()) == []


def test_writing_again_replaces_what_was_there(tmp_path: Path) -> None:
    write_state(tmp_path, {"a": np.zeros(3), "b": np.ones(2)}, {"step": 1})
    write_state(tmp_path, {"a": np.ones(4)}, {"step": 2})
    arrays, meta = read_state(tmp_path)
    assert (list(arrays), meta) == (["a"], {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["dataflex_state.safetensors"]
