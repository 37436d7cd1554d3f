"""One decision as a pure function of what is recorded of it, so that a resume and an audit can derive it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dataflex.algorithms.base import LIMITED_SIGNALS, Mixture, PoolInfo, Progress, Selection
from dataflex.algorithms.mix.rows import count_domains, take_rows
from dataflex.algorithms.order.base import next_of_run
from dataflex.core.compose import mix_then_select, ranking_of_weights, select_then_mix
from dataflex.core.domains import count_rows
from dataflex.core.draw import check_quota, draw, least_used_first, passes
from dataflex.core.errors import DataFlexError
from dataflex.core.seeds import segment_rng
from dataflex.train.domains import Domains
from dataflex.train.method import Method, score_signal

State = dict[str, np.ndarray]
# Signals that are columns of the record, whatever the method.
RECORDED = ("loss", "training_loss", "reference_loss", "scored")
MIX, KEPT, ORDER = "mix.", "kept.", "order."  # prefixes of the state, beside the selector's own


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """What a mixer said, and the rows of each domain that came of it."""

    mixture: Mixture
    counts_D: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The rows of a segment and why."""

    selection: Selection
    rows_Q: np.ndarray  # in training order, int64
    state: State  # after it
    mixed: Mixed | None = None


@dataclass(frozen=True, kw_only=True)
class Situation:
    """All that a decision depends on, beside the method, its state and the place in the run."""

    signals: Mapping[str, np.ndarray]  # what the method asked for, one entry per pool row
    domain_signals: Mapping[str, np.ndarray]  # what the mixer asked for, one entry a domain
    scorable_N: np.ndarray  # rows that may be drawn without a score, bool
    times_trained_N: np.ndarray
    pool: PoolInfo
    domains: Domains | None  # None without a mixer
    quota: int  # samples of the segment
    seed: int  # of the run
    why_uniform: str | None = None  # no estimate of losses is good enough to guide a selector


def initial_state(method: Method, pool: PoolInfo, domains: Domains | None) -> State:
    """The state of all components before the first decision."""
    state = dict(method.selector.init(pool))
    if method.mixer is not None and domains is not None:
        state |= prefixed(MIX, method.mixer.method.init(domains.info))
    return state


def in_turn(names: frozenset[str]) -> tuple[list[str], list[str]]:
    """Signals in the order in which they are measured: those at hand, then those that may be limited to some rows."""
    return sorted(names - LIMITED_SIGNALS), sorted(names & LIMITED_SIGNALS)


def candidates(
    method: Method,
    progress: Progress,
    state: Mapping[str, np.ndarray],
    signals: Mapping[str, np.ndarray],
    *,
    quota: int,
    seed: int,
) -> tuple[np.ndarray | None, State]:
    """Rows to which the dear signals of a decision are limited, ascending; None: all. And the state after it.

    Args:
        signals: the others.
    """
    state = dict(state)
    find = getattr(method.selector, "candidates", None)
    if find is None or not method.selects or progress.is_warmup or not method.selector_decides(progress):
        return None, state
    rows_R, new = find(part(state), signals, quota, progress, segment_rng(seed, progress.segment, "candidates"))
    return (None if rows_R is None else np.sort(np.asarray(rows_R, dtype=np.int64))), {**others(state), **new}


def decide(method: Method, progress: Progress, state: Mapping[str, np.ndarray], at: Situation) -> Decision:
    """Choose the rows of one segment: a warm-up draw, or what selector and mixer say, as the order arranges them.

    Args:
        state: of the components before the decision.
    """
    state = dict(state)
    if progress.is_warmup and not method.serves_warmup:
        return _warmup(method, progress, state, at)
    if method.mixer is None and method.selects and method.every == 1:
        selection, new = _select(method, progress, state, at)
        decision = Decision(selection=selection, rows_Q=selection.rows_Q, state={**others(state), **new})
    else:
        decision = _composed(method, progress, state, at)
    recorded = {name: at.signals[name] for name in RECORDED if name in at.signals}
    warnings = decision.selection.warnings
    if at.why_uniform is not None and "loss" in {score_signal(part.method) for part in method.orders}:
        warnings = (*warnings, f"{at.why_uniform}: samples stand in a random order")
    # On record, whatever the method keeps: a resume decides from it again.
    columns_N = {**recorded, **decision.selection.columns_N}
    selection = replace(decision.selection, columns_N=columns_N, warnings=warnings)
    return _arranged(method, progress, replace(decision, selection=selection), at)


def part(state: Mapping[str, np.ndarray], prefix: str = "") -> State:
    """The state of one component: the selector's for "", else that under a prefix."""
    if prefix:
        return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}
    return {name: values for name, values in state.items() if not name.startswith((MIX, KEPT, ORDER))}


def others(state: Mapping[str, np.ndarray]) -> State:
    """The state of all components but the selector."""
    return {name: values for name, values in state.items() if name.startswith((MIX, KEPT, ORDER))}


def prefixed(prefix: str, state: Mapping[str, np.ndarray]) -> State:
    return {f"{prefix}{name}": np.asarray(values) for name, values in state.items()}


def _select(method: Method, progress: Progress, state: State, at: Situation) -> tuple[Selection, State]:
    """What the selector says, or a uniform draw where nothing can guide it; and its state after it."""
    rng = segment_rng(at.seed, progress.segment, "select")
    if at.why_uniform is None or "loss" not in method.selector.needs:
        selection, new = method.selector.select(part(state), at.signals, at.quota, progress, rng)
        return selection, dict(new)
    weights_N = at.scorable_N.astype(np.float64)
    selection = Selection(
        rows_Q=draw(weights_N, at.quota, rng, replacement=method.replacement),
        decision="uniform",
        columns_N={"weight": weights_N},
        warnings=(f"{at.why_uniform}: this draw is uniform",),
    )
    return selection, part(state)


def _warmup(method: Method, progress: Progress, state: State, at: Situation) -> Decision:
    """Uniform rows while they last, or the initial mixture; what was measured is handed to the selector."""
    if at.signals and method.selects:
        state = {**others(state), **method.selector.observe(part(state), at.signals, progress)}
    columns_N = {name: values for name, values in at.signals.items() if name in ("loss", "scored")}
    rng = segment_rng(at.seed, progress.segment, "warmup")
    if method.mixer is None:
        # Shuffled already, a pass at a time; shuffling over passes would repeat rows before all were seen.
        rows_Q, mixed = passes(at.scorable_N, at.quota, rng), None
    else:
        mixture = Mixture(proportions_D=state[f"{MIX}proportions_D"], decision="initial")
        rows_Q, mixed = _mixed_rows(method, mixture, at, progress, rng)
    selection = Selection(
        rows_Q=rows_Q, decision="warm-up", ordered=True, columns_N=columns_N, warnings=_warnings(mixed)
    )
    return Decision(selection=selection, rows_Q=rows_Q, state=state, mixed=mixed and mixed[0])


# selection and mixture together


def _composed(method: Method, progress: Progress, state: State, at: Situation) -> Decision:
    """A decision of which a mixer is a part, or in which a component keeps what it said before, or nothing selects."""
    ranking_M, selection, state = _ranking(method, progress, state, at)
    if method.mixer is None:
        if selection is None:
            return _unselected(method, progress, state, at)
        assert ranking_M is not None
        check_quota(at.quota, len(ranking_M))
        rows_Q = ranking_M[: at.quota]
        return Decision(selection=_with_rows(selection, rows_Q), rows_Q=rows_Q, state=state)
    mixture, state = _mixture(method, progress, state, at)
    rng = segment_rng(at.seed, progress.segment, "mix")
    if ranking_M is None or selection is None:
        rows_Q, mixed = _mixed_rows(method, mixture, at, progress, rng)
        selection = Selection(rows_Q=rows_Q, decision=mixture.decision, ordered=True)
    else:
        rows_Q, mixed = _selected_rows(method, mixture, ranking_M, at, rng)
    selection = _with_rows(selection, rows_Q)
    selection = replace(selection, warnings=(*selection.warnings, *_warnings(mixed)))
    return Decision(selection=selection, rows_Q=rows_Q, state=state, mixed=mixed[0])


def _ranking(
    method: Method, progress: Progress, state: State, at: Situation
) -> tuple[np.ndarray | None, Selection | None, State]:
    """All rows that may be drawn, best first, and the selection that says why; None where nothing selects.

    Weights are kept until the selector decides again, and drawn from anew; a ranking without weights is kept as well,
    the rows trained since coming last.
    """
    if not method.selects:
        return None, None, state
    selector, name = method.selector, progress.segment
    rng = segment_rng(at.seed, name, "select")
    kept: dict[str, np.ndarray]
    if method.selector_decides(progress):
        # What it would draw by itself is left: its weights or its ranking are what the rows are taken from.
        selection, new = _select(method, progress, state, at)
        if "weight" in selection.columns_N:
            kept = {"weight_N": np.asarray(selection.columns_N["weight"], dtype=np.float64)}
        elif hasattr(selector, "rank"):
            kept = {"ranking_M": selector.rank(part(state), at.signals, progress, rng)}
            kept["times_N"] = at.times_trained_N.copy()
        else:
            raise DataFlexError(
                f"{method.name} gives neither weights nor a ranking, which a mixer and every > 1 need; derive it from "
                "SelectorBase and write rank"
            )
        state = {**others(state), **new}
        if method.every > 1:
            state = {**state, **prefixed(KEPT, kept)}
    else:
        kept = part(state, KEPT)
        selection = Selection(rows_Q=np.zeros(0, dtype=np.int64), decision="kept", columns_N={})
    if "weight_N" in kept:
        ranking_M = ranking_of_weights(kept["weight_N"], rng)
    else:
        since_M = at.times_trained_N[kept["ranking_M"]] - kept["times_N"][kept["ranking_M"]]
        ranking_M = kept["ranking_M"][np.argsort(since_M, kind="stable")]
    return ranking_M, selection, state


def _with_rows(selection: Selection, rows_Q: np.ndarray) -> Selection:
    """The selection with the rows that were taken of it, and what its notes say of them."""
    notes = dict(selection.notes)
    if "num_from_window" in notes:
        notes["num_from_window"] = int(np.count_nonzero(selection.columns_N["in_window"][rows_Q]))
    return replace(selection, rows_Q=rows_Q, notes=notes)


def _mixture(method: Method, progress: Progress, state: State, at: Situation) -> tuple[Mixture, State]:
    """The proportions now: decided, or kept since the mixer decided."""
    assert method.mixer is not None
    if not method.mixer_decides(progress):
        return Mixture(proportions_D=state[f"{KEPT}proportions_D"], decision="kept"), state
    rng = segment_rng(at.seed, progress.segment, "proportions")
    mixture, new = method.mixer.method.mix(part(state, MIX), at.domain_signals, progress, rng)
    kept = {"proportions_D": np.asarray(mixture.proportions_D, dtype=np.float64)} if method.mixer.every > 1 else {}
    return mixture, {**state, **prefixed(MIX, new), **prefixed(KEPT, kept)}


def _mixed_rows(
    method: Method, mixture: Mixture, at: Situation, progress: Progress, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[Mixed, tuple[str, ...]]]:
    """Rows by the mixture alone, shuffled."""
    assert method.mixer is not None
    assert at.domains is not None
    mixer, domain_N = method.mixer.method, at.domains.domain_N
    found = count_domains(mixer, mixture, at.quota, at.domains.info, domain_N, at.times_trained_N, at.scorable_N)
    rows_Q = take_rows(mixer, found.counts_D, domain_N, at.times_trained_N, at.scorable_N, rng)
    return _shuffled(rows_Q, progress, at), (Mixed(mixture=mixture, counts_D=found.counts_D), found.warnings)


def _selected_rows(
    method: Method, mixture: Mixture, ranking_M: np.ndarray, at: Situation, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[Mixed, tuple[str, ...]]]:
    """Rows of the ranking, as many of each domain as the mixture says."""
    assert method.mixer is not None
    assert at.domains is not None
    mixer, info, domain_N = method.mixer.method, at.domains.info, at.domains.domain_N
    ranking_M = ranking_M[at.scorable_N[ranking_M]]
    if mixer.max_times is not None:
        ranking_M = ranking_M[at.times_trained_N[ranking_M] < mixer.max_times]
    allowed_N = np.zeros(len(domain_N), dtype=bool)
    allowed_N[ranking_M] = True
    most_D = count_rows(domain_N, len(info), allowed_N)
    found = count_domains(mixer, mixture, at.quota, info, domain_N, at.times_trained_N, allowed_N, most_D)
    if method.mode == "select_then_mix":
        rows_Q = select_then_mix(ranking_M, domain_N, found.counts_D, method.keep, rng)
    else:
        rows_Q = mix_then_select(ranking_M, domain_N, found.counts_D)
    return rows_Q, (Mixed(mixture=mixture, counts_D=found.counts_D), found.warnings)


def _unselected(method: Method, progress: Progress, state: State, at: Situation) -> Decision:
    """Rows where only an order is named: the next of the order over the run, or uniform ones."""
    order = method.order_of_run
    if order is None:
        rng = segment_rng(at.seed, progress.segment, "select")
        rows_Q = least_used_first(at.times_trained_N, at.quota, rng, at.scorable_N)
        selection = Selection(rows_Q=rows_Q, decision="uniform")
        return Decision(selection=selection, rows_Q=rows_Q, state=state)
    if f"{ORDER}rows_M" not in state:
        rows_M = np.flatnonzero(at.scorable_N)
        scores_M = _scores(order, rows_M, progress, at)
        place_M = order.arrange(scores_M, segment_rng(at.seed, progress.segment, "arrange run"))
        state = {**state, f"{ORDER}rows_M": rows_M[place_M], f"{ORDER}cursor": np.array(0, dtype=np.int64)}
    rows_Q, cursor = next_of_run(state[f"{ORDER}rows_M"], int(state[f"{ORDER}cursor"]), at.quota)
    selection = Selection(rows_Q=rows_Q, decision="in order", ordered=True)
    state = {**state, f"{ORDER}cursor": np.array(cursor, dtype=np.int64)}
    return Decision(selection=selection, rows_Q=rows_Q, state=state)


# the order of the rows


def _arranged(method: Method, progress: Progress, decision: Decision, at: Situation) -> Decision:
    """The decision with its rows in training order."""
    order, rows_Q = method.order_of_segment, decision.rows_Q
    if order is not None:
        rows_Q = np.sort(rows_Q)
        scores_Q = _scores(order, rows_Q, progress, at)
        place_Q = order.arrange(scores_Q, segment_rng(at.seed, progress.segment, "arrange"))
        rows_Q = rows_Q[place_Q]
    elif not decision.selection.ordered:
        rows_Q = _shuffled(rows_Q, progress, at)
    return replace(decision, rows_Q=rows_Q)


def _shuffled(rows_Q: np.ndarray, progress: Progress, at: Situation) -> np.ndarray:
    return rows_Q[np.argsort(segment_rng(at.seed, progress.segment, "order").random(len(rows_Q)))]


def _scores(order: Any, rows: np.ndarray, progress: Progress, at: Situation) -> np.ndarray:
    """What an order ranks these rows by; random numbers where losses are not known well enough."""
    name = score_signal(order)
    if name == "loss" and at.why_uniform is not None:
        return segment_rng(at.seed, progress.segment, "unknown losses").random(len(at.pool))[rows]
    scores_N = at.signals[name] if name else at.pool.num_label_tokens_N
    return np.asarray(scores_N, dtype=np.float64)[rows]


def _warnings(mixed: tuple[Mixed, tuple[str, ...]] | None) -> tuple[str, ...]:
    return mixed[1] if mixed is not None else ()
