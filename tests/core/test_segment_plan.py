"""The plan against a run that is simply counted out, step by step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.core.errors import ConfigError
from dataflex.core.plan import Schedule, SegmentPlan

schedules = st.builds(
    Schedule,
    warmup_step=st.integers(0, 7),
    update_step=st.integers(1, 6),
    update_times=st.integers(-1, 4),
    train_step=st.one_of(st.just(0), st.integers(1, 60)),
)
lengths = {
    "num_epochs": st.one_of(st.integers(1, 3), st.floats(0.05, 3.0)),
    "pool_steps": st.integers(1, 20),
    "max_steps": st.one_of(st.none(), st.integers(1, 40)),
}


@st.composite
def plans(draw) -> SegmentPlan:
    make = draw(st.sampled_from([SegmentPlan.dynamic, SegmentPlan.host]))
    return make(draw(schedules), **{name: draw(strategy) for name, strategy in lengths.items()})


def counted_out(schedule: Schedule, num_steps: int) -> list[tuple[int, int, int, int | None]]:
    """(start, stop, cycle, update) of every segment, by walking through the run."""
    segments, step, cycle = [], 0, 0
    while step < num_steps:
        updates = range(schedule.update_times) if schedule.update_times > 0 else range(num_steps)
        pieces = [(None, schedule.warmup_step)] if schedule.warmup_step else []
        for update, length in pieces + [(t, schedule.update_step) for t in updates]:
            if step < num_steps:
                segments.append((step, min(step + length, num_steps), cycle, update))
                step += length
        cycle += 1
    return segments


def as_tuples(plan: SegmentPlan) -> list[tuple[int, int, int, int | None]]:
    return [(s.start, s.stop, s.cycle, s.update) for s in plan.segments()]


@given(schedules, st.fixed_dictionaries(lengths))
def test_a_dynamic_plan_equals_the_run_counted_out(schedule, length):
    plan = SegmentPlan.dynamic(schedule, **length)
    assert as_tuples(plan) == counted_out(schedule, plan.num_steps)


@given(schedules, st.fixed_dictionaries(lengths))
def test_the_length_of_a_dynamic_run_is_what_the_contract_says(schedule, length):
    epoch = length["pool_steps"]
    if schedule.update_times > 0:
        epoch = schedule.warmup_step + schedule.update_step * schedule.update_times
    wanted = schedule.train_step or math.ceil(length["num_epochs"] * epoch)
    if length["max_steps"] is not None:
        wanted = min(wanted, length["max_steps"])
    plan = SegmentPlan.dynamic(schedule, **length)
    assert (plan.num_steps, plan.steps_per_epoch) == (wanted, epoch)


@given(schedules, st.fixed_dictionaries(lengths))
def test_a_host_plan_cuts_every_pass_over_the_pool_alike_and_ignores_warmup_and_updates(schedule, length):
    plan = SegmentPlan.host(schedule, **length)
    pool = length["pool_steps"]
    if schedule.train_step:
        assert plan.num_steps == min(schedule.train_step, length["max_steps"] or schedule.train_step)
    else:  # the host's own length: max_steps alone, where it is given
        assert plan.num_steps == (length["max_steps"] or math.ceil(length["num_epochs"] * pool))
    wanted = []
    for start in range(0, plan.num_steps, pool):
        end = min(start + pool, plan.num_steps)
        for update, first in enumerate(range(start, end, schedule.update_step)):
            wanted.append((first, min(first + schedule.update_step, end), start // pool, update))
    assert as_tuples(plan) == wanted


@given(plans())
def test_segments_tile_the_run_and_are_numbered_in_order(plan):
    segments = list(plan.segments())
    assert [s.index for s in segments] == list(range(len(segments)))
    assert [step for s in segments for step in range(s.start, s.stop)] == list(range(plan.num_steps))
    assert all(s.num_steps == s.stop - s.start > 0 for s in segments)


@given(plans())
def test_every_step_of_a_segment_leads_back_to_that_segment(plan):
    for segment in plan.segments():
        assert all(plan.segment_at(step) == segment for step in range(segment.start, segment.stop))


@given(plans())
def test_updates_before_a_step_are_those_that_one_counts(plan):
    decisions = [s.start for s in plan.segments() if not s.is_warmup]
    for step in range(plan.num_steps + 1):
        assert plan.updates_before(step) == sum(start < step for start in decisions)


@given(plans())
def test_progress_counts_decisions_over_the_whole_run_and_within_the_cycle(plan):
    segments = list(plan.segments())
    total = sum(not s.is_warmup for s in segments)
    made = 0
    for segment in segments:
        p = plan.progress(segment)
        assert (p.segment, p.step, p.num_steps) == (segment.index, segment.start, plan.num_steps)
        assert (p.cycle, p.update, p.is_warmup) == (segment.cycle, segment.update, segment.is_warmup)
        assert (p.updates_made, p.total_updates) == (made, total)
        assert p.is_first_selection == (made == 0 and not segment.is_warmup)
        assert p.num_updates == plan.updates_per_cycle
        made += not segment.is_warmup


@given(plans())
def test_an_epoch_stops_at_the_next_multiple_of_its_length_or_at_the_end(plan):
    for step in range(plan.num_steps):
        stop = plan.epoch_stop(step)
        assert step < stop <= plan.num_steps
        assert stop % plan.steps_per_epoch == 0 or stop == plan.num_steps
        assert stop - (step - step % plan.steps_per_epoch) <= plan.steps_per_epoch


def test_two_cycles_by_hand():
    schedule = Schedule(warmup_step=4, update_step=3, update_times=2)
    plan = SegmentPlan.dynamic(schedule, num_epochs=1.5, pool_steps=999)
    assert as_tuples(plan) == [(0, 4, 0, None), (4, 7, 0, 0), (7, 10, 0, 1), (10, 14, 1, None), (14, 15, 1, 0)]
    assert [plan.progress(s).num_updates for s in plan.segments()] == [2] * 5


def test_an_open_ended_run_has_one_warmup_and_its_epoch_is_a_pass_over_the_pool():
    schedule = Schedule(warmup_step=2, update_step=4, update_times=0)
    plan = SegmentPlan.dynamic(schedule, num_epochs=2, pool_steps=5)
    assert as_tuples(plan) == [(0, 2, 0, None), (2, 6, 0, 0), (6, 10, 0, 1)]
    assert plan.epoch_stop(0) == 5
    assert plan.progress(plan.segment_at(9)).num_updates is None


def test_a_run_may_end_within_its_warmup():
    plan = SegmentPlan.dynamic(Schedule(warmup_step=9, update_step=4, train_step=5), num_epochs=1, pool_steps=5)
    assert as_tuples(plan) == [(0, 5, 0, None)]
    assert plan.progress(plan.segment_at(0)).total_updates == 0


def test_the_documented_schedule_has_its_thirty_updates():
    schedule = Schedule(warmup_step=100, update_step=50, update_times=30)
    plan = SegmentPlan.dynamic(schedule, num_epochs=1, pool_steps=12345)
    assert plan.num_steps == 1600
    assert len(list(plan.segments())) == 31
    assert plan.updates_before(plan.num_steps) == 30


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_run_is_an_error_that_names_it(step):
    plan = SegmentPlan.dynamic(Schedule(update_step=10), num_epochs=1, pool_steps=10)
    with pytest.raises(ConfigError, match=str(step)):
        plan.segment_at(step)


@pytest.mark.parametrize(
    ("name", "value"), [("update_step", 0), ("update_step", -3), ("warmup_step", -1), ("train_step", -2)]
)
def test_a_schedule_out_of_range_is_an_error_that_names_key_and_value(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}") as caught:
        Schedule(**{"update_step": 1, name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [SegmentPlan.dynamic, SegmentPlan.host])
@pytest.mark.parametrize("length", [{"num_epochs": 0}, {"num_epochs": 1, "max_steps": 0}])
def test_a_run_without_steps_is_an_error(make, length):
    with pytest.raises(ConfigError, match="has 0 optimizer steps"):
        make(Schedule(update_step=1), pool_steps=4, **length)


@pytest.mark.parametrize("make", [SegmentPlan.dynamic, SegmentPlan.host])
def test_a_pool_without_a_whole_step_is_an_error_and_no_division_by_zero_later(make):
    schedule = Schedule(update_step=2, update_times=0, train_step=4)
    with pytest.raises(ConfigError):
        make(schedule, num_epochs=1, pool_steps=0, max_steps=4)
