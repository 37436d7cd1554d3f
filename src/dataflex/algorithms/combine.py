"""What may be combined in one run, and the sentence that refuses the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.core.compose import MODES
from dataflex.core.errors import ConfigError, shown

# What a method is for the rules below, by its name in the catalog; another package's class says it by an attribute
# ``traits``, a set of these words. Methods still to come are named already, so that none comes without its rule.
TRAITS: dict[str, frozenset[str]] = {
    "static": frozenset({"keeps_rows"}),
    "replay": frozenset({"keeps_rows", "repeats_rows"}),
    "delta_loss": frozenset({"compares_with_earlier"}),
    "infobatch": frozenset({"selects_alone", "breaks_under_mean_one"}),
    "rho1": frozenset({"masks_labels"}),
    "focal": frozenset({"weighs_tokens"}),
    "adapt": frozenset({"needs_segment_ids"}),
    "joint": frozenset({"needs_segment_ids"}),
    "domain": frozenset({"weighs_domains"}),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One component of a run."""

    name: str
    method: Any  # the value
    every: int = 1  # it decides at each ``every``-th decision of the run

    @property
    def traits(self) -> frozenset[str]:
        return TRAITS.get(self.name, frozenset()) | frozenset(getattr(self.method, "traits", ()))


@dataclass(frozen=True, kw_only=True)
class Combination:
    """All components of a run, and how selection and mixture meet."""

    selectors: Sequence[Part] = ()
    mixers: Sequence[Part] = ()
    weighers: Sequence[Part] = ()
    orders: Sequence[Part] = ()
    mode: Literal["mix_then_select", "select_then_mix"] = "mix_then_select"
    keep: float = 1.0  # select_then_mix: the quota is this share of the proposals
    normalize: Literal["none", "mean_one"] = "none"


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is known of the run beside its components."""

    packed_without_segment_ids: bool = False
    host_loss: str | None = None  # a loss function of the host's that replaces the plain one, e.g. dft
    fused_loss: str | None = None  # a fused loss that returns no loss of single rows
    rows_in_scope: int | None = None  # of one micro-batch over all ranks
    pool_changes: bool = False  # rows enter or leave the pool during the run
    domain_quotas_D: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    domain_candidates_D: np.ndarray | None = None  # of a selector that draws candidates first (rho, greats)


def decides(every: int, decision: int) -> bool:
    """True: the component decides now; in between its distribution is kept and fresh rows are drawn.

    Args:
        decision: number of decisions of the run before this one, warm-ups not counted.

    >>> [decides(3, decision) for decision in range(5)]
    [True, False, False, True, False]
    """
    return decision % every == 0


def check_combination(combination: Combination, circumstances: Circumstances | None = None) -> None:
    """Raise the sentence for the first thing that cannot be combined.

    Raises:
        ConfigError: see each rule below.
    """
    c, at = combination, circumstances or Circumstances()
    require_one_of("mode", c.mode, MODES)
    require_range("keep", c.keep, above=0, at_most=1)
    require_one_of("normalize", c.normalize, ("none", "mean_one"))
    for part in (*c.selectors, *c.mixers, *c.weighers, *c.orders):
        require_range(f"every of {part.name}", part.every, at_least=1)
    for part in (*c.weighers, *c.orders):
        if part.every != 1:
            raise ConfigError(
                f"every of {part.name} is {part.every}; weighers act at every step and orders on every segment, leave "
                "it out"
            )
    _check_numbers(c)
    _check_rows(c)
    _check_order(c)
    _check_weights(c, at)
    _check_data(c, at)


def _check_numbers(c: Combination) -> None:
    for kind, parts in (("selectors", c.selectors), ("mixers", c.mixers)):
        if len(parts) > 1:
            raise ConfigError(
                f"{len(parts)} {kind} are named ({_names(parts)}), and each decides the same thing; name one, or write "
                "a method that chains them"
            )
    if c.mode == "select_then_mix" and not (c.selectors and c.mixers):
        raise ConfigError("mode: select_then_mix needs a selector and a mixer; leave mode out, or name both")
    if c.keep != 1.0 and c.mode != "select_then_mix":
        raise ConfigError(f"keep is {c.keep:g} beside mode: {c.mode}, which does not use it; set mode: select_then_mix")


def _check_rows(c: Combination) -> None:
    """Selectors that leave no room for another decision on rows."""
    for part in c.selectors:
        if "repeats_rows" in part.traits and c.mixers:
            raise ConfigError(
                f"{part.name} repeats recorded rows, which the mixer {c.mixers[0].name} would change; leave one out"
            )
        if "selects_alone" in part.traits and c.mixers:
            raise ConfigError(
                f"{part.name} gives the rows it keeps a weight for those it drops, which the mixer {c.mixers[0].name} "
                "would make wrong; leave one out"
            )
        if "breaks_under_mean_one" in part.traits and c.normalize == "mean_one":
            raise ConfigError(
                f"normalize: mean_one cancels the weights by which {part.name} stays unbiased; set normalize: none"
            )


def _check_order(c: Combination) -> None:
    over = [getattr(part.method, "over", "segment") for part in c.orders]
    if len(c.orders) > 1 and over != ["run", "segment"]:
        raise ConfigError(
            f"the orders {_names(c.orders)} are over {' and '.join(over)}; two orders compose only as the first over: "
            "run and the second over: segment"
        )
    for part in c.orders:
        if getattr(part.method, "over", "segment") != "run":
            continue
        redrawing = [p for p in c.selectors if "keeps_rows" not in p.traits] + list(c.mixers)
        if redrawing:
            raise ConfigError(
                f"the order {part.name} is over: run, and {redrawing[0].name} draws other rows in every segment; set "
                "over: segment, or leave one out"
            )


def _check_weights(c: Combination, at: Circumstances) -> None:
    domain_weighers = [p.name for p in c.weighers if "weighs_domains" in p.traits]
    for part in c.mixers:
        if part.name == "doremi" and getattr(part.method, "step", 0) == 2 and part.method.apply == "loss":
            if domain_weighers:
                raise ConfigError(
                    f"step 2 of doremi weights the loss of each domain, and so does {domain_weighers[0]}; set apply: "
                    "sample, or leave one out"
                )
            _check_loss(part.name, at)
    masking = [p.name for p in c.weighers if "masks_labels" in p.traits]
    by_token = [p.name for p in c.weighers if "weighs_tokens" in p.traits]
    if masking and by_token:
        raise ConfigError(
            f"{masking[0]} keeps the tokens of high excess loss and {by_token[0]} weighs them by their probability; "
            "leave one out"
        )
    for part in c.weighers:
        _check_loss(part.name, at)
        if "needs_segment_ids" in part.traits and at.packed_without_segment_ids:
            raise ConfigError(
                f"{part.name} needs to know which positions of a packed row belong together, and the collator does not "
                "say; turn packing off, or use one that gives position ids by sample"
            )
        if at.rows_in_scope is not None and hasattr(part.method, "check_rows_in_scope"):
            part.method.check_rows_in_scope(at.rows_in_scope)


def _check_loss(name: str, at: Circumstances) -> None:
    if at.host_loss is not None:
        raise ConfigError(
            f"{name} weighs the plain loss of each row, and the loss function {shown(at.host_loss)} replaces it; "
            "leave one out"
        )
    if at.fused_loss is not None:
        raise ConfigError(
            f"{name} needs the loss of each row, which the fused loss of {at.fused_loss} does not return; turn it off"
        )


def _check_data(c: Combination, at: Circumstances) -> None:
    if at.domain_candidates_D is not None:
        short_D = np.asarray(at.domain_candidates_D) < np.asarray(at.domain_quotas_D)
        if short_D.any():
            d = int(np.argmax(short_D))
            raise ConfigError(
                f"{_names(c.selectors)} draws {int(at.domain_candidates_D[d])} candidates of domain {d}, of which "
                f"{int(at.domain_quotas_D[d])} are to be trained; raise the number of candidates, or lower the share"
            )
    for part in c.selectors:
        if "compares_with_earlier" in part.traits and at.pool_changes:
            raise ConfigError(
                f"{part.name} compares each row's loss with an earlier one, and rows enter or leave the pool during "
                "the run; keep the pool as it is, or choose another selector"
            )


def _names(parts: Sequence[Part]) -> str:
    return ", ".join(part.name for part in parts)
