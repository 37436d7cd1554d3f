"""Weighers: the common suite, the golden traces, closed forms, edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.algorithms.catalog import WEIGHTERS
from dataflex.algorithms.mix.doremi import domain_coefficients, excess_sums
from dataflex.algorithms.weigh.adapt import Adapt
from dataflex.algorithms.weigh.apply import weigh
from dataflex.algorithms.weigh.column import Column
from dataflex.algorithms.weigh.focal import Focal
from dataflex.algorithms.weigh.loss import LossWeigher
from dataflex.algorithms.weigh.rho1 import Rho1
from dataflex.algorithms.weigh.self_paced import SelfPaced
from dataflex.algorithms.weigh.window import WINDOW
from dataflex.core.compose import weighted_loss
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.testing import WeigherCase, WeigherSuite
from dataflex.testing.weighers import TrainedBatch, batch_of, run_weigher

NAN = float("nan")
LOSSES = np.array([0.5, 1.0, 2.0, 3.0])
STRATEGIES = ("linupper", "quadratic", "extremes", "upper", "linear", "uniform")

ANCHORS = {"anchors_MxE": np.eye(3, dtype=np.float32)[:2], "read_at": np.array(0)}

CASES = [
    WeigherCase(Column(), over_window=True),
    WeigherCase(Focal(), over_window=True),
    WeigherCase(Focal(gamma=0.5, detach=False), over_window=True),
    WeigherCase(SelfPaced()),
    WeigherCase(SelfPaced(form="linear", start=0.9)),
    *[WeigherCase(LossWeigher(strategy=s), mean_one=True) for s in STRATEGIES],
    WeigherCase(LossWeigher(r=0.4, delta=2.0), mean_one=True),
    WeigherCase(LossWeigher(scope="window"), over_window=True),
    WeigherCase(LossWeigher(scope="window", strategy="extremes", r=0.4), over_window=True),
    WeigherCase(LossWeigher(average="rows")),
    *[WeigherCase(Rho1(reference="model", keep=keep), ranks_by_row=True) for keep in (0.6, 0.01, 1.0)],
    WeigherCase(Adapt(), given=ANCHORS, over_window=True),
    WeigherCase(Adapt(tau=0.2, clip=0.6), given=ANCHORS, over_window=True),
    WeigherCase(Adapt(normalize="mean_one"), given=ANCHORS, mean_one=True),
]


class TestWeighers(WeigherSuite):
    @pytest.fixture(params=CASES, ids=repr)
    def case(self, request) -> WeigherCase:
        return request.param


def test_every_weigher_of_the_catalog_has_a_case():
    assert {type(case.weigher) for case in CASES} == set(WEIGHTERS.values())


def batch(losses, tokens=None, step: int = 0, num_steps: int = 11, **more) -> TrainedBatch:
    tokens_B = np.ones(len(losses), dtype=int) if tokens is None else np.asarray(tokens)
    return TrainedBatch(losses_B=np.asarray(losses, float), tokens_B=tokens_B, step=step, num_steps=num_steps, **more)


# --- loss ---


@pytest.mark.parametrize(
    ("weigher", "wanted"),
    [
        (LossWeigher(), [0.504516, 0.752650, 1.371417, 1.371417]),
        (LossWeigher(strategy="quadratic"), [0.614611, 1.165599, 1.605178, 0.614611]),
        (LossWeigher(strategy="extremes"), [1.282196, 0.859481, 0.576128, 1.282196]),
        (LossWeigher(strategy="upper"), [0.591558, 0.722531, 1.077889, 1.608022]),
        (LossWeigher(strategy="linear"), [0.303007, 0.452034, 1.006020, 2.238939]),
        (LossWeigher(strategy="uniform"), [1, 1, 1, 1]),
        (LossWeigher(r=0.4), [0.142434, 0.387175, 1.735196, 1.735196]),
    ],
    ids=repr,
)
def test_the_traces_of_the_loss_weigher(weigher, wanted):
    assert weigh(weigher, {}, batch(LOSSES))[0].weights_B == pytest.approx(wanted, abs=2e-6)


def test_the_trace_of_the_weighted_loss():
    sums_B, tokens_B = np.array([2.0, 5, 4, 9]), np.array([4, 5, 2, 3])
    weights = weigh(LossWeigher(), {}, batch(sums_B / tokens_B, tokens_B))[0]
    assert weighted_loss(sums_B, tokens_B, weights.weights_B) == pytest.approx(1.614336, abs=2e-6)
    assert weighted_loss(sums_B, tokens_B, np.ones(4)) == pytest.approx(1.428571, abs=2e-6)


def test_it_is_the_published_loss_of_one_device():
    sums_B, tokens_B = np.array([2.0, 5, 4, 9]), np.array([4, 5, 2, 3])
    losses_B = sums_B / tokens_B
    n = (2 * losses_B - losses_B.max() - losses_B.min()) / (losses_B.max() - losses_B.min())
    w = np.exp(np.minimum(n + 1, 1))
    published = (4 * w / w.sum() * tokens_B / tokens_B.sum() * losses_B).sum()
    weights = weigh(LossWeigher(), {}, batch(losses_B, tokens_B))[0]
    assert weighted_loss(sums_B, tokens_B, weights.weights_B) == pytest.approx(published, rel=1e-12)


def test_averaging_rows_weighs_mean_losses_whatever_their_tokens():
    sums_B, tokens_B = np.array([2.0, 5, 4, 9]), np.array([4, 5, 2, 3])
    rows = weigh(LossWeigher(average="rows"), {}, batch(sums_B / tokens_B, tokens_B))[0].weights_B
    c = weigh(LossWeigher(), {}, batch(sums_B / tokens_B, tokens_B))[0].weights_B
    assert weighted_loss(sums_B, tokens_B, rows) == pytest.approx((c * sums_B / tokens_B).mean())


def test_equal_losses_and_a_single_row_count_one_exactly():
    for losses in ([2.0, 2.0, 2.0], [3.0]):
        for strategy in STRATEGIES:
            made = weigh(LossWeigher(strategy=strategy), {}, batch(losses))[0].weights_B
            assert made.tolist() == [1.0] * len(losses)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.sampled_from(STRATEGIES), st.floats(0.05, 5))
def test_any_losses_give_finite_weights_of_mean_one(losses, strategy, r):
    made = weigh(LossWeigher(strategy=strategy, r=r), {}, batch(losses))[0].weights_B
    assert np.all(np.isfinite(made) & (made >= 0))
    assert made.mean() == pytest.approx(1)


def test_a_shift_or_a_scale_of_all_losses_changes_nothing():
    plain = LossWeigher().coefficients(LOSSES, LOSSES)
    assert LossWeigher().coefficients(3 * LOSSES + 7, 3 * LOSSES + 7) == pytest.approx(plain)


def test_one_row_in_the_scope_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="set scope: window"):
        LossWeigher().check_rows_in_scope(1)
    LossWeigher().check_rows_in_scope(2)
    LossWeigher(scope="window").check_rows_in_scope(1)
    with pytest.raises(ConfigError, match="keeps the row of the smallest loss"):
        SelfPaced().check_rows_in_scope(1)
    SelfPaced().check_rows_in_scope(2)


# --- the window ---


def test_a_window_compares_with_the_steps_before_and_clips_what_lies_outside():
    weigher = LossWeigher(scope="window")
    first, state = weigh(weigher, weigher.init(), batch(LOSSES, step=0))
    assert first.weights_B.tolist() == [1, 1, 1, 1]
    made, _ = weigh(weigher, state, batch([1.0, 99.0, 0.0], step=1))
    f = np.minimum((2 * LOSSES - 3.5) / 2.5 + 1, 1)
    inside = np.exp([f[1], 1, 0]) / np.exp(f).mean()
    assert made.weights_B == pytest.approx(inside)


def test_a_window_averages_to_one_over_its_own_losses():
    weigher = LossWeigher(scope="window", r=0.4)
    assert weigher.coefficients(LOSSES, LOSSES).mean() == pytest.approx(1)


def test_the_window_keeps_the_last_losses_only():
    batches = [batch_of(100, step) for step in range(13)]
    state = run_weigher(WeigherCase(SelfPaced()), batches)[1]
    assert WINDOW == 1024
    wanted = np.concatenate([b.losses_B for b in batches[:12]])[-1024:]
    assert np.array_equal(state["window_W"], wanted)
    assert np.array_equal(state["pending_P"], batches[12].losses_B)


# --- column ---


def test_a_missing_weight_is_one_and_others_are_taken_as_they_are():
    made = weigh(Column(column="w"), {}, batch([1, 2, 3], columns_B={"w": np.array([0, NAN, 2.5])}))[0]
    assert made.weights_B.tolist() == [0, 1, 2.5]


@pytest.mark.parametrize(("value", "said"), [(-0.5, "row 1 is -0.5, which is negative"), (math.inf, "row 1 is inf")])
def test_weights_that_cannot_be_used_name_their_row(value, said):
    with pytest.raises(ConfigError, match=said):
        Column().check_values(np.array([1, value, NAN]))
    if math.isfinite(value):
        Column(allow_negative=True).check_values(np.array([1, value]))


# --- focal ---


def test_the_trace_of_focal_and_its_warm_up():
    losses = -np.log(np.array([[0.9, 0.5, 0.1, NAN]]))
    one = batch([1.0], [3], token_losses_BxT=losses)
    assert weigh(Focal(), {}, one)[0].token_weights_BxT == pytest.approx(np.array([[0.01, 0.25, 0.81, 0]]), abs=2e-6)
    assert weigh(Focal(), {}, one, warmup_step=1)[0].token_weights_BxT is None


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_without_detaching_the_coefficient_is_the_derivative(gamma):
    losses, h = np.array([1e-3, 0.1, 0.7, 2.3, 9.0]), 1e-6
    values = [(1 - np.exp(-x)) ** gamma * x for x in (losses - h, losses + h)]
    by_differences = (values[1] - values[0]) / (2 * h)
    assert Focal(gamma=gamma, detach=False).coefficients(losses) == pytest.approx(by_differences, rel=1e-5)


def test_a_token_that_is_certain_counts_nothing_without_a_division_by_zero():
    for detach in (True, False):
        with np.errstate(all="raise"):
            assert Focal(detach=detach).coefficients(np.array([0.0, -1e-7])).tolist() == [0, 0]
            assert Focal(gamma=0, detach=detach).coefficients(np.array([0.0])).tolist() == [1]


# --- self-paced ---


def paced(weigher, window, losses, step):
    state = weigh(weigher, weigher.init(), batch(window, step=step - 1))[1]
    return weigh(weigher, state, batch(losses, step=step))[0].weights_B.tolist()


def test_rows_below_the_quantile_count_and_the_quantile_rises_to_all():
    window = [1.0, 2, 3, 4, 5]
    assert paced(SelfPaced(start=0.5), window, [1, 2.9, 4.1, 9], step=1) == [1, 1, 0, 0]  # q .55: 3.2
    assert paced(SelfPaced(start=0.5), window, [1, 2.9, 3.9, 9], step=5) == [1, 1, 1, 0]  # q .75: 4
    assert paced(SelfPaced(start=0.5), window, [1, 2.9, 4.1, 9], step=10) == [1, 1, 1, 1]


def test_the_linear_form_falls_to_nothing_at_the_limit():
    made = paced(SelfPaced(form="linear", start=0.5), [1.0, 2, 3, 4, 5], [0, 1, 2, 4, 8], step=5)
    assert made == pytest.approx([1, 0.75, 0.5, 0, 0])


def test_a_batch_is_never_zero_as_a_whole():
    for form in ("hard", "linear"):
        assert paced(SelfPaced(form=form), [1.0, 1, 1], [7, 6, 6, NAN], step=1) == [0, 1, 1, 0]


# --- DoReMi's weighting of domains, in the same contract ---


def test_the_trace_of_excess_losses_is_clipped_token_by_token():
    proxy = [np.array([2, 1, 0.5]), np.array([1.2, 0.4]), np.array([3, 2.5, 0.1, 0.9])]
    reference = [np.array([1.5, 1.4, 0.5]), np.array([0.8, 0.9]), np.array([2, 2.6, 0.3, 0.2])]
    sums_D, tokens_D = excess_sums(proxy, reference, np.array([0, 1, 0]), 3)
    assert tokens_D.tolist() == [7, 2, 0]
    assert sums_D[:2] / tokens_D[:2] == pytest.approx([0.314286, 0.2], abs=2e-6)
    halves = [excess_sums(proxy[s], reference[s], np.array([0, 1, 0])[s], 3) for s in (slice(0, 2), slice(2, 3))]
    assert halves[0][0] + halves[1][0] == pytest.approx(sums_D)
    with pytest.raises(ConfigError, match="row 1 of the batch has 2 label tokens and 1 reference"):
        excess_sums(proxy, [reference[0], reference[1][:1], reference[2]], np.array([0, 1, 0]), 3)


def test_the_trace_of_the_loss_weighted_by_domain():
    sums_B, tokens_B, domain_B = np.array([6.0, 4, 9, 2]), np.array([4, 2, 6, 2]), np.array([0, 0, 1, 2])
    a_D = np.array([0.5, 0.3, 0.2]) / (1 / 3)
    tokens_D = np.bincount(domain_B, weights=tokens_B)
    c_B = domain_coefficients(a_D, domain_B, tokens_D)
    assert weighted_loss(sums_B, tokens_B, c_B) == pytest.approx(1.557692, abs=2e-6)
    plain_B = domain_coefficients(a_D, domain_B, tokens_D, "tokens")
    assert weighted_loss(sums_B, tokens_B, plain_B) == pytest.approx((1.5 * 10 + 0.9 * 9 + 0.6 * 2) / 14)
    assert np.array_equal(domain_coefficients(np.ones(3), domain_B, tokens_D), np.ones(4))
    assert domain_coefficients(np.array([1.0, 0, 1]), domain_B, tokens_D)[2] == 0


# --- what is refused ---

BAD = [
    (LossWeigher, {"strategy": "linuper"}),
    *[(LossWeigher, {name: v}) for name in ("delta", "r") for v in (0, -1, NAN, math.inf, "1")],
    (LossWeigher, {"scope": "batch"}),
    (LossWeigher, {"average": "row"}),
    (Focal, {"gamma": -1}),
    (SelfPaced, {"start": 0}),
    (SelfPaced, {"start": 1.1}),
    (SelfPaced, {"form": "soft"}),
    (Column, {"column": ""}),
]


@pytest.mark.parametrize(("cls", "params"), BAD, ids=[f"{cls.__name__}-{params}" for cls, params in BAD])
def test_a_bad_parameter_is_one_sentence_that_names_key_and_value(cls, params):
    ((name, value),) = params.items()
    with pytest.raises(ConfigError) as caught:
        cls(**params)
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_averaging_rows_over_a_window_is_refused():
    with pytest.raises(ConfigError, match="average: rows needs"):
        LossWeigher(average="rows", scope="window")


def test_a_weigher_of_another_package_that_returns_no_numbers_is_named():
    class Broken(Column):
        def weigh(self, state, batch):
            weights, state = super().weigh(state, batch)
            return type(weights)(weights_B=weights.weights_B * NAN), state

    with pytest.raises(DataFlexError, match="Broken returned"):
        weigh(Broken(), {}, batch([1.0], columns_B={"weight": np.array([1.0])}))


# --- rho1 ---


def rho1_loss(losses, reference, keep: float) -> tuple[list[list[int]], float]:
    """Kept positions by row, and the loss as the trainer has it: sum of c_it l_it over the host's count."""
    losses, reference = np.array(losses, float), np.array(reference, float)
    tokens = np.isfinite(losses).sum(axis=1)
    one = batch(np.nanmean(losses, axis=1), tokens, token_losses_BxT=losses, reference_losses_BxT=reference)
    weights, _ = weigh(Rho1(reference="model", keep=keep), {}, one)
    by_token = np.asarray(weights.token_weights_BxT)
    kept = [np.flatnonzero(row).tolist() for row in by_token]
    return kept, float(np.nansum(by_token * losses) / tokens.sum())


def test_rho1_golden_trace():
    kept, loss = rho1_loss([[2, 1, 0.5, 3], [0.4, 2.2, NAN, NAN]], [[1.5, 1.2, 0.1, 1], [0.9, 2.1, NAN, NAN]], keep=0.5)
    assert kept == [[0, 2, 3], []]
    assert loss == pytest.approx(1.833333, abs=2e-6)


def test_rho1_keeps_ties_by_row_then_position_and_rounds_up():
    assert rho1_loss([[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]], keep=0.5)[0] == [[0, 1, 2], []]
    assert rho1_loss([[1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0]], keep=0.6)[0] == [[0, 1, 2]]
    assert rho1_loss([[1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0]], keep=0.61)[0] == [[0, 1, 2, 3]]


def test_rho1_leaves_out_tokens_that_cannot_be_compared():
    kept, loss = rho1_loss([[1, 4, 2]], [[0, NAN, 0]], keep=1.0)
    assert kept == [[0, 2]]
    assert loss == pytest.approx(1.5)


@pytest.mark.parametrize(
    "params", [{"reference": ""}, {"reference": "model", "keep": 0}, {"reference": "model", "keep": 1.1}], ids=str
)
def test_rho1_refuses(params):
    with pytest.raises(ConfigError, match=r"reference is missing|keep is"):
        Rho1(**params)


# --- adapt ---


def test_adapt_golden_trace():
    import torch

    from dataflex.signals.embedding import pooled

    states = torch.tensor([[[1.0, 0], [0, 1], [1, 1]], [[0, 2], [-1, 0], [9, 9]]])
    kept = torch.tensor([[True, True, True], [True, True, False]])
    anchors = np.array([[1.0, 0], [0, 1]])
    vectors = pooled(states, kept).numpy()
    one = batch([1.0, 1.0], embeddings_BxE=vectors)
    weights, _ = weigh(Adapt(tau=0.5), {"anchors_MxE": anchors}, one)
    np.testing.assert_allclose(vectors @ anchors.mean(axis=0), [0.702782, 0], atol=2e-6)
    np.testing.assert_allclose(weights.weights_B, [0.803065, 0.5], atol=2e-6)


@pytest.mark.parametrize("params", [{"tau": 0}, {"refresh": 0}, {"clip": 0}, {"normalize": "sum"}], ids=str)
def test_adapt_refuses(params):
    ((name, _),) = params.items()
    with pytest.raises(ConfigError, match=f"{name} is"):
        Adapt(**params)
