"""Delta Loss against its specification: the window, every row of the edge-case table, and a brute-force twin."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.algorithms.base import PoolInfo, Progress
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.core.draw import draw
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.core.seeds import segment_rng

NAN, INF = float("nan"), float("inf")


def at(update: int, num_updates: int | None, *, cycle: int = 0, warmup_step: int = 0, num_cycles: int = 2) -> Progress:
    """The decision ``update`` of ``num_updates`` as a real plan gives it."""
    schedule = Schedule(warmup_step=warmup_step, update_step=5, update_times=num_updates or 0, train_step=0)
    plan = SegmentPlan.dynamic(schedule, num_epochs=num_cycles, pool_steps=25)
    return next(p for p in map(plan.progress, plan.segments()) if (p.cycle, p.update) == (cycle, update))


def rng():
    return segment_rng(7, 3, "select")


def decide(selector: DeltaLoss, deltas, quota: int, progress: Progress | None = None, *, initial=None):
    """A guided selection where row i's loss has fallen by ``deltas[i]`` from ``initial`` (default 8)."""
    deltas = np.asarray(deltas, dtype=np.float32)
    initial_N = np.full(len(deltas), 8, dtype=np.float32) if initial is None else np.asarray(initial, dtype=np.float32)
    state = {"initial_losses_N": initial_N}
    return selector.select(state, {"loss": initial_N - deltas}, quota, progress or at(1, 3), rng())[0]


def window_rows(selection) -> list[int]:
    return np.flatnonzero(selection.columns_N["in_window"]).tolist()


# --- the window ---


@pytest.mark.parametrize(("tau", "start"), [(0, 5), (0.25, 60), (0.5, 400), (0.75, 739), (1, 794)])
def test_the_window_starts_where_the_specification_says(tau, start):
    v = 1 / (1 + math.exp(-10 * (tau - 0.5)))
    assert DeltaLoss(window_size=0.2).window(tau=tau, num_scored=1000) == (start, math.floor(v * 800 + 200))


def test_the_five_windows_end_here():
    windows = [DeltaLoss(window_size=0.2).window(tau=t / 4, num_scored=1000) for t in range(5)]
    assert windows == [(5, 205), (60, 260), (400, 600), (739, 939), (794, 994)]


def test_a_guided_decision_lays_the_planned_window_over_the_ranking():
    deltas = np.linspace(3, 0, 1000)
    for t, (start, end) in enumerate([(5, 205), (60, 260), (400, 600), (739, 939), (794, 994)]):
        if t > 0:
            selection = decide(DeltaLoss(), deltas, 10, at(t, 5))
            assert window_rows(selection) == list(range(start, end))
            assert selection.window == {
                "start": start,
                "end": end,
                "start_share": start / 1000,
                "end_share": end / 1000,
            }


def test_the_user_guide_s_plain_sigmoid_moves_the_window_from_the_middle_to_0_73_only():
    guide = DeltaLoss(steepness=1, midpoint=0, progress="t/T")
    assert guide.tau(at(0, 4, cycle=1)) == 0
    assert guide.tau(at(3, 4)) == 0.75
    assert guide.window(tau=0, num_scored=1000) == (400, 600)
    assert guide.window(tau=1, num_scored=1000) == (584, 784)


@pytest.mark.parametrize("num_scored", [1, 2, 3, 4])
@pytest.mark.parametrize("tau", [0, 0.5, 1])
def test_a_window_of_a_tiny_pool_holds_at_least_one_row(num_scored, tau):
    start, end = DeltaLoss(window_size=0.2).window(tau=tau, num_scored=num_scored)
    assert 0 <= start < end <= num_scored


def test_a_window_over_everything_never_moves():
    assert [DeltaLoss(window_size=1).window(tau=t / 4, num_scored=37) for t in range(5)] == [(0, 37)] * 5


@pytest.mark.parametrize("steepness", [1e-9, 1e6])
@pytest.mark.parametrize("tau", [0, 1])
def test_an_extreme_steepness_does_not_overflow(steepness, tau):
    start, end = DeltaLoss(steepness=steepness).window(tau=tau, num_scored=1000)
    assert end - start == 200
    assert start in ((399, 400) if steepness < 1 else (800 * tau,))


def test_with_the_default_base_weight_the_window_holds_90_9_percent_of_the_mass():
    weight_N = decide(DeltaLoss(), np.linspace(3, 0, 1000), 10, at(2, 5)).columns_N["weight"]
    assert weight_N[400:600].sum() / weight_N.sum() == pytest.approx(0.909, abs=5e-4)


def test_ties_are_ranked_by_row():
    selection = decide(DeltaLoss(), [1, 2, 1, 3, 2, 1], 2)
    assert selection.columns_N["rank"].tolist() == [3, 1, 4, 0, 2, 5]


# --- the first selection ---


def test_the_first_selection_keeps_the_losses_and_draws_uniformly_over_the_scored_rows():
    losses_N = np.array([1, 9, NAN, 3, INF, -INF, 2], dtype=np.float32)
    counts = np.zeros(7)
    for segment in range(2000):
        selection, state = DeltaLoss().select({}, {"loss": losses_N}, 2, at(0, 3), segment_rng(0, segment, "select"))
        counts[selection.rows_Q] += 1
    assert selection.decision == "first"
    assert np.array_equal(state["initial_losses_N"], losses_N, equal_nan=True)
    assert counts / 2000 == pytest.approx([0.5, 0.5, 0, 0.5, 0, 0, 0.5], abs=0.05)


def test_an_unscored_row_weighs_nothing_in_the_first_draw_and_is_counted():
    losses_N = np.array([1, 9, NAN, 3, INF], dtype=np.float32)
    selection, _ = DeltaLoss().select({}, {"loss": losses_N}, 3, at(0, 3), rng())
    assert selection.columns_N["weight"].tolist() == [1, 1, 0, 1, 0]
    assert (selection.notes["num_scored"], selection.notes["num_unscored"]) == (3, 2)
    assert sorted(selection.rows_Q.tolist()) == [0, 1, 3]


def test_a_row_without_one_of_its_two_losses_weighs_nothing_and_has_no_rank():
    initial_N = np.array([NAN, 5, 5, 5, INF, 5, 5], dtype=np.float32)
    losses_N = np.array([1, NAN, 4, INF, 1, -INF, 3], dtype=np.float32)
    selection, _ = DeltaLoss().select({"initial_losses_N": initial_N}, {"loss": losses_N}, 2, at(1, 3), rng())
    assert selection.columns_N["rank"].tolist() == [-1, -1, 1, -1, -1, -1, 0]
    assert np.flatnonzero(selection.columns_N["weight"]).tolist() == [2, 6]
    assert (selection.notes["num_scored"], selection.notes["num_unscored"]) == (2, 5)
    assert sorted(selection.rows_Q.tolist()) == [2, 6]


def test_the_window_is_a_share_of_the_scored_rows_not_of_the_pool():
    deltas = np.concatenate([np.full(900, NAN), np.linspace(3, 0, 100)])
    assert window_rows(decide(DeltaLoss(), deltas, 5)) == list(range(940, 960))


# --- the edge-case table, row by row ---


def test_table_one_update_in_a_second_cycle_has_tau_1_and_does_not_crash():
    progress = at(0, 1, cycle=1)
    assert not progress.is_first_selection
    assert DeltaLoss().tau(progress) == 1
    assert decide(DeltaLoss(), np.linspace(3, 0, 1000), 5, progress).window["start"] == 794


def test_table_a_second_cycle_begins_guided_with_tau_0():
    progress = at(0, 3, cycle=1)
    assert DeltaLoss().tau(progress) == 0
    assert decide(DeltaLoss(), np.linspace(3, 0, 1000), 5, progress).window["start"] == 5


def test_table_open_ended_updates_take_the_share_of_the_run_already_made():
    taus = [DeltaLoss().tau(at(t, None)) for t in range(10)]  # 50 steps, an update every 5
    assert taus == pytest.approx([t / 10 for t in range(10)])
    assert DeltaLoss(progress="t/T").tau(at(5, None)) == 0.5


MOSTLY_WORSE = [*np.linspace(3, 1, 30), *np.linspace(-1, -2, 70)]  # 30 of 100 improved


def test_table_an_emptied_window_slides_back_onto_the_last_improved_rows_and_says_so():
    selection = decide(DeltaLoss(), MOSTLY_WORSE, 5, at(2, 3))
    assert window_rows(selection) == list(range(10, 30))
    assert selection.decision == "guided"
    assert selection.notes["window_state"] == "slid"
    assert len(selection.warnings) == 1
    assert "30 of 100" in selection.warnings[0]


def test_table_an_emptied_window_is_uniform_by_the_user_s_choice_and_says_so():
    selection = decide(DeltaLoss(when_empty="uniform"), MOSTLY_WORSE, 5, at(2, 3))
    assert selection.columns_N["weight"].tolist() == [1] * 100
    assert (selection.decision, selection.notes["window_state"]) == ("uniform", "uniform")
    assert len(selection.warnings) == 1


@pytest.mark.parametrize("when_empty", ["slide", "uniform"])
def test_table_with_none_improved_the_draw_is_uniform_and_says_so(when_empty):
    selection = decide(DeltaLoss(when_empty=when_empty), [-1, -2, NAN, -3], 2)
    assert selection.columns_N["weight"].tolist() == [1, 1, 0, 1]
    assert selection.decision == "uniform"
    assert "no sample improved" in selection.warnings[0]


@pytest.mark.parametrize(("quota", "start", "state"), [(10, 40, "truncated"), (11, 30, "slid"), (99, 30, "slid")])
def test_table_the_window_slides_when_fewer_than_the_quota_are_left_in_it(quota, start, state):
    deltas = [*np.linspace(3, 1, 50), *np.linspace(-1, -2, 50)]  # planned [40, 60), of which 10 improved
    selection = decide(DeltaLoss(), deltas, quota)
    assert window_rows(selection) == list(range(start, 50))
    assert selection.notes["window_state"] == state
    assert bool(selection.warnings) == (state == "slid")


def test_table_a_truncated_window_that_is_not_empty_is_left_alone_with_when_empty_uniform():
    deltas = [*np.linspace(3, 1, 41), *np.linspace(-1, -2, 59)]
    assert window_rows(decide(DeltaLoss(when_empty="uniform"), deltas, 10)) == [40]


def test_table_a_window_slides_no_further_than_the_first_row():
    deltas = [*np.linspace(3, 1, 4), *np.linspace(-1, -2, 96)]
    assert window_rows(decide(DeltaLoss(), deltas, 10)) == [0, 1, 2, 3]


def test_table_a_row_that_neither_fell_nor_rose_counts_as_improved():
    deltas = [*[0.0] * 60, *[-1.0] * 40]
    assert window_rows(decide(DeltaLoss(), deltas, 10)) == list(range(40, 60))


def test_table_the_short_recipe_has_its_only_guided_window_over_the_least_improved_fifth():
    progress = at(1, 2)
    assert DeltaLoss().tau(progress) == 1
    assert decide(DeltaLoss(), np.linspace(3, 0, 1000), 5, progress).window["end"] == 994
    note = DeltaLoss().plan_note(progress)
    assert note["decision"] == "guided"
    assert note["window_shares"] == pytest.approx((0.7946, 0.9946), abs=5e-5)
    assert DeltaLoss().plan_note(at(0, 2))["decision"] == "first (uniform)"


def test_table_the_baseline_of_the_first_selection_is_measured_there_and_not_in_the_warmup():
    plan = SegmentPlan.dynamic(Schedule(warmup_step=5, update_step=5, update_times=2), num_epochs=2, pool_steps=9)
    needs = [DeltaLoss().needs_at(plan.progress(s)) for s in plan.segments()]
    assert [bool(n) for n in needs] == [False, True, True, False, True, True]


def test_table_the_baseline_of_the_run_s_start_is_measured_at_step_0_and_kept_through_the_warmup():
    selector = DeltaLoss(baseline="run_start")
    plan = SegmentPlan.dynamic(Schedule(warmup_step=5, update_step=5, update_times=2), num_epochs=2, pool_steps=9)
    warmup, first, second, *later = map(plan.progress, plan.segments())
    assert [bool(selector.needs_at(p)) for p in (warmup, first, second, *later)] == [
        *(True, False, True),
        *(False, True, True),
    ]
    start_N = np.array([4, 4, NAN, 4], dtype=np.float32)
    pool = PoolInfo(num_tokens_N=np.full(4, 9), num_label_tokens_N=np.full(4, 5))
    state = selector.observe(selector.init(pool), {"loss": start_N}, warmup)
    selection, state = selector.select(state, {}, 2, first, rng())
    assert selection.columns_N["weight"].tolist() == [1, 1, 0, 1]
    selection, _ = selector.select(state, {"loss": np.array([1, 3, 1, 2], dtype=np.float32)}, 2, second, rng())
    assert selection.columns_N["delta"].tolist() == pytest.approx([3, 1, NAN, 2], nan_ok=True)


def test_table_the_run_s_start_without_a_warmup_is_the_first_selection():
    progress = at(0, 3)
    assert DeltaLoss(baseline="run_start").needs_at(progress) == {"loss"}


def test_table_later_decisions_leave_the_baseline_as_it_was():
    state = {"initial_losses_N": np.array([4, 4, 4], dtype=np.float32)}
    for progress in (at(1, 3), at(0, 3, cycle=1), at(2, 3, cycle=1)):
        _, after = DeltaLoss().select(state, {"loss": np.ones(3, dtype=np.float32)}, 1, progress, rng())
        assert after["initial_losses_N"].tolist() == [4, 4, 4]


def test_table_normalize_initial_ranks_by_the_fall_relative_to_the_start():
    deltas, initial = [2, 1.5, 0.4, -1], [8, 2, 0.5, 1]
    assert decide(DeltaLoss(), deltas, 1, initial=initial).columns_N["rank"].tolist() == [0, 1, 2, 3]
    selection = decide(DeltaLoss(normalize="initial"), deltas, 1, initial=initial)
    assert selection.columns_N["rank"].tolist() == [2, 1, 0, 3]
    assert selection.columns_N["delta"].tolist() == pytest.approx([0.25, 0.75, 0.8, -1])


def test_table_normalize_initial_survives_a_loss_that_started_at_zero():
    selection = decide(DeltaLoss(normalize="initial"), [0, -1, 1], 3, initial=[0, 0, 2])
    assert selection.columns_N["rank"].tolist() == [1, 2, 0]


@pytest.mark.parametrize("progress", [at(0, 3), at(1, 3)], ids=["first", "guided"])
def test_table_a_quota_larger_than_the_pool_is_an_error_with_both_numbers(progress):
    with pytest.raises(DataFlexError, match=r"quota of 4 .* 3 samples .*replacement: true"):
        decide(DeltaLoss(), [1, 2, NAN, 3], 4, progress)


@pytest.mark.parametrize("progress", [at(0, 3), at(1, 3)], ids=["first", "guided"])
def test_table_a_quota_larger_than_the_pool_is_served_with_replacement(progress):
    state = {"initial_losses_N": np.array([5, 5, NAN, 5])}
    losses_N = np.array([4, 3, 1, 2.0])
    if progress.is_first_selection:
        losses_N = state["initial_losses_N"]
    selection, _ = DeltaLoss(replacement=True, base_weight=1).select(state, {"loss": losses_N}, 50, progress, rng())
    assert selection.rows_Q.shape == (50,)
    assert set(selection.rows_Q.tolist()) == {0, 1, 3}


def test_table_a_quota_larger_than_the_window_leaks_and_the_inside_is_counted():
    selection = decide(DeltaLoss(), np.linspace(3, 0, 100), 30)
    inside = set(range(40, 60))
    assert window_rows(selection) == sorted(inside)
    assert selection.notes["num_from_window"] == len(inside & set(selection.rows_Q.tolist()))
    assert 10 < selection.notes["num_from_window"] <= 20


def test_table_rows_that_got_worse_keep_the_base_weight():
    weight_N = decide(DeltaLoss(), MOSTLY_WORSE, 5, at(2, 3)).columns_N["weight"]
    assert weight_N.tolist() == [0.025] * 10 + [1] * 20 + [0.025] * 70


def test_table_base_weight_0_draws_from_the_window_only():
    selector = DeltaLoss(base_weight=0)
    selection = decide(selector, np.linspace(3, 0, 100), 20)
    assert sorted(selection.rows_Q.tolist()) == list(range(40, 60))


def test_table_base_weight_0_is_an_error_when_the_window_cannot_fill_the_quota():
    with pytest.raises(ConfigError, match=r"base_weight: 0 only the 20 samples .* quota is 21") as caught:
        decide(DeltaLoss(base_weight=0), np.linspace(3, 0, 100), 21)
    assert "\n" not in str(caught.value)
    rows_Q = decide(DeltaLoss(base_weight=0, replacement=True), np.linspace(3, 0, 100), 21).rows_Q
    assert set(rows_Q.tolist()) <= set(range(40, 60))


# --- a twin, from the text of the specification ---


def twin_weights(selector: DeltaLoss, initial, losses, quota: int, tau: float) -> tuple[list[float], list[int]]:
    """Weights and ranks (-1: unscored) with loops, as the specification words them."""
    s = selector.window_size
    deltas = {}
    for row, (l0, now) in enumerate(zip(initial, losses, strict=True)):
        if math.isfinite(l0) and math.isfinite(now):
            relative = selector.normalize == "initial" and l0 > 0
            deltas[row] = (l0 - now) / l0 if relative else l0 - now
    ranking = sorted(deltas, key=lambda row: (-deltas[row], row))
    n = len(ranking)
    improved = sum(1 for row in ranking if deltas[row] >= 0)
    v = 1 / (1 + math.exp(-selector.steepness * (tau - selector.midpoint)))
    start, end = math.floor(v * (1 - s) * n), math.floor(v * (1 - s) * n + s * n)
    end = max(end, start + 1)
    truncated = end > improved
    left = max(0, min(end, improved) - start)
    end = min(end, improved)
    if selector.when_empty == "slide" and truncated and (left == 0 or left < min(quota, s * n)):
        # "the last s N improved samples", at least one
        start = max(0, improved - max(1, math.floor(s * n)))
    if improved == 0 or (selector.when_empty == "uniform" and left == 0):
        start, end = 0, n
    weights, ranks = [0.0] * len(initial), [-1] * len(initial)
    for rank, row in enumerate(ranking):
        ranks[row] = rank
        weights[row] = 1.0 if start <= rank < end else selector.base_weight
    return weights, ranks


losses = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 4.0, NAN, INF]), st.floats(0, 4, width=16))
selectors = st.builds(
    DeltaLoss,
    window_size=st.one_of(st.sampled_from([0.2, 0.25, 0.5, 1.0]), st.floats(0.01, 1)),
    steepness=st.sampled_from([1.0, 10.0, 30.0]),
    midpoint=st.sampled_from([0.0, 0.5, 0.8]),
    progress=st.sampled_from(["t/(T-1)", "t/T"]),
    base_weight=st.sampled_from([0.0, 0.025, 0.5, 1.0]),
    normalize=st.sampled_from(["none", "initial"]),
    when_empty=st.sampled_from(["slide", "uniform"]),
)


@given(selectors, st.lists(st.tuples(losses, losses), min_size=1, max_size=40), st.data())
def test_a_guided_selection_equals_its_brute_force_twin(selector, pairs, data):
    initial = [pair[0] for pair in pairs]
    now = [pair[1] for pair in pairs]
    num_updates = data.draw(st.integers(1, 6))
    cycle = data.draw(st.integers(0, 1))
    update = data.draw(st.integers(1 if cycle == 0 and num_updates > 1 else 0, num_updates - 1))
    if (cycle, update) == (0, 0):
        cycle = 1
    quota = data.draw(st.integers(1, 12))
    tau = update / num_updates
    if selector.progress == "t/(T-1)":
        tau = update / (num_updates - 1) if num_updates > 1 else 1
    weights, ranks = twin_weights(selector, initial, now, quota, tau)

    state = {"initial_losses_N": np.array(initial, dtype=np.float32)}
    arguments = (state, {"loss": np.array(now, dtype=np.float32)}, quota, at(update, num_updates, cycle=cycle), rng())
    if quota > sum(w > 0 for w in weights):
        with pytest.raises(DataFlexError):
            selector.select(*arguments)
        return
    selection, _ = selector.select(*arguments)
    assert selection.columns_N["weight"].tolist() == weights
    assert selection.columns_N["rank"].tolist() == ranks
    assert selection.rows_Q.tolist() == draw(np.array(weights), quota, rng()).tolist()
    assert selection.notes["num_from_window"] == sum(selection.columns_N["in_window"][selection.rows_Q])
    start, end = selection.window["start"], selection.window["end"]
    assert selection.columns_N["in_window"].tolist() == [start <= rank < end for rank in ranks]
