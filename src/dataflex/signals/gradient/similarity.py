"""How much training on each pool row would move the model along the gradients of each group of target rows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dataflex.signals.cache import weights_digest
from dataflex.signals.collect import BLOCK_NUMBERS, ONE_ROW, Place, collect
from dataflex.signals.gradient.engines import Engine, Exact, Ghost
from dataflex.signals.gradient.factorised import Factorised
from dataflex.signals.gradient.moments import Adam
from dataflex.signals.gradient.signal import GradientSignal, Source
from dataflex.signals.gradient.targets import GroupVectors, TargetGroups
from dataflex.signals.gradient.verify import Verdict, verify
from dataflex.signals.gradient.weights import Weights
from dataflex.signals.loss import rows_to_check
from dataflex.signals.store import Parts
from dataflex.signals.sweep import Collective, sweep

DEFINITION = "gradient of the mean negative log-likelihood over label tokens, linear weights, eval mode, version 1"


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """``mean over j in group k of cos(u_i, g_j)`` of every pool row, and what it cost.

    Where the norm of u_i cannot be had (Adam without the exact engine) ``normalised`` is False and the numbers are
    ``mean_j <u_i, g_j> / ||g_j||``.
    """

    similarities_NxG: np.ndarray  # float32; NaN where a row has no gradient
    norms_N: np.ndarray  # ||g_i||, float32
    normalised: bool
    left_out: tuple[str, ...]  # trainable parameters that are no part of the gradient
    why_single: str  # why rows were measured one at a time; "" where they were not
    cost: dict[str, Any]


def target_groups(
    source: Source,
    weights: Weights,
    lengths_M: np.ndarray,
    groups_M: np.ndarray,
    *,
    device: torch.device,
    batch_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    verdict: Verdict | None = None,
) -> TargetGroups:
    """One vector a group from all target rows of a source; each rank makes its own, without the others.

    Args:
        groups_M: group of each target row, 0 .. G-1.
        dtype: of the vectors.
        verdict: of ``verify``; None: it is asked now.

    Raises:
        ConfigError: a target row without gradient, a group without rows.
    """
    rows_M = np.arange(len(lengths_M))
    engine = GroupVectors(weights, groups_M, dtype)
    signal = GradientSignal(source, weights, engine)
    sample = rows_to_check(lengths_M, rows_M)
    verdict = verdict or verify(source, weights, sample)
    signal.capture.repeated = set(verdict.repeated)
    with signal.engaged(sample):
        result = sweep(
            signal,
            lengths_M,
            rows_M,
            ranks=Collective(device=device),
            batch_tokens=ONE_ROW if verdict.why_single else batch_tokens,
        )
    return engine.result(result.values_NxC[:, 0])


def similarities(
    source: Source,
    weights: Weights,
    targets: TargetGroups,
    adam: Adam | None,
    lengths_N: np.ndarray,
    rows: np.ndarray,
    *,
    engine: Literal["exact", "ghost"] = "exact",
    ranks: Collective,
    place: Place,
    batch_tokens: int | None = None,
    verdict: Verdict | None = None,
    advance: Callable[[int], object] = lambda num_tokens: None,
) -> Similarities:
    """Measure ``rows`` against the target groups; collective.

    Rows are kept at ``place`` while the pass goes: the same call after a kill goes on. Remove the folder when the
    result is safe elsewhere.

    Args:
        source: of the pool.
        adam: moments, or None for plain gradients.
        engine: ``exact``, or ``ghost`` where the gradients of one weight would not fit (full fine-tuning).
        place: its key is that of ``pass_key``, and what the rows and the targets are.
        verdict: of ``verify``, the same on all ranks; None: it is asked now.

    Raises:
        DataFlexError: gradients of this model cannot be taken a sample at a time; a row does not fit into memory.
    """
    worker = Exact(targets, adam) if engine == "exact" else Ghost(targets, adam)
    parts = {"similarities": (targets.num_groups, "float32"), "norms": (1, "float32")}

    def split(values_RxC: np.ndarray) -> Mapping[str, np.ndarray]:
        products_RxG, updates_R, norms_R = values_RxC[:, :-2], values_RxC[:, -2:-1], values_RxC[:, -1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines_RxG = products_RxG / updates_R if worker.normalises else products_RxG
        return {"similarities": np.where(norms_R > 0, cosines_RxG, np.nan), "norms": norms_R}

    arrays, verdict, cost = _pass(
        source, weights, worker, lengths_N, rows, parts, split, ranks, place, batch_tokens, verdict, advance
    )
    return Similarities(
        similarities_NxG=_on_every_rank(ranks, arrays, "similarities", lengths_N, rows, targets.num_groups),
        norms_N=_on_every_rank(ranks, arrays, "norms", lengths_N, rows, 1)[:, 0],
        normalised=worker.normalises,
        left_out=weights.left_out,
        why_single=verdict.why_single,
        cost=cost,
    )


def factorised_similarities(
    source: Source,
    weights: Weights,
    targets: TargetGroups,
    adam: Adam | None,
    lengths_N: np.ndarray,
    rows: np.ndarray,
    *,
    rank: int = 16,
    seed: int = 0,
    ranks: Collective,
    place: Place,
    batch_tokens: int | None = None,
    verdict: Verdict | None = None,
    advance: Callable[[int], object] = lambda num_tokens: None,
) -> Similarities:
    """``similarities`` by projected features, which stay at ``place`` for other targets: its key must not name any.

    A row's features are kept as a unit vector in fp16 and its norm. Without Adam the result is an estimate of the
    cosine by the features' own norms.
    """
    worker = Factorised(weights, rank=rank, seed=seed)
    parts = {"features": (worker.num_columns, "float16"), "norms": (1, "float32")}

    def split(features_RxF: np.ndarray) -> Mapping[str, np.ndarray]:
        norms_R = np.linalg.norm(features_RxF, axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"features": features_RxF / norms_R, "norms": norms_R}

    place = Place(directory=place.directory, key={**place.key, "projection": f"rank {rank}, seed {seed}"})
    arrays, verdict, cost = _pass(
        source, weights, worker, lengths_N, rows, parts, split, ranks, place, batch_tokens, verdict, advance
    )
    if arrays is not None:
        group_GxF, constant_G = worker.group_features(targets, adam, weights)
        found_NxG = np.full((len(lengths_N), targets.num_groups), np.nan, np.float32)
        for part in np.array_split(rows, max(1, len(rows) * worker.num_columns // BLOCK_NUMBERS)):
            cosines_RxG = arrays["features"][part].astype(np.float32) @ group_GxF.numpy().T
            scale_R = 1.0 if adam is None else arrays["norms"][part]
            found_NxG[part] = cosines_RxG * scale_R + constant_G.numpy()
        arrays = {**arrays, "similarities": found_NxG}
    return Similarities(
        similarities_NxG=_on_every_rank(ranks, arrays, "similarities", lengths_N, rows, targets.num_groups),
        norms_N=_on_every_rank(ranks, arrays, "norms", lengths_N, rows, 1)[:, 0],
        normalised=adam is None,
        left_out=weights.left_out,
        why_single=verdict.why_single,
        cost=cost,
    )


def pass_key(model: nn.Module, weights: Weights, adam: Adam | None, **more: str) -> dict[str, str]:
    """What a pass depends on beside its rows: model, moments, which weights; ``more`` as the caller knows it."""
    names = " ".join(weight.name for weight in weights.included)
    return {
        "definition": DEFINITION,
        "model": str(weights_digest(model)),
        "moments": "none" if adam is None else adam.digest(),
        "weights": hashlib.sha256(names.encode()).hexdigest(),
        **more,
    }


def _pass(
    source: Source,
    weights: Weights,
    worker: Engine,
    lengths_N: np.ndarray,
    rows: np.ndarray,
    parts: Parts,
    split: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    ranks: Collective,
    place: Place,
    batch_tokens: int | None,
    verdict: Verdict | None,
    advance: Callable[[int], object],
) -> tuple[Mapping[str, np.ndarray] | None, Verdict, dict[str, Any]]:
    """The arrays (on the first rank), how rows were measured, and the cost."""
    started = time.perf_counter()
    sample = rows_to_check(lengths_N, rows)
    signal = GradientSignal(source, weights, worker)
    failure: Exception | None = None
    try:
        verdict = verdict or verify(source, weights, sample)
    except Exception as error:
        failure, verdict = error, Verdict()
    ranks.raise_together(failure)
    signal.capture.repeated = set(verdict.repeated)
    single = bool(ranks.gather(torch.tensor([bool(verdict.why_single)])).any())  # one way on all ranks
    with signal.engaged(sample):
        arrays, cost = collect(
            signal,
            lengths_N,
            rows,
            ranks=ranks,
            place=place,
            parts=parts,
            split=split,
            batch_tokens=ONE_ROW if single else batch_tokens,
            advance=advance,
        )
    return arrays, verdict, {**asdict(cost), "seconds": time.perf_counter() - started}


def _on_every_rank(
    ranks: Collective,
    arrays: Mapping[str, np.ndarray] | None,
    name: str,
    lengths_N: np.ndarray,
    rows: np.ndarray,
    num_columns: int,
) -> np.ndarray:
    """An array of the first rank's, float32, NaN outside of ``rows`` (collective)."""
    mine_NxC = np.full((len(lengths_N), num_columns), np.nan, np.float32)
    if arrays is not None:
        mine_NxC[rows] = arrays[name][rows]
    return ranks.gather(torch.from_numpy(mine_NxC))[: len(lengths_N)].numpy()
