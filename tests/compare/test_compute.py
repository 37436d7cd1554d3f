"""Steps for a budget, against counting them one by one; what a run's ledger says it cost."""

import dataclasses

import numpy as np
import pytest

from dataflex.core.errors import ConfigError
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.evaluate.compare.compute import Price, steps_within
from dataflex.evaluate.compare.costs import Cost


def passes_of(schedule):
    """Every decision scores the pool."""

    def passes(num_steps):
        plan = SegmentPlan.dynamic(Schedule(**{**vars(schedule), "train_step": num_steps}), num_epochs=1, pool_steps=10)
        return plan.updates_before(num_steps)

    return passes


@pytest.mark.parametrize("seed", range(8))
def test_the_steps_are_the_most_that_the_budget_pays_for(seed):
    rng = np.random.default_rng(seed)
    schedule = Schedule(
        warmup_step=int(rng.integers(0, 5)), update_step=int(rng.integers(1, 7)), update_times=int(rng.integers(0, 4))
    )
    price = Price(flops_per_step=float(rng.uniform(1, 5)), flops_per_pass=float(rng.choice([0, 3, 40])))
    passes, budget = passes_of(schedule), float(rng.uniform(60, 900))
    found = steps_within(budget, price, passes)
    brute = max(n for n in range(1, 1000) if price.total(n, passes(n)) <= budget)
    assert found == brute


def test_a_cheap_method_trains_longer_and_the_dearest_gets_the_steps_it_was_measured_at():
    passes = passes_of(Schedule(warmup_step=2, update_step=4, update_times=0))
    dear, cheap = Price(flops_per_step=0.1, flops_per_pass=0.7), Price(flops_per_step=0.1, flops_per_pass=0.0)
    for num_steps in (6, 13, 50):
        budget = dear.total(num_steps, passes(num_steps))
        assert steps_within(budget, dear, passes) == num_steps
        assert steps_within(budget, cheap, passes) == num_steps + 7 * passes(num_steps)


def test_a_budget_for_no_step_is_an_error():
    with pytest.raises(ConfigError, match="pays for no step"):
        steps_within(1.0, Price(flops_per_step=2.0, flops_per_pass=0.0), lambda n: 0)
    with pytest.raises(ConfigError, match="lower flops"):
        steps_within(1e30, Price(flops_per_step=2.0, flops_per_pass=0.0), lambda n: 0)


def test_flops_are_two_for_each_weight_and_token_of_a_forward():
    cost = Cost(num_steps=1, trained_tokens=10, scored_tokens=100, num_passes=1, choosing_s=0.0, training_s=0.0)
    assert cost.training_flops(7, forwards=3.0) == 2 * 7 * 10 * 3
    assert cost.choosing_flops(7, forwards=3.0) == 2 * 7 * 100
    by_gradient = dataclasses.replace(cost, gradient_tokens=40)
    assert by_gradient.choosing_flops(7, forwards=3.0) == 2 * 7 * (60 + 3 * 40)
    by_another = dataclasses.replace(cost, other_tokens=40, other_macs=40 * 2)  # a model of 2 weights
    assert by_another.choosing_flops(7, forwards=3.0) == 2 * (7 * 60 + 2 * 40)
    beside_another = dataclasses.replace(cost, reference_weights=2)
    assert beside_another.training_flops(7, forwards=3.0) == 2 * 10 * (3 * 7 + 2)
