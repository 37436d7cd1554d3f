"""From proportions to rows: exact counts of each domain, every row consumed once before any comes again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.algorithms.base import DomainInfo, Mixer, Mixture
from dataflex.core.consume import capacities, take_from_domains
from dataflex.core.domains import row_shares
from dataflex.core.draw import apportion
from dataflex.core.errors import DataFlexError


@dataclass(frozen=True, kw_only=True)
class DomainCounts:
    """Whole rows of each domain for one segment."""

    counts_D: np.ndarray  # int64, sum is the quota
    warnings: tuple[str, ...]  # where a domain gets less than its share says


def count_domains(
    mixer: Mixer,
    mixture: Mixture,
    quota: int,
    domains: DomainInfo,
    domain_N: np.ndarray,
    times_trained_N: np.ndarray,
    allowed_N: np.ndarray,
    most_D: np.ndarray | None = None,
) -> DomainCounts:
    """Apportion the quota: exact, within what each domain can give, a share that cannot be given to the others.

    Args:
        allowed_N: rows that may be drawn: with a label token, and of weight above 0 where a selector weighs them.
        most_D: rows of each domain that a selector ranks, of which each is drawn once; None without a selector.

    Raises:
        DataFlexError: all domains that have a share can together not fill the quota.
    """
    # Who may repeat within a domain without end has no capacity but that of not being empty.
    capacity_D = capacities(domain_N, len(domains), quota, times_trained_N, allowed_N, mixer.max_times)
    if most_D is not None:
        capacity_D = np.minimum(capacity_D, most_D)
    wanted_D = np.asarray(mixture.proportions_D, dtype=np.float64)
    room = int(capacity_D[wanted_D > 0].sum())
    if quota > room:
        raise DataFlexError(
            f"the quota of {quota} samples is larger than the {room} that the domains with a share can still give; "
            "set exhausted: repeat, raise max_repeats, shorten the run, or widen the proportions"
        )
    dry_D = (wanted_D > 0) & (capacity_D == 0)
    live_D = np.where(dry_D, 0.0, wanted_D)
    if mixer.unit == "tokens" and quota:
        live_D = row_shares(live_D, domains.mean_tokens_D)
    counts_D = apportion(live_D, quota, capacity_D)
    warnings = [
        f"domain {domains.names[d]} has a share of {wanted_D[d]:.4g} and no row left; the others take it"
        for d in np.flatnonzero(dry_D)
    ]
    full_D = ~dry_D & (wanted_D > 0) & (counts_D == capacity_D) & (capacity_D < quota)
    warnings += [
        f"domain {domains.names[d]} gives its last {counts_D[d]} rows; the others take the rest of its share"
        for d in np.flatnonzero(full_D)
    ]
    warnings += [
        f"domain {domains.names[d]} has a share of {wanted_D[d]:.4g}, which is no whole row of {quota}; raise "
        "update_step to give it some"
        for d in np.flatnonzero((live_D > 0) & (counts_D == 0) & ~full_D)
        if quota
    ]
    return DomainCounts(counts_D=counts_D, warnings=tuple(warnings))


def take_rows(
    mixer: Mixer,
    counts_D: np.ndarray,
    domain_N: np.ndarray,
    times_trained_N: np.ndarray,
    allowed_N: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The rows of a mixture alone, without a selector: uniform in each domain, those trained least often first.

    Returns:
        Row indices, int64, shape (sum of counts,), to be shuffled for training.
    """
    return take_from_domains(counts_D, domain_N, times_trained_N, allowed_N, rng, mixer.max_times)
