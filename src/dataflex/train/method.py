"""What decides in a run: a selector, a mixer, weighers and orders, alone or together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dataflex.algorithms.base import Progress
from dataflex.algorithms.combine import Combination, Part, check_combination, decides
from dataflex.algorithms.select.static import Static
from dataflex.core.errors import ConfigError, DataFlexError


def parameters(method: Any) -> dict[str, Any]:
    """The parameters of a component as JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(method), default=str))


@dataclass(frozen=True, kw_only=True)
class Method:
    """The components of a run by the names they were asked for, and how they meet.

    Args:
        name, selector: what chooses rows; ``Static()`` where nothing does.
        every: the selector decides at each ``every``-th decision; in between its distribution is kept.
        mixer: what says how many rows each domain gives.
        weighers: what says how much each row counts; coefficients multiply.
        orders: what arranges the chosen rows; two as one over the run, then one over the segment.
        mode, keep, normalize: how selection and mixture meet, see ``algorithms.combine``.
        weigh_warmup: optimizer steps from the first in which every coefficient is 1.
        score_budget: share of the training's FLOPs that scoring may cost; None: everything is scored.

    Raises:
        ConfigError: components that cannot be combined.
    """

    name: str = "static"
    selector: Any = field(default_factory=Static)
    every: int = 1
    mixer: Part | None = None
    weighers: tuple[Part, ...] = ()
    orders: tuple[Part, ...] = ()
    mode: Literal["mix_then_select", "select_then_mix"] = "mix_then_select"
    keep: float = 1.0
    normalize: Literal["none", "mean_one"] = "none"
    weigh_warmup: int = 0
    score_budget: float | None = None

    def __post_init__(self) -> None:
        check_combination(self.combination)
        if self.mixer is not None and getattr(self.selector, "replacement", False):
            raise ConfigError(
                f"replacement: true of {self.name} draws rows of any domain again and again, of which the mixer "
                f"{self.mixer.name} cannot take its counts; set replacement: false"
            )
        if self.order_of_run is not None and self.selects:
            raise ConfigError(
                f"the order {self.orders[0].name} is over: run and shows the whole pool, of which {self.name} chooses "
                "rows; set over: segment, or leave one out"
            )

    @property
    def combination(self) -> Combination:
        return Combination(
            selectors=(Part(name=self.name, method=self.selector, every=self.every),) if self.selects else (),
            mixers=(self.mixer,) if self.mixer is not None else (),
            weighers=self.weighers,
            orders=self.orders,
            mode=self.mode,
            keep=self.keep,
            normalize=self.normalize,
        )

    # what is asked of it

    @property
    def selects(self) -> bool:
        """True: a selector chooses rows; False: they come by the mixture, by the order, or as the host has them."""
        return not self.selector.follows_host

    @property
    def follows_host(self) -> bool:
        """True: the host's own sampler order is trained."""
        return not self.selects and self.mixer is None and not self.orders

    @property
    def serves_warmup(self) -> bool:
        return bool(getattr(self.selector, "serves_warmup", False))

    @property
    def replacement(self) -> bool:
        """True: a decision may have more rows than the pool."""
        return bool(getattr(self.selector, "replacement", False))

    @property
    def limits_passes(self) -> bool:
        """True: rows without a loss may be such as were not asked for."""
        return bool(getattr(self.selector, "limits_passes", False))

    @property
    def scores_losses(self) -> bool:
        """True: losses of the pool are measured by passes over it."""
        return (self.selects and "loss" in self.selector.needs) or any(
            score_signal(part.method) == "loss" for part in self.orders
        )

    @property
    def compares(self) -> bool:
        """True: rows are ranked by how far their loss has fallen since the start."""
        return bool(getattr(self.selector, "compares_losses", False))

    @property
    def order_of_run(self) -> Any | None:
        """The order over the run, if one is named."""
        return next((part.method for part in self.orders if part.method.over == "run"), None)

    @property
    def order_of_segment(self) -> Any | None:
        """The order over each segment, if one is named."""
        return next((part.method for part in self.orders if part.method.over == "segment"), None)

    def selector_decides(self, progress: Progress) -> bool:
        """True: the selector is asked at this decision; else what it said before is drawn from again."""
        return progress.is_warmup or decides(self.every, progress.updates_made)

    def mixer_decides(self, progress: Progress) -> bool:
        """True: the mixer is asked at this decision, which is no warm-up."""
        return self.mixer is not None and not progress.is_warmup and decides(self.mixer.every, progress.updates_made)

    def needs_at(self, progress: Progress) -> frozenset[str]:
        """Signals by pool row to measure for this decision."""
        needed = set(self.selector.needs_at(progress)) if self.selects and self.selector_decides(progress) else set()
        if self.order_of_run is not None and progress.updates_made == 0 and not progress.is_warmup:
            needed.add(score_signal(self.order_of_run))
        if self.order_of_segment is not None and not progress.is_warmup:
            needed.add(score_signal(self.order_of_segment))
        return frozenset(needed - {""})

    def domain_needs_at(self, progress: Progress) -> frozenset[str]:
        """Signals by domain to measure for this decision."""
        return (
            frozenset(self.mixer.method.needs_at(progress))
            if self.mixer and self.mixer_decides(progress)
            else frozenset()
        )

    @property
    def watches_training(self) -> bool:
        """True: losses of the training's own forwards are needed."""
        mixing = self.mixer is not None and (
            "domain_loss" in self.mixer.method.needs or bool(self.mixer.method.step_needs)
        )
        ordering = any(score_signal(part.method) == "training_loss" for part in self.orders)
        return mixing or ordering or bool(self.weighers) or "training_loss" in self.selector.needs

    def plan_note(self, progress: Progress) -> dict[str, Any]:
        """What is known of a decision before the run."""
        note = getattr(self.selector, "plan_note", None)
        return note(progress) if note is not None and self.selects else {}

    # what it returned

    def check_rows(self, rows_Q: np.ndarray, quota: int, num_rows: int, segment: int, *, of_host: bool) -> None:
        """Methods may come from other packages: what they return is checked before it is recorded.

        Args:
            num_rows: of the pool.
            of_host: the rows are of the host's own order, whose last segment may be short.

        Raises:
            DataFlexError: not ``quota`` row numbers of the pool.
        """
        wrong_size = len(rows_Q) > quota if of_host else len(rows_Q) != quota
        if wrong_size or rows_Q.ndim != 1 or rows_Q.dtype.kind not in "iu":
            raise DataFlexError(
                f"method {self.name} returned {len(rows_Q)} {rows_Q.dtype} rows for segment {segment}, whose quota is "
                f"{quota} row numbers"
            )
        outside = rows_Q[(rows_Q < 0) | (rows_Q >= num_rows)]
        if len(outside):
            raise DataFlexError(
                f"method {self.name} returned row {int(outside[0])}, but the pool has rows 0 to {num_rows - 1}"
            )

    # for the record

    @property
    def params(self) -> dict[str, Any]:
        """The selector's parameters as JSON values."""
        return parameters(self.selector)

    @property
    def title(self) -> str:
        """All components in a few words, such as ``delta_loss, mix odm, weigh loss, order folding``."""
        words = [self.name] if self.selects or self.is_plain else []
        words += [f"mix {self.mixer.name}"] if self.mixer is not None else []
        words += [f"weigh {part.name}" for part in self.weighers]
        words += [f"order {part.name}" for part in self.orders]
        return ", ".join(words)

    @property
    def is_plain(self) -> bool:
        """True: nothing but a selector."""
        return self.mixer is None and not self.weighers and not self.orders and self.every == 1

    @property
    def parts(self) -> dict[str, Any] | None:
        """All beside the selector as JSON values; None where there is nothing."""
        if self.is_plain:
            return None
        return {
            "every": self.every,
            "mix": self.mixer and _recorded(self.mixer),
            "weigh": [_recorded(part) for part in self.weighers],
            "order": [_recorded(part) for part in self.orders],
            "mode": self.mode,
            "keep": self.keep,
            "normalize": self.normalize,
            "weigh_warmup": self.weigh_warmup,
        }


def score_signal(order: Any) -> str:
    """The signal that an order ranks by; "" where it is known without measuring."""
    match order.by:
        case "length":
            return ""
        case "loss":
            return "loss" if order.loss_source == "sweep" else "training_loss"
        case "column":
            return f"column:{order.column}"
    return f"file:{order.path}"


def named_files(method: Method) -> Iterable[str]:
    """Files of scores that orders read."""
    return [part.method.path for part in method.orders if part.method.by == "file"]


def _recorded(part: Part) -> dict[str, Any]:
    return {"method": part.name, "params": parameters(part.method), "every": part.every}
