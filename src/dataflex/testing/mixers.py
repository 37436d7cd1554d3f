"""The checks that every mixer must pass."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dataflex.algorithms.base import DomainInfo, Mixer, Mixture, State
from dataflex.core.seeds import segment_rng
from dataflex.testing.selectors import PLAN, frozen_state, read_only, saved_and_loaded
from dataflex.testing.values import check_value, described, same_arrays

DOMAINS = DomainInfo(
    names=("web", "books", "code"),
    num_rows_D=np.array([900, 90, 10]),
    num_label_tokens_D=np.array([90_000, 45_000, 700]),
)


@dataclasses.dataclass(frozen=True)
class MixerCase:
    """A mixer, the signals that are not known here, and what it is excused from.

    ``signals`` maps a name to a function of (domains, step). ``in_order``: proportions are written in the order of the
    domains or drawn in it, so that other domains do not fit.
    """

    mixer: Any
    signals: Mapping[str, Callable[[DomainInfo, int], np.ndarray]] = dataclasses.field(default_factory=dict)
    in_order: bool = False

    def __repr__(self) -> str:
        return described(self.mixer)

    def measure(self, wanted: frozenset[str], domains: DomainInfo, step: int) -> dict[str, np.ndarray]:
        """The signals of a step, read-only. A domain's loss follows from its size; at some steps it has none."""
        sizes_D = domains.num_rows_D
        unseen_D = (sizes_D % 7 == step % 3) | (sizes_D == 0)
        losses_D = np.where(unseen_D, np.nan, 1 + np.log1p(sizes_D) / (5 + step))
        known = {
            "domain_loss": lambda: losses_D,
            "proportions_file": lambda: np.sqrt(sizes_D) / np.sqrt(sizes_D).sum(),
            "domain_tokens": lambda: np.where(unseen_D, 0.0, 10.0 + sizes_D),
            "domain_excess_sums": lambda: np.where(unseen_D, 0.0, (10.0 + sizes_D) * np.nan_to_num(losses_D) / 9),
        }
        return {
            name: read_only(self.signals[name](domains, step) if name in self.signals else known[name]())
            for name in sorted(wanted)
        }


def run_mixer(
    case: MixerCase,
    domains: DomainInfo = DOMAINS,
    *,
    seed: int = 0,
    between: Callable[[State], State] = frozen_state,
) -> list[tuple[Mixture, np.ndarray | None, State]]:
    """Every decision of the plan with the domain weights after it and the state; steps are observed in between."""
    mixer, made = case.mixer, []
    state = between(mixer.init(domains))
    for segment in PLAN.segments():
        progress = PLAN.progress(segment)
        if not progress.is_warmup:
            wanted = mixer.needs_at(progress)
            assert wanted <= mixer.needs, f"{wanted} is asked for, {mixer.needs} is declared"
            signals = case.measure(wanted, domains, progress.step)
            mixture, state = mixer.mix(state, signals, progress, segment_rng(seed, segment.index, "mix"))
            state = between(state)
            made.append((mixture, mixer.domain_weights(state), state))
        for step in range(segment.start, segment.stop):
            state = between(mixer.observe(state, case.measure(mixer.step_needs, domains, step), progress))
    return made


def same_mixtures(ones, others) -> bool:
    return len(ones) == len(others) and all(
        np.array_equal(a.proportions_D, b.proportions_D)
        and (a.decision, a.notes, a.warnings) == (b.decision, b.notes, b.warnings)
        and same_arrays(a.columns_D, b.columns_D)
        and same_arrays(state_a, state_b)
        for (a, _, state_a), (b, _, state_b) in zip(ones, others, strict=True)
    )


class MixerSuite:
    """The checks; a subclass provides the fixture ``case``. Inputs are read-only in all of them."""

    def test_it_is_a_frozen_value_that_serves_the_protocol_and_names_its_source(self, case):
        check_value(case.mixer, Mixer)
        assert case.mixer.unit in ("rows", "tokens")

    def test_every_mixture_has_a_share_of_each_domain_and_they_add_up_to_one(self, case):
        made = run_mixer(case)
        assert made
        for mixture, _, _ in made:
            assert mixture.proportions_D.shape == (3,)
            assert mixture.proportions_D.dtype == np.float64
            assert np.all(mixture.proportions_D >= 0)
            assert abs(mixture.proportions_D.sum() - 1) < 1e-12
            assert all(column_D.shape == (3,) for column_D in mixture.columns_D.values())

    def test_the_state_says_with_which_proportions_a_warm_up_is_mixed(self, case):
        proportions_D = case.mixer.init(DOMAINS)["proportions_D"]
        assert proportions_D.shape == (3,)
        assert abs(proportions_D.sum() - 1) < 1e-12

    def test_weights_of_domains_are_finite_and_average_to_one_under_the_mixture(self, case):
        for mixture, weights_D, _ in run_mixer(case):
            if weights_D is not None:
                assert np.all(np.isfinite(weights_D) & (weights_D >= 0))
                assert abs((mixture.proportions_D * weights_D).sum() - 1) < 1e-12

    def test_the_same_arguments_give_the_same_result(self, case):
        assert same_mixtures(run_mixer(case), run_mixer(case))

    def test_a_run_that_is_saved_and_loaded_after_every_step_goes_on_as_if_nothing_had_happened(self, case):
        assert same_mixtures(run_mixer(case, between=saved_and_loaded), run_mixer(case))

    def test_notes_are_plain_json_and_warnings_are_sentences(self, case):
        for mixture, _, _ in run_mixer(case):
            assert json.loads(json.dumps(mixture.notes, allow_nan=False)) == mixture.notes
            assert mixture.decision.isidentifier()
            assert all(isinstance(w, str) and w and "\n" not in w for w in mixture.warnings)

    def test_permuting_the_domains_permutes_the_shares(self, case):
        if case.in_order:
            return  # written, or drawn, in the order of the domains
        order = np.array([2, 0, 1])
        permuted = DomainInfo(
            names=tuple(DOMAINS.names[d] for d in order),
            num_rows_D=DOMAINS.num_rows_D[order],
            num_label_tokens_D=DOMAINS.num_label_tokens_D[order],
        )
        for (one, _, _), (other, _, _) in zip(run_mixer(case), run_mixer(case, permuted), strict=True):
            np.testing.assert_allclose(one.proportions_D[order], other.proportions_D, rtol=1e-12, atol=0)

    def test_one_domain_has_it_all(self, case):
        if case.in_order and not hasattr(case.mixer, "concentration"):
            return
        alone = DomainInfo(names=("web",), num_rows_D=np.array([9]), num_label_tokens_D=np.array([90]))
        assert all(mixture.proportions_D.tolist() == [1.0] for mixture, _, _ in run_mixer(case, alone))

    def test_a_domain_without_rows_makes_no_share_that_is_no_number(self, case):
        empty = dataclasses.replace(
            DOMAINS, num_rows_D=np.array([900, 0, 10]), num_label_tokens_D=np.array([90_000, 0, 700])
        )
        for mixture, _, _ in run_mixer(case, empty):
            assert np.all(mixture.proportions_D >= 0)
            assert abs(mixture.proportions_D.sum() - 1) < 1e-12
