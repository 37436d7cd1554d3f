"""DoReMi: domain weights learned by a small proxy model, in three steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import DomainInfo, Mixture, Progress, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.mix.base import MixerBase
from dataflex.algorithms.mix.proportions import Proportions, check_proportions, resolve_proportions
from dataflex.core.domains import shares, softmax, sum_by_domain
from dataflex.core.errors import ConfigError, shown


@dataclass(frozen=True, kw_only=True)
class DoReMi(MixerBase):
    """Group-robust domain weights from the excess loss of a proxy over a reference.

    Step 1 trains the reference on the initial proportions. Step 2 trains the proxy; after every optimizer step, over
    the global batch, lambda_d = sum over the domain's label tokens of max(l - l_ref, 0) / number of them (clipped
    token by token; a domain that is absent keeps its lambda, at first 0), alpha' ~ alpha exp(eta lambda), alpha =
    (1 - c) alpha' + c / D. Rows are drawn by pi = ``initial``; the loss of domain d is weighted by alpha_d / pi_d.
    Step 3 trains on the average of alpha over the steps of step 2.

    Args:
        step: 1, 2 or 3.
        initial: pi in steps 1 and 2, and alpha before the first update.
        eta: step size of the weights, > 0.
        c: share that is spread evenly, 0 to 1.
        apply: step 2 weights the ``loss``, or draws rows by alpha (``sample``): the same expected gradient.
        normalizer: ``weights``: loss = sum a l / sum a, as in the authors' code; ``tokens``: sum a l / number of
            tokens, as in Eq. 1.
        proportions: step 3's proportions, as step 2 found them; or:
        path: the file that step 2 wrote them to.
        reference: the reference model of step 2; required there.
        center: subtract the mean of lambda over domains; with ``clip``, what upstream does. Not DoReMi.
        clip: bound of the exponent's lambda, > 0; None: none.

    Raises:
        ConfigError: a parameter out of range, missing for its step, or of another step.

    Source: arXiv 2305.10429, Alg. 1, and its code. c is 1e-3 as in the paper; the code has 1e-4.
    """

    step: Literal[1, 2, 3]
    initial: Proportions = "uniform"
    eta: float = 1.0
    c: float = 1e-3
    apply: Literal["loss", "sample"] = "loss"
    normalizer: Literal["weights", "tokens"] = "weights"
    proportions: Proportions | None = None
    path: str | None = None
    reference: str | None = None
    center: bool = False
    clip: float | None = None

    source: ClassVar[str] = "2305.10429"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step not in (1, 2, 3):
            raise ConfigError(f"step is {shown(self.step)}; it must be 1 (reference), 2 (proxy) or 3 (main model)")
        require_range("eta", self.eta, above=0)
        require_range("c", self.c, at_least=0, at_most=1)
        require_one_of("apply", self.apply, ("loss", "sample"))
        require_one_of("normalizer", self.normalizer, ("weights", "tokens"))
        check_proportions("initial", self.initial)
        if self.clip is not None:
            require_range("clip", self.clip, above=0)
        if self.proportions is not None:
            check_proportions("proportions", self.proportions)
        self._check_step()

    def _check_step(self) -> None:
        """What each step must and must not be given."""
        if self.step == 2 and not self.reference:
            raise ConfigError("reference is missing; step 2 of doremi needs the model that step 1 trained")
        if self.step == 3 and (self.proportions is None) == (self.path is None):
            raise ConfigError("step 3 of doremi needs proportions or path, one of them: what step 2 found")
        if self.step != 3 and (self.proportions is not None or self.path is not None):
            name = "path" if self.proportions is None else "proportions"
            raise ConfigError(f"{name} is given in step {self.step} of doremi, which does not use it; use initial")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"proportions_file"}) if self.path is not None else frozenset()

    @property
    def step_needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"domain_excess_sums", "domain_tokens"}) if self.step == 2 else frozenset()

    def init(self, domains: DomainInfo) -> State:
        name = "proportions" if self.proportions is not None else "initial"
        initial_D = resolve_proportions(name, getattr(self, name), domains, self.sizes_D(domains))
        if self.step != 2:
            return {"proportions_D": initial_D}
        return {
            "proportions_D": initial_D,
            "alpha_D": initial_D,
            "lambda_D": np.zeros(len(domains)),
            "alpha_sum_D": np.zeros(len(domains)),
            "num_updates": np.array(0, dtype=np.int64),
        }

    def observe(self, state: State, signals: Signals, progress: Progress) -> State:
        if self.step != 2:
            return state
        sums_D = np.asarray(signals["domain_excess_sums"], dtype=np.float64)
        tokens_D = np.asarray(signals["domain_tokens"], dtype=np.float64)
        seen_D = (tokens_D > 0) & np.isfinite(sums_D)
        lambda_D = np.divide(sums_D, tokens_D, out=np.array(state["lambda_D"]), where=seen_D)
        alpha_D = self.updated(state["alpha_D"], lambda_D)
        return {
            **state,
            "alpha_D": alpha_D,
            "lambda_D": lambda_D,
            "alpha_sum_D": state["alpha_sum_D"] + alpha_D,
            "num_updates": state["num_updates"] + 1,
        }

    def updated(self, alpha_D: np.ndarray, lambda_D: np.ndarray) -> np.ndarray:
        """Alpha after one optimizer step.

        >>> proxy = DoReMi(step=2, reference="ref")
        >>> proxy.updated(np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.0, 0.5])).round(6).tolist()
        [0.492165, 0.24194, 0.265895]
        """
        push_D = lambda_D - lambda_D.mean() if self.center else lambda_D
        push_D = push_D if self.clip is None else np.clip(push_D, -self.clip, self.clip)
        with np.errstate(divide="ignore"):
            alpha_D = softmax(np.log(alpha_D) + self.eta * push_D)
        return (1 - self.c) * alpha_D + self.c / len(alpha_D)

    def mix(
        self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator
    ) -> tuple[Mixture, State]:
        if self.step != 2:
            found = signals.get("proportions_file")
            proportions_D = np.array(state["proportions_D"]) if found is None else shares(found)
            return Mixture(proportions_D=proportions_D, decision="fixed"), {**state, "proportions_D": proportions_D}
        proportions_D = np.array(state["alpha_D" if self.apply == "sample" else "proportions_D"])
        mixture = Mixture(
            proportions_D=proportions_D,
            decision="learned" if self.apply == "sample" else "fixed",
            columns_D={"alpha": state["alpha_D"], "excess": state["lambda_D"], "average": average_alpha(state)},
            notes={"num_updates": int(state["num_updates"]), **self._marks()},
        )
        return mixture, {**state, "proportions_D": proportions_D}

    def domain_weights(self, state: State) -> np.ndarray | None:
        if self.step != 2 or self.apply == "sample":
            return None
        return importance(state["alpha_D"], state["proportions_D"])

    def learned(self, state: State) -> np.ndarray | None:
        return average_alpha(state) if self.step == 2 else None

    def _marks(self) -> dict[str, Any]:
        """Parameters under which this is not DoReMi, for the record."""
        return {"compatibility": "center, clip"} if self.center or self.clip is not None else {}


def average_alpha(state: State) -> np.ndarray:
    """The result of step 2: alpha averaged over the updates, the initial one not among them; that one before any."""
    num_updates = int(state["num_updates"])
    return np.array(state["alpha_D"]) if num_updates == 0 else state["alpha_sum_D"] / num_updates


def importance(alpha_D: np.ndarray, pi_D: np.ndarray) -> np.ndarray:
    """a_d = alpha_d / pi_d over the domains that are drawn, so that sum pi_d a_d = 1; 0 for the others.

    >>> importance(np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])).tolist()
    [2.0, 2.0, 0.0]
    """
    drawn_D = pi_D > 0
    alpha_D = shares(np.where(drawn_D, alpha_D, 0.0))
    return np.divide(alpha_D, pi_D, out=np.zeros(len(pi_D)), where=drawn_D)


def domain_coefficients(
    weights_D: np.ndarray,
    domain_B: np.ndarray,
    tokens_D: np.ndarray,
    normalizer: Literal["weights", "tokens"] = "weights",
) -> np.ndarray:
    """Coefficients c_i of rows for loss = sum c_i S_i / sum T_i, from those of their domains; shape (B,).

    ``weights``: c_i = a_d sum(T) / sum(a T), so that the loss is sum a S / sum a T. This is the one weighting that
    changes the denominator, as DoReMi's code does.

    Args:
        weights_D: a_d, >= 0.
        domain_B: domain of each row of the micro-batch.
        tokens_D: label tokens of each domain in the *global* batch, all micro-batches and ranks.

    >>> c = domain_coefficients(np.array([0.5, 0.3, 0.2]), np.array([0, 0, 1, 2]), np.array([6, 6, 2]))
    >>> round(float((c * [6, 4, 9, 2]).sum() / 14), 6)
    1.557692
    """
    weights_D, tokens_D = np.asarray(weights_D, float), np.asarray(tokens_D, float)
    below = (weights_D * tokens_D).sum()
    if normalizer == "tokens" or below == 0:
        return weights_D[domain_B]
    return weights_D[domain_B] * (tokens_D.sum() / below)


def excess_sums(
    losses_T: Sequence[np.ndarray], reference_losses_T: Sequence[np.ndarray], domain_B: np.ndarray, num_domains: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per domain: sum over label tokens of max(l - l_ref, 0), and their number; two arrays of shape (D,).

    Clipped token by token, before any mean. Micro-batches and ranks add both up.

    Args:
        losses_T: for each row its label tokens' losses, in nats.
        reference_losses_T: the reference model's losses of the same tokens.
        domain_B: domain of each row.

    Raises:
        ConfigError: a row without a reference loss of every token.
    """
    for row, (own_T, reference_T) in enumerate(zip(losses_T, reference_losses_T, strict=True)):
        if np.shape(own_T) != np.shape(reference_T) or not np.all(np.isfinite(reference_T)):
            raise ConfigError(
                f"row {row} of the batch has {np.size(own_T)} label tokens and {np.isfinite(reference_T).sum()} "
                "reference losses; measure the reference model on the same tokens"
            )
    sums_B = [
        np.maximum(np.subtract(own_T, ref_T), 0).sum()
        for own_T, ref_T in zip(losses_T, reference_losses_T, strict=True)
    ]
    tokens_B = [np.size(own_T) for own_T in losses_T]
    return sum_by_domain(np.array(sums_B), domain_B, num_domains), sum_by_domain(
        np.array(tokens_B), domain_B, num_domains
    )
