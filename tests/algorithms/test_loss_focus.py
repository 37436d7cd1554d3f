"""The loss selector: its trace, its bands, its edges."""

import numpy as np
import pytest

from dataflex.algorithms.select.loss import Loss
from dataflex.core.errors import DataFlexError
from dataflex.core.seeds import segment_rng
from dataflex.testing import PLAN

NAN = float("nan")
TRACE = np.array([0.5, 1.2, 2.0, 0.9, NAN, 3.1, 1.5, 0.7, 2.6, 1.2], dtype=np.float32)
PROGRESS = PLAN.progress(PLAN.segment_at(2))


def select(selector: Loss, losses, quota: int = 1, segment: int = 0):
    losses_N = np.asarray(losses, dtype=np.float32)
    return selector.select({}, {"loss": losses_N}, quota, PROGRESS, segment_rng(0, segment, "select"))[0]


def probabilities(selection) -> list[float]:
    weight_N = selection.columns_N["weight"]
    return (weight_N / weight_N.sum()).tolist()


def test_the_trace():
    selection = select(Loss(), TRACE)
    high = {2, 5, 8}
    wanted = [5 / 21 if row in high else 0 if row == 4 else 1 / 21 for row in range(10)]
    assert selection.notes["quantile_losses"] == pytest.approx([1.092, 1.64], abs=1e-4)
    assert selection.notes["num_in_focus"] == 3
    assert probabilities(selection) == pytest.approx(wanted, abs=1e-4)
    assert selection.decision == "guided"
    assert (selection.notes["num_scored"], selection.notes["num_unscored"]) == (9, 1)


def test_ten_thousand_draws_follow_the_trace():
    counts = np.zeros(10)
    for segment in range(10_000):
        counts[select(Loss(), TRACE, 1, segment).rows_Q] += 1
    p_N = np.array(probabilities(select(Loss(), TRACE)))
    assert np.all(np.abs(counts - 10_000 * p_N) <= 4.5 * np.sqrt(10_000 * p_N * (1 - p_N)))


@pytest.mark.parametrize(
    ("focus", "inside"),
    [
        ("low", [True, True, False, False, False]),
        ("medium", [False, False, True, True, False]),
        ("high", [False, False, False, False, True]),
    ],
)
def test_a_band_includes_its_upper_quantile_and_not_its_lower(focus, inside):
    # Quantiles .25 and .75 of five values are exactly the second and the fourth.
    weight_N = select(Loss(focus=focus, quantiles=(0.25, 0.75)), [1, 2, 3, 4, 5]).columns_N["weight"]
    assert np.isclose(weight_N, 5).tolist() == inside


@pytest.mark.parametrize("focus", ["medium", "high"])
def test_when_all_losses_are_equal_everything_is_low_and_another_focus_is_uniform_and_says_so(focus):
    selection = select(Loss(focus=focus), [2, 2, NAN, 2, 2])
    assert selection.columns_N["weight"].tolist() == [1, 1, 0, 1, 1]
    assert selection.decision == "uniform"
    assert focus in selection.warnings[0]


def test_when_all_losses_are_equal_the_low_focus_holds_them_all():
    selection = select(Loss(focus="low"), [2, 2, NAN, 2, 2])
    assert probabilities(selection) == [0.25, 0.25, 0, 0.25, 0.25]
    assert (selection.notes["num_in_focus"], selection.warnings) == (4, ())


@pytest.mark.parametrize("losses", [[1, 9], [1, 9, NAN, np.inf], [3]])
def test_fewer_than_three_scored_rows_are_drawn_uniformly_and_it_is_said(losses):
    selection = select(Loss(), losses)
    assert selection.columns_N["weight"].tolist() == np.isfinite(losses).astype(float).tolist()
    assert selection.decision == "uniform"
    assert f"only {np.isfinite(losses).sum()} samples" in selection.warnings[0]


def test_three_scored_rows_are_enough_for_three_bands():
    assert select(Loss(), [1, NAN, 2, 3]).columns_N["weight"] == pytest.approx([1, 0, 1, 5])


def test_infinite_losses_are_in_no_quantile_and_never_drawn():
    selection = select(Loss(), [*TRACE, np.inf, -np.inf], 9)
    assert selection.notes["quantile_losses"] == pytest.approx([1.092, 1.64], abs=1e-4)
    assert not {4, 10, 11} & set(selection.rows_Q.tolist())


def test_temperature_flattens_the_weights_as_a_power():
    weight_N = select(Loss(temperature=2.0), TRACE).columns_N["weight"]
    assert weight_N[2] == pytest.approx(5**0.5)
    assert weight_N[0] == 1


def test_an_endless_temperature_is_uniform_over_the_scored_rows_only():
    assert probabilities(select(Loss(temperature=1e12), TRACE)) == pytest.approx(
        [0 if row == 4 else 1 / 9 for row in range(10)]
    )


def test_a_very_low_temperature_takes_the_focus_first_and_does_not_overflow():
    assert set(select(Loss(temperature=0.001), TRACE, 3).rows_Q.tolist()) == {2, 5, 8}


def test_a_focus_weight_below_one_avoids_the_band():
    assert select(Loss(focus_weight=0.5), TRACE).columns_N["weight"][[2, 0]] == pytest.approx([0.5, 1])


def test_a_quota_above_the_scored_rows_is_an_error_or_drawn_with_replacement():
    with pytest.raises(DataFlexError, match=r"quota of 10 .* 9 samples"):
        select(Loss(), TRACE, 10)
    rows_Q = select(Loss(replacement=True), TRACE, 200).rows_Q
    assert set(rows_Q.tolist()) == {0, 1, 2, 3, 5, 6, 7, 8, 9}


def test_a_warmup_needs_no_losses_and_every_decision_does():
    needs = [Loss().needs_at(PLAN.progress(s)) for s in PLAN.segments()]
    assert needs == [set(), {"loss"}, {"loss"}, {"loss"}] * 2
