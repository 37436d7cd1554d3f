"""From proportions to rows: exact counts, consume-once, tokens, exhausted domains; the user guide's keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.algorithms.base import DomainInfo, Mixture
from dataflex.algorithms.mix.odm import ODM
from dataflex.algorithms.mix.rows import count_domains, take_rows
from dataflex.algorithms.mix.static import StaticMix
from dataflex.algorithms.mix.user_guide import initial_proportions, with_user_guide_keys
from dataflex.core.domains import shares
from dataflex.core.draw import apportion
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.seeds import segment_rng

DOMAIN_N = np.repeat([0, 1, 2], [20, 12, 8])
ALLOWED_N = np.arange(40) % 10 != 3  # 18, 11 and 7 rows: rows 3 13 23 33 are out
DOMAINS = DomainInfo(
    names=("web", "books", "code"), num_rows_D=np.array([18, 11, 7]), num_label_tokens_D=np.array([180, 440, 35])
)


def counts(mixer, proportions, quota, times_N=None, domains=DOMAINS):
    times_N = np.zeros(40, dtype=np.int32) if times_N is None else times_N
    mixture = Mixture(proportions_D=np.array(proportions), decision="fixed")
    return count_domains(mixer, mixture, quota, domains, DOMAIN_N, times_N, ALLOWED_N)


def test_shares_of_rows_are_apportioned_exactly():
    assert counts(StaticMix(), [0.5, 0.3, 0.2], 10).counts_D.tolist() == [5, 3, 2]


def test_shares_of_tokens_become_rows_by_their_mean_length():
    # Mean tokens 10, 40, 5: rows ~ .4/10 : .4/40 : .2/5 = 4 : 1 : 4.
    made = counts(StaticMix(unit="tokens"), [0.4, 0.4, 0.2], 18).counts_D
    assert made.tolist() == [8, 2, 8]
    tokens_D = made * DOMAINS.mean_tokens_D
    assert (tokens_D / tokens_D.sum()).tolist() == pytest.approx([0.4, 0.4, 0.2])


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(any).map(lambda p: shares(np.array(p))),
    st.integers(0, 60),
    st.sampled_from(
        [StaticMix(), StaticMix(unit="tokens"), StaticMix(max_repeats=2), StaticMix(exhausted="redistribute")]
    ),
)
def test_the_quota_is_filled_exactly_or_refused_with_both_numbers(proportions, quota, mixer):
    room = sum(
        (quota if mixer.max_times is None else n * mixer.max_times)
        for n, p in zip((18, 11, 7), proportions, strict=True)
        if p > 0
    )
    if quota > room:
        with pytest.raises(DataFlexError, match=f"quota of {quota} .* {room} "):
            counts(mixer, proportions, quota)
        return
    made = counts(mixer, proportions, quota).counts_D
    assert made.sum() == quota
    rows_Q = take_rows(mixer, made, DOMAIN_N, np.zeros(40, dtype=np.int32), ALLOWED_N, segment_rng(0, 0, "mix"))
    assert np.bincount(DOMAIN_N[rows_Q], minlength=3).tolist() == made.tolist()
    assert np.all(ALLOWED_N[rows_Q])
    assert np.bincount(rows_Q, minlength=40).max(initial=0) <= (mixer.max_times or quota)


def run(mixer, proportions, quota, segments):
    times_N, said = np.zeros(40, dtype=np.int32), []
    for segment in range(segments):
        made = counts(mixer, proportions, quota, times_N)
        rows_Q = take_rows(mixer, made.counts_D, DOMAIN_N, times_N, ALLOWED_N, segment_rng(0, segment, "mix"))
        times_N += np.bincount(rows_Q, minlength=40).astype(np.int32)
        said.append((made.counts_D.tolist(), made.warnings))
    return times_N, said


def test_a_domain_that_repeats_keeps_its_share_for_ever_and_its_rows_alternate():
    times_N, said = run(StaticMix(), [0.2, 0.2, 0.6], 10, 30)
    assert all(counts_D == [2, 2, 6] and not warnings for counts_D, warnings in said)
    for d, total in ((0, 60), (1, 60), (2, 180)):
        mine = times_N[(d == DOMAIN_N) & ALLOWED_N]
        assert mine.sum() == total
        assert np.ptp(mine) <= 1
    assert not times_N[~ALLOWED_N].any()


def test_a_domain_that_ran_dry_yields_its_share_and_it_is_said_until_nothing_is_left():
    times_N, said = run(StaticMix(exhausted="redistribute"), [0.2, 0.2, 0.6], 10, 3)
    assert [counts_D for counts_D, _ in said] == [[2, 2, 6], [5, 4, 1], [5, 5, 0]]
    assert said[0][1] == ()
    assert "code gives its last 1 rows" in said[1][1][0]
    assert "code has a share of 0.6 and no row left" in said[2][1][0]
    assert times_N.max() == 1
    with pytest.raises(DataFlexError, match=r"quota of 10 .* 6 .*exhausted: repeat"):
        run(StaticMix(exhausted="redistribute"), [0.2, 0.2, 0.6], 10, 4)


def test_the_limit_of_repeats_is_kept():
    times_N, _ = run(StaticMix(max_repeats=3), [0.1, 0.1, 0.8], 10, 8)
    assert times_N.max() == 3
    assert np.all(times_N[(DOMAIN_N == 2) & ALLOWED_N] == 3)


def test_a_share_that_is_no_whole_row_is_said():
    made = counts(StaticMix(), [0.9, 0.07, 0.03], 10)
    assert made.counts_D.tolist() == [9, 1, 0]
    assert made.warnings == (
        "domain code has a share of 0.03, which is no whole row of 10; raise update_step to give it some",
    )


def test_an_empty_domain_takes_nothing_and_leaves_its_share():
    times_N = np.zeros(40, dtype=np.int32)
    four = DomainInfo(
        names=("web", "books", "code", "none"),
        num_rows_D=np.array([18, 11, 7, 0]),
        num_label_tokens_D=np.array([180, 440, 35, 0]),
    )
    for unit in ("rows", "tokens"):
        mixture = Mixture(proportions_D=np.array([0.25, 0.25, 0.0, 0.5]), decision="fixed")
        made = count_domains(StaticMix(unit=unit), mixture, 10, four, DOMAIN_N, times_N, ALLOWED_N)
        assert made.counts_D.tolist() == ([5, 5, 0, 0] if unit == "rows" else [8, 2, 0, 0])
        assert "none has a share of 0.5 and no row left" in made.warnings[0]


def test_the_apportionment_of_the_design_with_many_domains():
    slim = np.array([0.541, 0.287, 0.042, 0.037, 0.034, 0.031, 0.028])
    assert apportion(slim, 100).tolist() == [54, 29, 4, 4, 3, 3, 3]


# --- the user guide's keys ---


@pytest.mark.parametrize(
    ("rule", "numbers", "wanted"),
    [
        (None, None, None),
        ("mixture", [0.7, 0.3], (0.7, 0.3)),
        (None, [0.7, 0.3], (0.7, 0.3)),
        ("mixture", {"wiki": 0.7, "c4": 0.3}, {"wiki": 0.7, "c4": 0.3}),
        ("stratified", None, "sizes"),
        ("uniform", None, "uniform"),
    ],
)
def test_the_rule_says_where_the_mixture_starts(rule, numbers, wanted):
    assert initial_proportions(rule, numbers) == wanted


@pytest.mark.parametrize(
    ("rule", "numbers", "said"),
    [
        ("mixture", None, "needs init_mixture_proportions"),
        ("mixtur", [1], "did you mean 'mixture'"),
        ("uniform", [0.5, 0.5], "beside mixture_sample_rule: uniform"),
        ("mixture", [-1, 2], "init_mixture_proportions is -1"),
        ("mixture", [0, 0], "at least one number"),
    ],
)
def test_rules_that_contradict_are_refused(rule, numbers, said):
    with pytest.raises(ConfigError, match=said):
        initial_proportions(rule, numbers)


def test_the_keys_become_parameters_of_the_mixer():
    keys = {"mixture_sample_rule": "mixture", "init_mixture_proportions": [0.7, 0.3]}
    assert with_user_guide_keys("static", {"proportions": (1, 1)}, **keys, static_mix=True) == {
        "proportions": (0.7, 0.3)
    }
    assert ODM(**with_user_guide_keys("odm", {"smoothing": 0.8}, **keys)) == ODM(smoothing=0.8, initial=(0.7, 0.3))
    assert with_user_guide_keys("doremi", {"step": 3}, **keys, static_mix=True) == {
        "step": 3,
        "proportions": (0.7, 0.3),
    }
    assert with_user_guide_keys("doremi", {"step": 1}, **keys, static_mix=True) == {"step": 1, "initial": (0.7, 0.3)}
    assert with_user_guide_keys("odm", {"smoothing": 0.8}, static_mix=False) == {"smoothing": 0.8}


@pytest.mark.parametrize("name", ["odm", "random", "stages"])
def test_static_mix_beside_a_mixer_that_decides_is_refused(name):
    with pytest.raises(ConfigError, match=f"static_mix: true .*{name}"):
        with_user_guide_keys(name, {}, static_mix=True)


def test_keys_that_a_mixer_cannot_follow_are_refused():
    with pytest.raises(ConfigError, match="temperature has its own"):
        with_user_guide_keys("temperature", {}, mixture_sample_rule="uniform")
    with pytest.raises(ConfigError, match="static_mix is 'yes'"):
        with_user_guide_keys("static", {}, static_mix="yes")  # type: ignore[arg-type]
