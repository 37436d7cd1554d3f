"""Random streams are functions of seed, segment and role, today and in the next release."""

import itertools

import numpy as np

from dataflex.core.seeds import loader_seed, segment_rng


def test_streams_are_pinned_so_that_a_release_cannot_change_old_runs():
    assert segment_rng(42, 3, "select").random() == 0.8478208006780973
    assert segment_rng(-7, 0, "mix").random() == 0.420347153798452
    assert segment_rng(42, 3, "select").integers(0, 2**31, 3).tolist() == [1677104411, 1820681305, 209246916]
    assert loader_seed(42, 3) == 7084701275388738274


def test_every_seed_segment_and_role_has_a_stream_of_its_own():
    keys = list(
        itertools.product([0, 1, -1, 42, 2**32, 2**32 + 42, 2**63], range(6), ["select", "mix", "order", "loader"])
    )
    firsts = {segment_rng(*key).random() for key in keys}
    assert len(firsts) == len(keys)


def test_using_one_role_leaves_the_streams_of_the_others_as_they_were():
    before = segment_rng(5, 1, "mix").random(4)
    select = segment_rng(5, 1, "select")
    select.random(1000)
    assert segment_rng(5, 1, "mix").random(4).tolist() == before.tolist()


def test_roles_and_neighbouring_segments_are_uncorrelated():
    streams = [segment_rng(0, segment, role).random(4000) for segment in (0, 1) for role in ("select", "mix")]
    correlations = np.corrcoef(streams)[np.triu_indices(4, k=1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_a_stream_does_not_touch_the_global_generator():
    np.random.seed(3)
    wanted = np.random.random()
    np.random.seed(3)
    segment_rng(1, 2, "select").random(10)
    loader_seed(1, 2)
    assert np.random.random() == wanted


def test_a_loader_seed_fits_a_signed_word():
    assert all(0 <= loader_seed(seed, segment) < 2**63 for seed in (-3, 0, 2**40) for segment in range(50))
