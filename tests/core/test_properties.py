"""What holds for any numbers: huge schedules and row ids, all methods, windows of any size, 16 million rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.checks import require_one_of, require_quantile_pair, require_range
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.length import Length
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.static import Static
from dataflex.core.draw import apportion, draw, passes, top_k
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.core.order import MOST, Geometry, deal, micro_batches, micro_batches_per_pass
from dataflex.core.plan import MOST_SEGMENTS, MOST_STEPS, Schedule, SegmentPlan
from dataflex.core.seeds import loader_seed, segment_rng

BEYOND_INT32 = 2**31
TOO_MANY = [2**31, 10**400, 16**5000]  # the last has more digits than Python prints
ID_OFFSETS = [0, BEYOND_INT32 - 5, BEYOND_INT32 + 7, 2**40, 2**52]

# --- the plan, for schedules of any size ---

some_steps = st.one_of(st.integers(0, 12), st.integers(0, 10**6), st.integers(0, MOST_STEPS))
schedules = st.builds(
    Schedule,
    warmup_step=some_steps,
    update_step=some_steps.map(lambda n: max(n, 1)),
    update_times=st.integers(-3, 2000),
    train_step=st.one_of(st.just(0), some_steps),
)


@st.composite
def plans(draw_from) -> SegmentPlan:
    """A plan of up to a million segments and two billion steps; schedules that make none are passed over."""
    make = draw_from(st.sampled_from([SegmentPlan.dynamic, SegmentPlan.host]))
    try:
        return make(
            draw_from(schedules),
            num_epochs=draw_from(st.one_of(st.integers(1, 100), st.floats(1e-3, 1e4))),
            pool_steps=draw_from(some_steps.map(lambda n: max(n, 1))),
            max_steps=draw_from(st.one_of(st.none(), st.integers(1, MOST_STEPS))),
        )
    except ConfigError:
        assume(False)
        raise


@given(plans(), st.data())
def test_any_step_of_any_plan_lies_in_one_segment_whose_neighbours_begin_where_it_ends(plan, data):
    assert 1 <= plan.num_steps <= MOST_STEPS
    step = data.draw(st.integers(0, plan.num_steps - 1))
    segment = plan.segment_at(step)
    assert segment.start <= step < segment.stop <= plan.num_steps
    assert plan.segment_at(segment.start) == plan.segment_at(segment.stop - 1) == segment
    assert segment.index < plan.num_segments
    assert (segment.index == plan.num_segments - 1) == (segment.stop == plan.num_steps)
    if segment.stop < plan.num_steps:
        following = plan.segment_at(segment.stop)
        assert (following.start, following.index) == (segment.stop, segment.index + 1)
    else:
        assert segment.index <= MOST_SEGMENTS
    assert (segment.start == 0) == (segment.index == 0)


@given(plans(), st.data())
def test_decisions_and_warm_ups_of_any_plan_add_up_to_its_segments(plan, data):
    step = data.draw(st.integers(0, plan.num_steps - 1))
    segment = plan.segment_at(step)
    progress = plan.progress(segment)
    warmups_before = segment.index - progress.updates_made
    assert warmups_before == (segment.cycle + (not segment.is_warmup)) * (plan.warmup_step > 0)
    assert progress.updates_made < progress.total_updates or segment.is_warmup
    assert progress.total_updates == plan.updates_before(plan.num_steps)
    if progress.update is not None and progress.num_updates is not None:
        assert 0 <= progress.update < progress.num_updates
    assert plan.epoch_stop(step) > step


@given(
    st.builds(Schedule, warmup_step=st.integers(0, 9), update_step=st.integers(1, 9), update_times=st.integers(-1, 5))
)
@settings(max_examples=50)
def test_the_segments_of_a_plan_are_counted_without_walking_through_them(schedule):
    for make, max_steps in itertools.product((SegmentPlan.dynamic, SegmentPlan.host), (1, 7, None)):
        plan = make(schedule, num_epochs=2.3, pool_steps=11, max_steps=max_steps)
        assert plan.num_segments == len(list(plan.segments()))


@pytest.mark.parametrize("make", [SegmentPlan.dynamic, SegmentPlan.host])
@pytest.mark.parametrize(
    "num_epochs", [1e300, float("inf"), float("nan"), 10**400], ids=["1e300", "inf", "nan", "10**400"]
)
def test_a_run_without_end_is_one_sentence(make, num_epochs):
    with pytest.raises(ConfigError, match="it must have at most 2147483647: lower num_train_epochs") as caught:
        make(Schedule(update_step=3, update_times=1000), num_epochs=num_epochs, pool_steps=1000)
    assert len(str(caught.value)) < 500
    if num_epochs == num_epochs:  # not NaN
        assert make(Schedule(update_step=3), num_epochs=num_epochs, pool_steps=9, max_steps=7).num_steps == 7


@pytest.mark.parametrize("make", [SegmentPlan.dynamic, SegmentPlan.host])
def test_more_segments_than_a_record_holds_are_one_sentence(make):
    fits = {"num_epochs": 1, "pool_steps": MOST_SEGMENTS}
    assert make(Schedule(update_step=1, update_times=MOST_SEGMENTS), **fits).num_segments == MOST_SEGMENTS
    with pytest.raises(ConfigError, match="cut into 1,000,001 segments; at most 1,000,000 can be recorded"):
        make(Schedule(update_step=1, update_times=MOST_SEGMENTS + 1), num_epochs=1, pool_steps=MOST_SEGMENTS + 1)


@pytest.mark.parametrize("name", ["warmup_step", "update_step", "update_times", "train_step"])
@pytest.mark.parametrize("value", TOO_MANY, ids=["2**31", "10**400", "16**5000"])
def test_a_number_of_steps_that_no_host_can_count_is_one_sentence(name, value):
    with pytest.raises(ConfigError, match=f"{name} is .*at most {MOST_STEPS}") as caught:
        Schedule(**{"update_step": 1, name: value})
    assert len(str(caught.value)) < 500
    Schedule(**{"update_step": 1, name: MOST_STEPS})


# --- dealing ---

geometries = st.builds(
    Geometry, world_size=st.integers(1, 6), accumulation=st.integers(1, 4), micro_batch=st.integers(1, 5)
)
row_counts = st.integers(0, 150)


def rows_of(num_rows: int, offset: int) -> np.ndarray:
    return np.random.default_rng(num_rows).permutation(num_rows).astype(np.int64) + offset


@given(geometries, row_counts, st.sampled_from(ID_OFFSETS))
def test_the_micro_batches_of_all_ranks_are_a_partition_whatever_is_left_over(geometry, num_rows, offset):
    rows_Q = rows_of(num_rows, offset)
    dealt = [micro_batches(rows_Q, geometry, rank) for rank in range(geometry.world_size)]
    flat = [int(row) for batches in dealt for batch in batches for row in batch]
    assert sorted(flat) == sorted(rows_Q.tolist())
    assert all(1 <= len(batch) <= geometry.micro_batch for batches in dealt for batch in batches)
    assert all(batch.dtype == np.int64 for batches in dealt for batch in batches)
    assert max(map(len, dealt)) == (micro_batches_per_pass(num_rows, geometry, drop_last=False) if num_rows else 0)


@given(geometries, row_counts, st.integers(0, 12))
def test_what_remains_after_any_consumed_step_is_a_suffix_on_every_rank(geometry, num_rows, consumed):
    rows_Q = rows_of(num_rows, 2**33)
    assume(consumed * geometry.global_batch <= num_rows)
    for rank in range(geometry.world_size):
        rest = micro_batches(rows_Q[consumed * geometry.global_batch :], geometry, rank)
        suffix = micro_batches(rows_Q, geometry, rank)[consumed * geometry.accumulation :]
        assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in suffix]


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 60))
def test_the_world_size_moves_no_row_to_another_step(per_micro, accumulation, num_rows):
    """The same samples of a micro-batch over all ranks, cut for 1 rank or for any number that divides them."""
    rows_Q = rows_of(num_rows, 2**31)
    wanted = None
    for world in (n for n in range(1, per_micro + 1) if per_micro % n == 0):
        g = Geometry(world_size=world, accumulation=accumulation, micro_batch=per_micro // world)
        ranks = [micro_batches(rows_Q, g, rank) for rank in range(world)]
        rounds = itertools.zip_longest(*ranks, fillvalue=rows_Q[:0])
        joined = [np.concatenate(parts).tolist() for parts in rounds]
        wanted = joined if wanted is None else wanted
        assert joined == wanted


@given(st.integers(1, MOST), st.integers(1, 512), st.integers(1, 512), st.booleans())
def test_a_pass_over_a_pool_beyond_int32_is_counted_exactly(num_rows, world, micro, drop_last):
    g = Geometry(world_size=world, accumulation=1, micro_batch=micro)
    count = micro_batches_per_pass(num_rows * 1000, g, drop_last=drop_last)
    whole, rest = divmod(num_rows * 1000, world * micro)
    assert count == max(1, whole if drop_last else whole + bool(rest))


@pytest.mark.parametrize("offset", ID_OFFSETS)
def test_row_ids_beyond_int32_are_dealt_as_they_are(offset):
    g = Geometry(world_size=2, accumulation=2, micro_batch=3)
    dealt = deal(np.arange(24, dtype=np.int64) + offset, g)
    assert (dealt - offset).ravel().tolist() == list(range(24))
    assert dealt[1, 0, 1].tolist() == [15 + offset, 16 + offset, 17 + offset]


@pytest.mark.parametrize("name", ["world_size", "accumulation", "micro_batch"])
@pytest.mark.parametrize("value", TOO_MANY, ids=["2**31", "10**400", "16**5000"])
def test_a_geometry_that_no_host_can_count_is_one_sentence(name, value):
    with pytest.raises(ConfigError, match=f"{name} is .*at most {MOST}"):
        Geometry(**{"world_size": 1, "accumulation": 1, "micro_batch": 1, name: value})


# --- draws ---


def assert_follows(counts: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square with fixed seeds; the bound lies six standard deviations above the mean of the statistic."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert statistic < freedom + 6 * math.sqrt(2 * freedom), (statistic, freedom)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_row_of_a_draw_follows_the_weights(seed):
    rng = segment_rng(seed, 0, "test")
    weights_N = rng.random(30) ** 2 + 0.01
    firsts = np.bincount([draw(weights_N, 5, rng)[0] for _ in range(6000)], minlength=30)
    assert_follows(firsts, 6000 * weights_N / weights_N.sum())


@pytest.mark.parametrize("weights", [[1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 1, 40, 0.025, 0.025]])
def test_pairs_of_a_draw_follow_the_closed_form(weights):
    """P(i and j of 2) = w_i w_j (1 / (1 - w_i) + 1 / (1 - w_j)) for weights of sum 1."""
    w = np.array(weights) / np.sum(weights)
    pairs = list(itertools.combinations(range(len(w)), 2))
    wanted = np.array([w[i] * w[j] * (1 / (1 - w[i]) + 1 / (1 - w[j])) for i, j in pairs])
    assert wanted.sum() == pytest.approx(1)
    rng, number = segment_rng(4, 0, "test"), {pair: at for at, pair in enumerate(pairs)}
    counts = np.zeros(len(pairs))
    for _ in range(12_000):
        i, j = sorted(draw(np.array(weights, dtype=float), 2, rng).tolist())
        counts[number[i, j]] += 1
    often = 12_000 * wanted >= 5  # the chi-square needs counts; rare pairs are taken together
    together = np.append(counts[often], counts[~often].sum()), np.append(wanted[often], wanted[~often].sum())
    keep = together[1] > 0
    assert_follows(together[0][keep], 12_000 * together[1][keep])


def test_a_draw_from_more_than_two_to_the_24_rows_reaches_all_of_them_by_weight():
    num_rows, quota = 2**24 + 3, 50_000
    weights_N = np.ones(num_rows)
    weights_N[1::2] = 3.0
    rows_Q = draw(weights_N, quota, segment_rng(11, 0, "test"))
    assert len(np.unique(rows_Q)) == quota
    assert rows_Q.min() >= 0
    assert rows_Q.max() < num_rows
    odd = int((rows_Q % 2).sum())  # a quota this small among so many rows hardly uses the heavy ones up
    assert_follows(np.array([odd, quota - odd]), quota * np.array([0.75, 0.25]))
    assert_follows(np.bincount(rows_Q * 32 // num_rows, minlength=32), np.full(32, quota / 32))


weight_lists = st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 3.0, 7.5]), min_size=1, max_size=10)


@given(weight_lists, st.integers(0, 2**32), st.sampled_from([-1000, -300, 0, 300, 1000]), st.booleans())
def test_weights_times_a_power_of_two_draw_the_same_rows(weights, seed, power, replacement):
    weights_N = np.array(weights)
    quota = int((weights_N > 0).sum())
    wanted = draw(weights_N, quota, segment_rng(seed, 0, "test"), replacement=replacement)
    scaled_N = np.ldexp(weights_N, power)
    assert draw(scaled_N, quota, segment_rng(seed, 0, "test"), replacement=replacement).tolist() == wanted.tolist()


def test_weights_whose_sum_overflows_are_drawn_with_replacement_as_any_others():
    rows_Q = draw(np.full(40, 1e308), 20_000, segment_rng(0, 0, "test"), replacement=True)
    assert_follows(np.bincount(rows_Q, minlength=40), np.full(40, 500.0))


def test_a_very_low_temperature_draws_evenly_from_the_focus_of_a_large_pool():
    losses_N = np.arange(60_000, dtype=np.float32)
    plan = SegmentPlan.dynamic(Schedule(update_step=1), num_epochs=1, pool_steps=1)
    progress = plan.progress(plan.segment_at(0))
    selector = Loss(temperature=1e-3, replacement=True, quantiles=(0.25, 0.5))
    selection, _ = selector.select({}, {"loss": losses_N}, 8000, progress, segment_rng(0, 0, "select"))
    assert selection.rows_Q.min() > 29_000
    assert_follows(np.bincount((selection.rows_Q - 30_000) // 3000, minlength=10), np.full(10, 800.0))


@given(st.lists(st.integers(0, 2**50), min_size=1, max_size=30, unique=True), st.integers(0, 31))
def test_top_k_ranks_whole_numbers_beyond_int32_exactly(ids, k):
    ids_N = np.array(ids, dtype=np.int64)
    assert ids_N[top_k(ids_N, k)].tolist() == sorted(ids, reverse=True)[:k]


def test_streams_of_segments_beyond_int32_are_streams_of_their_own():
    segments = [2, 2**31, 2**31 + 2, 2**32 + 2, 2**40 + 2]
    assert len({segment_rng(0, segment, "select").random() for segment in segments}) == len(segments)
    assert len({loader_seed(0, segment) for segment in segments}) == len(segments)


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 2**32))
def test_warm_up_passes_meet_any_quota_and_their_beginning_does_not_depend_on_it(num_rows, quota, seed):
    allowed_N = np.arange(num_rows) % 3 != 1
    longer = passes(allowed_N, quota + 50, segment_rng(seed, 0, "warmup"))
    assert passes(allowed_N, quota, segment_rng(seed, 0, "warmup")).tolist() == longer[:quota].tolist()


# --- apportionment ---

domains = st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 400)), min_size=1, max_size=8)


@given(domains, st.integers(0, 1500))
def test_a_larger_proportion_with_no_less_room_never_gets_fewer_rows(pairs, quota):
    p_D, capacity_D = (np.array(column) for column in zip(*pairs, strict=True))
    assume(quota <= capacity_D.sum())
    counts_D = apportion(p_D, quota, capacity_D)
    for i, j in itertools.permutations(range(len(p_D)), 2):
        if capacity_D[i] >= capacity_D[j]:
            if p_D[i] > p_D[j]:
                assert counts_D[i] >= counts_D[j]
            elif p_D[i] == p_D[j]:
                assert counts_D[i] >= counts_D[j] - 1


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.integers(0, 10**12))
def test_quotas_beyond_int32_are_met_exactly(proportions, quota):
    counts_D = apportion(np.array(proportions), quota)
    assert int(counts_D.sum()) == quota
    exact = [quota * p / sum(proportions) for p in proportions]
    assert all(abs(count - share) < 1.001 for count, share in zip(counts_D.tolist(), exact, strict=True))


@given(domains, st.integers(0, 500), st.sampled_from([-1060, -500, 500, 1010]))
def test_proportions_of_any_magnitude_are_shared_alike(pairs, quota, power):
    p_D, capacity_D = (np.array(column) for column in zip(*pairs, strict=True))
    assume(quota <= capacity_D.sum())
    scaled_D = np.ldexp(p_D.astype(float), power)
    assert apportion(scaled_D, quota, capacity_D).tolist() == apportion(p_D, quota, capacity_D).tolist()


# --- the window of delta_loss ---

window_sizes = st.one_of(st.sampled_from([0.2, 0.5, 1.0, 1e-9, 5e-324]), st.floats(0, 1, exclude_min=True))
windows = st.builds(
    DeltaLoss,
    window_size=window_sizes,
    steepness=st.one_of(st.just(10.0), st.floats(1e-6, 1e6), st.floats(0, 1e308, exclude_min=True)),
    midpoint=st.one_of(st.just(0.5), st.floats(-2, 3), st.floats(-1e308, 1e308)),
)


@given(windows, st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1))
@example(DeltaLoss(window_size=1e-20, steepness=1e6), 1000, 0.0, 1.0)
@settings(max_examples=400)
def test_a_window_is_within_the_ranking_of_the_right_size_and_moves_forward_only(selector, num_scored, tau, other_tau):
    first, second = (selector.window(tau=t, num_scored=num_scored) for t in sorted((tau, other_tau)))
    for start, end in (first, second):
        assert 0 <= start < end <= num_scored
        assert abs((end - start) - max(selector.window_size * num_scored, 1)) < 1 + 1e-6
    assert first[0] <= second[0]
    assert first[1] <= second[1]


@given(windows, st.integers(1, 50), st.integers(1, 8), st.integers(0, 2**32))
def test_a_guided_selection_of_any_window_meets_its_quota(selector, num_rows, quota, seed):
    assume(quota <= num_rows)
    plan = SegmentPlan.dynamic(Schedule(update_step=1, update_times=3), num_epochs=1, pool_steps=9)
    initial_N, losses_N = np.random.default_rng(seed).random((2, num_rows)).astype(np.float32)
    for update in (1, 2):
        progress = plan.progress(plan.segment_at(update))
        signals = {"loss": losses_N}
        selection, _ = selector.select(
            {"initial_losses_N": initial_N}, signals, quota, progress, segment_rng(seed, 1, "x")
        )
        assert len(set(selection.rows_Q.tolist())) == quota
        assert 0 <= selection.window["start"] < selection.window["end"] <= num_rows


# --- every method: the quota is met by rows that may be drawn ---

methods = st.one_of(
    st.builds(DeltaLoss, window_size=st.floats(0.01, 1), when_empty=st.sampled_from(["slide", "uniform"])),
    st.builds(Loss, focus=st.sampled_from(["low", "medium", "high"]), temperature=st.floats(0.01, 100)),
    st.just(Random()),
    st.builds(
        Length, take=st.sampled_from(["longest", "shortest"]), reuse=st.sampled_from(["after_exhaustion", "always"])
    ),
    st.builds(Static, path=st.just("scores.npy"), draw=st.just("top")),
)
loss_values = st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0, float("nan"), float("inf")])


@given(methods, st.lists(st.tuples(loss_values, loss_values, st.integers(0, 3)), min_size=1, max_size=25), st.data())
def test_every_method_meets_every_quota_that_its_rows_can_hold(selector, rows, data):
    initial, now, labels = zip(*rows, strict=True)
    label_tokens_N = np.array(labels)
    losses = [np.where(label_tokens_N > 0, np.array(v, dtype=np.float32), np.nan) for v in (initial, now)]
    pool = PoolInfo(num_tokens_N=label_tokens_N + 4, num_label_tokens_N=label_tokens_N)
    scores_N = losses[0].astype(np.float64)
    may_N = label_tokens_N > 0
    for needed, arrays in (("loss", losses), ("file", [scores_N])):
        if needed in selector.needs:
            may_N = may_N & np.all(np.isfinite(arrays), axis=0)
    assume(may_N.any())
    quota = data.draw(st.integers(1, int(may_N.sum())))
    plan = SegmentPlan.dynamic(Schedule(update_step=1, update_times=3), num_epochs=1, pool_steps=9)
    times_trained_N = np.zeros(len(rows), dtype=np.int32)
    state = selector.init(pool)
    for step in range(3):
        progress = plan.progress(plan.segment_at(step))
        signals = {"loss": losses[min(step, 1)], "times_trained": times_trained_N.copy(), "file": scores_N}
        signals = {name: signals[name] for name in selector.needs_at(progress)}
        selection, state = selector.select(state, signals, quota, progress, segment_rng(3, step, "select"))
        assert selection.rows_Q.dtype == np.int64
        assert len(set(selection.rows_Q.tolist())) == quota
        assert np.all(label_tokens_N[selection.rows_Q] > 0)
        assert all(np.all(np.isfinite(values_N[selection.rows_Q])) for values_N in signals.values())
        times_trained_N[selection.rows_Q] += 1


# --- what errors are made of ---


@given(st.one_of(st.integers(), st.floats(), st.text(), st.lists(st.text()), st.sampled_from([10**400, -(16**5000)])))
def test_any_value_is_shown_on_one_short_line(value):
    text = shown(value)
    assert 0 < len(text) <= 200
    assert "\n" not in text
    assert shown([value])
    did_you_mean(value, [value, "warmup_step", 16**5000])


def test_a_value_within_itself_or_nested_without_end_is_shown():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert "nested too deeply" in shown(nested)
    while nested:  # taken apart by hand: Python would do it recursively
        nested = nested[0]


@pytest.mark.parametrize("value", [*TOO_MANY, -(10**400), float("nan"), True, "x", None, [1]], ids=shown)
def test_checks_refuse_any_value_with_a_sentence(value):
    with pytest.raises(ConfigError, match="size is "):
        require_range("size", value, above=0, at_most=1)
    with pytest.raises(ConfigError, match="pair is "):
        require_quantile_pair("pair", (0.1, value), at_ends=True)
    with pytest.raises(ConfigError, match="word is "):
        require_one_of("word", value, ("a", "b"))
