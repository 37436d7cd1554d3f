"""Dealing rows to steps, micro-batches and ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.core.errors import ConfigError
from dataflex.core.order import Geometry, deal

geometries = st.builds(
    Geometry, world_size=st.integers(1, 4), accumulation=st.integers(1, 4), micro_batch=st.integers(1, 4)
)


@given(geometries, st.integers(0, 5))
def test_dealing_is_a_partition_with_the_documented_axes(geometry, num_steps):
    rows_Q = np.random.default_rng(0).permutation(num_steps * geometry.global_batch)
    dealt = deal(rows_Q, geometry)
    assert dealt.shape == (num_steps, geometry.accumulation, geometry.world_size, geometry.micro_batch)
    assert sorted(dealt.ravel().tolist()) == list(range(len(rows_Q)))


@given(geometries, st.integers(1, 4))
def test_each_rank_takes_the_rows_that_counting_gives_it(geometry, num_steps):
    g = geometry
    dealt = deal(np.arange(num_steps * g.global_batch), g)
    row = 0
    for step in range(num_steps):
        for micro in range(g.accumulation):
            for rank in range(g.world_size):
                for sample in range(g.micro_batch):
                    assert dealt[step, micro, rank, sample] == row
                    row += 1


@given(st.integers(1, 24), st.integers(1, 3))
def test_every_cut_of_the_same_global_batch_trains_the_same_rows_in_each_step(global_batch, num_steps):
    rows_Q = np.random.default_rng(1).permutation(num_steps * global_batch)
    steps = [set(rows_Q[s * global_batch : (s + 1) * global_batch].tolist()) for s in range(num_steps)]
    for world in range(1, global_batch + 1):
        for micro in range(1, global_batch // world + 1):
            if global_batch % (world * micro) == 0:
                g = Geometry(world_size=world, accumulation=global_batch // world // micro, micro_batch=micro)
                assert [set(step.ravel().tolist()) for step in deal(rows_Q, g)] == steps


def test_rows_that_are_no_whole_steps_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"7 rows .* 4 samples"):
        deal(np.arange(7), Geometry(world_size=2, accumulation=1, micro_batch=2))


@pytest.mark.parametrize("name", ["world_size", "accumulation", "micro_batch"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_geometry_below_one_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        Geometry(**{"world_size": 1, "accumulation": 1, "micro_batch": 1, name: value})
