"""Mixers: the common suite, the golden traces, closed forms, edges."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.algorithms.base import DomainInfo
from dataflex.algorithms.catalog import MIXERS
from dataflex.algorithms.mix.doremi import DoReMi
from dataflex.algorithms.mix.odm import ODM
from dataflex.algorithms.mix.proportions import resolve_proportions
from dataflex.algorithms.mix.random import RandomMix
from dataflex.algorithms.mix.stages import Stages
from dataflex.algorithms.mix.static import StaticMix
from dataflex.algorithms.mix.temperature import Temperature
from dataflex.core.errors import ConfigError
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.core.seeds import segment_rng
from dataflex.testing import MixerCase, MixerSuite
from dataflex.testing.mixers import DOMAINS, run_mixer

NAN = float("nan")
STAGES = ([0, [0.7, 0.2, 0.1]], [100, [0.4, 0.4, 0.2]], [250, [0.1, 0.3, 0.6]])
LONG = SegmentPlan.dynamic(Schedule(update_step=1, update_times=400), num_epochs=1, pool_steps=1000)

CASES = [
    MixerCase(StaticMix()),
    MixerCase(StaticMix(proportions="sizes", unit="tokens")),
    MixerCase(StaticMix(proportions=(3.0, 1.0, 1.0)), in_order=True),
    MixerCase(RandomMix(), in_order=True),
    MixerCase(RandomMix(concentration=5), in_order=True),
    MixerCase(Temperature()),
    MixerCase(Temperature(temperature=3.0, unit="tokens")),
    MixerCase(Temperature(temperature=math.inf, exhausted="redistribute")),
    MixerCase(Stages(stages=STAGES, between="linear"), in_order=True),
    MixerCase(Stages(stages=([0, "uniform"], [2, "sizes"]), max_repeats=3)),
    MixerCase(ODM()),
    MixerCase(ODM(form="gibbs", reward_scale=15.0, eps_min=0.03, exponent_floor=-5.0, initial="sizes")),
    MixerCase(ODM(form="gibbs", importance=False)),
    MixerCase(DoReMi(step=1)),
    MixerCase(DoReMi(step=2, reference="ref")),
    MixerCase(DoReMi(step=2, reference="ref", apply="sample", initial="sizes")),
    MixerCase(DoReMi(step=2, reference="ref", center=True, clip=5.0)),
    MixerCase(DoReMi(step=3, path="found.json")),
    MixerCase(DoReMi(step=3, proportions=(0.2, 0.3, 0.5)), in_order=True),
]


class TestMixers(MixerSuite):
    @pytest.fixture(params=CASES, ids=repr)
    def case(self, request) -> MixerCase:
        return request.param


def test_every_mixer_of_the_catalog_has_a_case():
    assert {type(case.mixer) for case in CASES} == set(MIXERS.values())


def of_sizes(*sizes: int) -> DomainInfo:
    names = tuple(f"d{i}" for i in range(len(sizes)))
    return DomainInfo(names=names, num_rows_D=np.array(sizes), num_label_tokens_D=10 * np.array(sizes))


def mixed(mixer, step: int = 0, domains: DomainInfo = DOMAINS, signals=None, state=None, segment: int = 0):
    progress = LONG.progress(LONG.segment_at(step))
    state = mixer.init(domains) if state is None else state
    return mixer.mix(state, signals or {}, progress, segment_rng(0, segment, "mix"))


# --- static, random, temperature, stages ---


def test_proportions_by_name_leave_out_what_is_not_named():
    given_D = resolve_proportions("proportions", {"code": 1.0, "web": 3.0}, DOMAINS, DOMAINS.num_rows_D)
    assert given_D.tolist() == [0.75, 0, 0.25]


def test_sizes_are_rows_or_tokens_as_the_unit_says():
    by_rows = mixed(StaticMix(proportions="sizes"))[0].proportions_D
    by_tokens = mixed(StaticMix(proportions="sizes", unit="tokens"))[0].proportions_D
    assert by_rows == pytest.approx(np.array([900, 90, 10]) / 1000)
    assert by_tokens == pytest.approx(np.array([90_000, 45_000, 700]) / 135_700)


@pytest.mark.parametrize(
    ("value", "said"),
    [((0.5, 0.5), "2 numbers; the data has 3 domains: web, books, code"), ({"wbe": 1.0}, "'wbe' .did you mean 'web'")],
)
def test_proportions_of_other_domains_are_refused_with_the_names(value, said):
    with pytest.raises(ConfigError, match=said):
        StaticMix(proportions=value).init(DOMAINS)


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [(1.0, [0.900901, 0.090090, 0.009009]), (3.0, [0.595379, 0.276350, 0.128271]), (math.inf, [1 / 3] * 3)],
)
def test_the_trace_of_temperature(temperature, wanted):
    made = mixed(Temperature(temperature=temperature), domains=of_sizes(1000, 100, 10))[0]
    assert made.proportions_D == pytest.approx(wanted, abs=2e-6)


def test_extreme_temperatures_do_not_overflow_and_empty_domains_get_nothing():
    cold = Temperature(temperature=1e-12).init(of_sizes(10**9, 10**9 - 1, 0))["proportions_D"]
    assert cold == pytest.approx([1, 0, 0])
    assert Temperature(temperature=math.inf).init(of_sizes(5, 0, 1))["proportions_D"].tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (0, (0.7, 0.2, 0.1)),
        (50, (0.55, 0.3, 0.15)),
        (100, (0.4, 0.4, 0.2)),
        (175, (0.25, 0.35, 0.4)),
        (300, (0.1, 0.3, 0.6)),
    ],
)
def test_the_trace_of_linear_stages(step, wanted):
    assert mixed(Stages(stages=STAGES, between="linear"), step)[0].proportions_D == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(("step", "stage"), [(0, 0), (99, 0), (100, 1), (249, 1), (250, 2), (399, 2)])
def test_stages_by_step_hold_until_the_next(step, stage):
    made = mixed(Stages(stages=STAGES), step)[0]
    assert made.proportions_D == pytest.approx(STAGES[stage][1])
    assert made.notes == {"stage": stage}


def test_a_random_mixture_is_new_at_each_decision_and_uniform_over_all_mixtures():
    drawn_SxD = np.stack([mixed(RandomMix(), segment=s)[0].proportions_D for s in range(4000)])
    assert len(np.unique(drawn_SxD[:, 0])) == 4000
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18, P(p_0 > x) = (1 - x)^2.
    assert np.all(np.abs(drawn_SxD.mean(axis=0) - 1 / 3) < 4.5 * math.sqrt(1 / 18 / 4000))
    for x in (0.1, 0.5, 0.8):
        p = (1 - x) ** 2
        assert abs((drawn_SxD[:, 0] > x).mean() - p) < 4.5 * math.sqrt(p * (1 - p) / 4000)


def test_concentration_narrows_it_as_the_dirichlet_variance_says():
    drawn = np.array([mixed(RandomMix(concentration=4), segment=s)[0].proportions_D[0] for s in range(4000)])
    variance = (1 / 3) * (2 / 3) / (3 * 4 + 1)
    assert drawn.var() == pytest.approx(variance, rel=0.12)


# --- ODM ---

REWARDS = [(3, 2, 1), (2.8, NAN, 0.9), (2.5, 2.2, 0.8)]
ODM_TRACES = [
    (
        ODM(form="gibbs"),
        [(0.347743, 0.332861, 0.319396), (0.360395, 0.320654, 0.318951), (0.357160, 0.328249, 0.314591)],
    ),
    (
        ODM(form="gibbs", importance=False),
        [(0.338091, 0.333281, 0.328628), (0.342530, 0.329105, 0.328365), (0.341928, 0.331372, 0.326700)],
    ),
    (ODM(), [(0.474695, 0.295596, 0.229710), (0.573358, 0.229074, 0.197568), (0.551491, 0.270312, 0.178197)]),
]


@pytest.mark.parametrize(("mixer", "wanted"), ODM_TRACES, ids=["gibbs-importance", "gibbs", "proportional"])
def test_the_traces_of_odm(mixer, wanted):
    _, state = mixed(mixer, 0, signals={"domain_loss": np.full(3, NAN)})
    for step, losses, proportions in zip((10, 20, 30), REWARDS, wanted, strict=True):
        made, state = mixed(mixer, step, signals={"domain_loss": np.array(losses)}, state=state)
        assert made.proportions_D == pytest.approx(proportions, abs=2e-6)


def test_the_traces_of_odm_are_those_of_another_writing():
    r, pi, eps_before = np.zeros(3), np.full(3, 1 / 3), 1 / 3
    for t, losses, wanted in zip((10, 20, 30), REWARDS, ODM_TRACES[0][1], strict=True):
        for d, loss in enumerate(losses):
            if not math.isnan(loss):
                r[d] = 0.9 * r[d] + 0.1 * loss / pi[d]
        powers = [math.exp(eps_before * v) for v in r]
        eps_before = min(1 / 3, math.sqrt(math.log(3) / 3 / t))
        pi = np.array([(1 - 3 * eps_before) * p / sum(powers) + eps_before for p in powers])
        assert pi == pytest.approx(wanted, abs=2e-6)


def test_odm_keeps_the_initial_mixture_until_exploring_is_less_than_all():
    mixer, losses = ODM(initial=(0.6, 0.3, 0.1)), {"domain_loss": np.array([3.0, 2, 1])}
    state = mixed(mixer, 5, signals=losses)[1]  # t counts from here
    for step in range(6, 12):
        made, state = mixed(mixer, step, signals=losses, state=state)
        initial = step - 5 <= 3 * math.log(3)
        assert made.decision == ("initial" if initial else "learned")
        assert (made.proportions_D == pytest.approx([0.6, 0.3, 0.1])) == initial


def test_plain_gibbs_ends_uniform_while_proportional_keeps_what_it_learned():
    far = SegmentPlan.dynamic(Schedule(update_step=100_000, update_times=10), num_epochs=1, pool_steps=9)
    ends = {}
    for name, mixer in {"gibbs": ODM(form="gibbs", importance=False), "proportional": ODM()}.items():
        state = mixer.init(DOMAINS)
        for segment in far.segments():
            losses = {"domain_loss": np.array([3.0, 2, 1])}
            made, state = mixer.mix(state, losses, far.progress(segment), segment_rng(0, 0, "mix"))
        ends[name] = made.proportions_D
    assert np.ptp(ends["gibbs"]) < 0.01
    assert ends["proportional"] == pytest.approx(np.exp([3, 2, 1]) / np.exp([3, 2, 1]).sum(), abs=0.002)


def test_a_loss_that_is_huge_or_no_number_neither_overflows_nor_counts():
    state = mixed(ODM(), 0, signals={"domain_loss": np.full(3, NAN)})[1]
    made, state = mixed(ODM(), 50, signals={"domain_loss": np.array([1e9, math.inf, -math.inf])}, state=state)
    assert np.all(np.isfinite(made.proportions_D))
    assert state["rewards_D"].tolist() == [pytest.approx(0.1 * math.exp(20)), 0, 0]


def test_no_domain_falls_below_the_lowest_share():
    mixer, state = ODM(form="gibbs", reward_scale=15.0, eps_min=0.1), None  # the decay alone is at 0.03 in the end
    for step in range(0, 400, 10):
        made, state = mixed(mixer, step, signals={"domain_loss": np.array([4.0, 2, 0.1])}, state=state)
        assert made.proportions_D.min() >= 0.1 - 1e-12
    floored = dataclasses.replace(mixer, exponent_floor=-0.5)
    made = mixed(floored, step, signals={"domain_loss": np.array([4.0, 2, 0.1])}, state=state)[0]
    assert made.proportions_D[2] >= 0.7 * np.exp(-0.5) / (1 + 2 * np.exp(-0.5)) + 0.1 - 1e-12


# --- DoReMi ---


def test_alpha_follows_the_trace_and_the_average_leaves_out_the_start():
    proxy = DoReMi(step=2, reference="ref", initial=(0.5, 0.3, 0.2))
    state, tokens_D = proxy.init(DOMAINS), np.array([10.0, 20, 40])
    wanted = [(0.492165, 0.241940, 0.265895), (0.478492, 0.287430, 0.234078)]
    for lambda_D, alpha_D in zip([(0.2, 0, 0.5), (0.1, 0.3, 0)], wanted, strict=True):
        signals = {"domain_excess_sums": np.array(lambda_D) * tokens_D, "domain_tokens": tokens_D}
        state = proxy.observe(state, signals, LONG.progress(LONG.segment_at(0)))
        assert state["alpha_D"] == pytest.approx(alpha_D, abs=2e-6)
    made = mixed(proxy, 5, state=state)[0]
    assert made.columns_D["average"] == pytest.approx([0.485329, 0.264685, 0.249986], abs=2e-6)


def test_a_domain_that_is_absent_keeps_its_excess():
    proxy = DoReMi(step=2, reference="ref")
    state = {**proxy.init(DOMAINS), "lambda_D": np.array([0.3, 0.2, 0.1])}
    signals = {"domain_excess_sums": np.array([4.0, 0, 0]), "domain_tokens": np.array([8.0, 0, 2])}
    state = proxy.observe(state, signals, LONG.progress(LONG.segment_at(0)))
    assert state["lambda_D"] == pytest.approx([0.5, 0.2, 0])


def test_the_weights_of_domains_multiply_to_alpha_under_the_mixture():
    proxy = DoReMi(step=2, reference="ref", initial=(0.5, 0.5, 0.0))
    state = {**proxy.init(DOMAINS), "alpha_D": np.array([0.2, 0.6, 0.2])}
    # The third domain is never drawn, so that its alpha goes to the others in proportion.
    assert proxy.domain_weights(state) == pytest.approx([0.5, 1.5, 0])
    assert dataclasses.replace(proxy, apply="sample").domain_weights(state) is None


def test_sampling_by_alpha_mixes_by_alpha():
    proxy = DoReMi(step=2, reference="ref", apply="sample")
    state = {**proxy.init(DOMAINS), "alpha_D": np.array([0.2, 0.6, 0.2])}
    assert mixed(proxy, state=state)[0].proportions_D.tolist() == [0.2, 0.6, 0.2]
    assert mixed(dataclasses.replace(proxy, apply="loss"), state=state)[0].proportions_D == pytest.approx([1 / 3] * 3)


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=6), st.floats(0, 1), st.integers(0, 5))
def test_alpha_stays_a_mixture_with_at_least_c_over_d_each(lambda_D, c, which):
    proxy, num_domains = DoReMi(step=2, reference="ref", c=c), len(lambda_D)
    alpha_D = np.eye(num_domains)[which % num_domains] * (1 - 1e-3) + 1e-3 / num_domains
    new_D = proxy.updated(alpha_D, np.array(lambda_D))
    assert new_D.sum() == pytest.approx(1)
    assert np.all(new_D >= c / num_domains - 1e-12)


def test_equal_excess_moves_nothing_but_the_smoothing():
    alpha_D = np.array([0.5, 0.3, 0.2])
    assert DoReMi(step=2, reference="r", c=0).updated(alpha_D, np.full(3, 7.0)) == pytest.approx(alpha_D)


def test_step_three_takes_what_step_two_found():
    by_value = mixed(DoReMi(step=3, proportions=(0.2, 0.3, 0.5)))[0].proportions_D
    by_file = mixed(DoReMi(step=3, path="f"), signals={"proportions_file": np.array([0.2, 0.3, 0.5])})[0].proportions_D
    assert by_value.tolist() == by_file.tolist()


def test_doremi_raises_what_can_be_learned_and_leaves_noise_and_the_easy_alone():
    """A toy of three domains: the loss of each falls at its own rate to where the reference stands.

    Hard and learnable: a high loss that falls; noise: a high loss that nobody lowers; easy: fallen already.
    """
    proxy = DoReMi(step=2, reference="ref", eta=1.0)
    state = proxy.init(DOMAINS)
    reference, loss, rate = np.array([1.0, 4.0, 0.2]), np.array([5.0, 4.0, 0.25]), np.array([0.05, 0.0, 0.05])
    for _ in range(100):
        signals = {"domain_excess_sums": np.maximum(loss - reference, 0) * 50, "domain_tokens": np.full(3, 50.0)}
        state = proxy.observe(state, signals, LONG.progress(LONG.segment_at(0)))
        loss = loss - rate * proxy.domain_weights(state) * (loss - reference)
    average = state["alpha_sum_D"] / 100
    assert average[0] > 0.9
    assert average[1] < 1 / 3
    assert average[2] < 1 / 3


# --- parameters ---

BAD = [
    (StaticMix, {"proportions": v}) for v in ((), (0.0, 0.0), (-1.0, 2.0), (NAN, 1.0), "equal", 3, {"a": -1.0}, (True,))
]
BAD += [(StaticMix, {"unit": "token"}), (StaticMix, {"exhausted": "stop"}), (StaticMix, {"max_repeats": 0})]
BAD += [(Temperature, {"temperature": v}) for v in (0, -1, NAN, "1", -math.inf)]
BAD += [(RandomMix, {"concentration": 0}), (RandomMix, {"initial": "size"})]
BAD += [(Stages, {"stages": v}) for v in ((), ([5, [1.0]],), ([0, [1.0]], [0, [1.0]]), ([0],), (3,), ([0.0, [1.0]],))]
BAD += [(ODM, {"smoothing": 1.0}), (ODM, {"form": "exp3"}), (ODM, {"eps_min": -0.1}), (ODM, {"exponent_floor": 1.0})]
BAD += [(ODM, {"reward_scale": 15.0})]
BAD += [(DoReMi, {"step": v}) for v in (0, 4, 2, 3)]
BAD += [(DoReMi, {"step": 1, **p}) for p in ({"eta": 0}, {"c": 1.5}, {"path": "x"}, {"clip": -1}, {"apply": "rows"})]


@pytest.mark.parametrize(("cls", "params"), BAD, ids=[f"{cls.__name__}-{params}" for cls, params in BAD])
def test_a_bad_parameter_is_one_sentence_that_names_its_key(cls, params):
    with pytest.raises(ConfigError) as caught:
        cls(**params)
    assert any(word in str(caught.value) for word in [*params, "stage", "reference"])
    assert "\n" not in str(caught.value)


def test_redistributing_trains_once_and_a_limit_beside_it_is_refused():
    assert StaticMix(exhausted="redistribute").max_times == 1
    assert StaticMix(max_repeats=4).max_times == 4
    assert StaticMix().max_times is None
    with pytest.raises(ConfigError, match="max_repeats is 2 beside exhausted: redistribute"):
        StaticMix(exhausted="redistribute", max_repeats=2)


def test_the_suite_sees_a_mixer_that_writes_to_its_signals():
    class Careless(ODM):
        def mix(self, state, signals, progress, rng):
            signals["domain_loss"][0] = 0
            return super().mix(state, signals, progress, rng)

    with pytest.raises(ValueError, match="read-only"):
        run_mixer(MixerCase(Careless()))
