"""The common suite over the whole catalog, and finding a method by its name."""

import dataclasses

import numpy as np
import pytest

from dataflex.algorithms.catalog import SELECTORS, component_class, component_names
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.testing import Pool, SelectorCase, SelectorSuite, run

DELTA, LOSS, RANDOM = SELECTORS["delta_loss"], SELECTORS["loss"], SELECTORS["random"]
CLUSTER, NEAR, TSDS = SELECTORS["cluster_less"], SELECTORS["near"], SELECTORS["tsds"]
RHO, IFD, S2L, INFOBATCH = (SELECTORS[name] for name in ("rho_loss", "ifd", "s2l", "infobatch"))
LESS, ICONS = SELECTORS["less"], SELECTORS["icons"]
LENGTH, STATIC, REPLAY = SELECTORS["length"], SELECTORS["static"], SELECTORS["replay"]


def recorded(pool, progress, quota):
    """A former run that went through the rows with a label token and began anew at their end."""
    rows = np.flatnonzero(pool.label_tokens_N > 0)
    return np.roll(rows, -progress.segment * quota)[np.arange(quota) % len(rows)]


def similarities(pool, progress, quota):
    """To two groups; a row without a loss has no gradient."""
    both = np.stack([pool.fall_N * 7, -pool.fall_N * 3 + pool.scores_N / 50], axis=1).astype(np.float32)
    both[~np.isfinite(pool.start_N) | (pool.label_tokens_N == 0)] = np.nan
    return both


def target_sizes(pool, progress, quota):
    return np.array([3, 5])


GRADIENTS = {
    "similarities": similarities,
    "target_sizes": target_sizes,
    "learning_rate": lambda pool, progress, quota: np.array([0.1 / (1 + progress.step)]),
}
# Votes of several groups tie, and ties go by row; one group ranks by its similarities.
ONE_GROUP = {
    "similarities": lambda *at: similarities(*at)[:, :1],
    "target_sizes": lambda *at: np.array([3]),
}
CASES = [
    SelectorCase(DELTA(), ranks_by_row=True),
    SelectorCase(DELTA(baseline="run_start", normalize="initial"), ranks_by_row=True),
    SelectorCase(DELTA(window_size=0.5, when_empty="uniform", progress="t/T", base_weight=0.3), ranks_by_row=True),
    SelectorCase(DELTA(window_size=1.0)),
    SelectorCase(DELTA(replacement=True), ranks_by_row=True, allows_repeats=True),
    SelectorCase(LOSS()),
    SelectorCase(LOSS(focus="medium", temperature=3.0)),
    SelectorCase(LOSS(focus="low", quantiles=(0.2, 0.3))),
    SelectorCase(LOSS(replacement=True), allows_repeats=True),
    SelectorCase(RANDOM()),
    SelectorCase(RANDOM(replacement=True), allows_repeats=True),
    SelectorCase(LENGTH()),
    SelectorCase(LENGTH(take="shortest", by="total")),
    SelectorCase(LENGTH(reuse="always")),
    SelectorCase(LENGTH(take="band", band=(0.0, 1.0))),
    SelectorCase(STATIC(path="scores.npy")),
    SelectorCase(STATIC(path="scores.npy", draw="weighted")),
    SelectorCase(STATIC(path="scores.npy", draw="weighted", reuse="always")),
    SelectorCase(REPLAY(path="former"), signals={"replay": recorded}),
    SelectorCase(LESS(), signals=GRADIENTS, ranks_by_row=True),
    SelectorCase(LESS(aggregate="mean", draw="softmax"), signals=GRADIENTS),
    SelectorCase(LESS(memory="lr_sum"), signals=GRADIENTS, ranks_by_row=True),
    SelectorCase(ICONS(), signals=ONE_GROUP, ranks_by_row=True),
    SelectorCase(RHO(reference="model", ratio=0.5), ranks_by_row=True, measured_by_chance=True),
    SelectorCase(IFD(), ranks_by_row=True),
    SelectorCase(IFD(ratio="loss", upper=None), ranks_by_row=True),
    SelectorCase(S2L(path="former", n_clusters=4), ranks_by_row=True),
    SelectorCase(S2L(path="former", n_clusters=4, by_source=True, min_cluster=9), ranks_by_row=True),
    SelectorCase(INFOBATCH(), ranks_by_row=True),
    SelectorCase(INFOBATCH(r=0.9, delta=0.5), ranks_by_row=True),
    SelectorCase(NEAR(), ranks_by_row=True),
    SelectorCase(NEAR(walk="round_robin", reuse="always"), ranks_by_row=True),
    SelectorCase(TSDS(), ranks_by_row=True),
    SelectorCase(TSDS(draw="multinomial"), ranks_by_row=True, allows_repeats=True),
    SelectorCase(CLUSTER(cluster_size=4), signals=GRADIENTS, ranks_by_row=True),
    SelectorCase(CLUSTER(cluster_size=4, pick="random", aggregate="mean"), signals=GRADIENTS, ranks_by_row=True),
]


class TestCatalog(SelectorSuite):
    @pytest.fixture(params=CASES, ids=repr)
    def case(self, request) -> SelectorCase:
        return request.param


def test_every_method_of_the_catalog_has_a_case():
    assert {type(case.selector) for case in CASES} == set(SELECTORS.values())


def test_the_suite_sees_a_method_that_writes_to_its_signals():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Careless(LOSS):
        def select(self, state, signals, quota, progress, rng):
            signals["loss"][0] = 0
            return super().select(state, signals, quota, progress, rng)

    with pytest.raises(ValueError, match="read-only"):
        run(SelectorCase(Careless()), Pool.of_size(10))


@pytest.mark.parametrize("name", list(SELECTORS))
def test_a_method_is_found_by_its_name_and_by_its_path(name):
    cls = component_class("selectors", name)
    assert cls is SELECTORS[name]
    assert name in component_names("selectors")
    assert component_class("selectors", f"{cls.__module__}:{cls.__name__}") is cls


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'delta_los'.*did you mean 'delta_loss'"):
        component_class("selectors", "delta_los")


@pytest.mark.parametrize("name", ["no_such_module:Thing", "json:NoSuchClass", ":Thing", "json:", ".mine:Thing"])
def test_a_path_that_leads_nowhere_is_one_sentence_that_names_it(name):
    with pytest.raises(ConfigError) as caught:
        component_class("selectors", name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


BAD = [
    *[(DELTA, {"window_size": v}) for v in (0, -0.1, 1.5, float("nan"), float("inf"), "0.2", True, None)],
    *[(DELTA, {"steepness": v}) for v in (0, -1, float("inf"), "steep")],
    *[(DELTA, {"midpoint": v}) for v in (float("nan"), float("inf"), None)],
    *[(DELTA, {"base_weight": v}) for v in (-0.1, 1.1, float("nan"))],
    *[(DELTA, {name: "slid"}) for name in ("progress", "normalize", "baseline", "when_empty")],
    (DELTA, {"normalize": None}),
    *[(LOSS, {"focus": v}) for v in ("hihg", None, "")],
    *[(LOSS, {"focus_weight": v}) for v in (0, -2, float("inf"))],
    *[(LOSS, {"temperature": v}) for v in (0, -1, float("nan"))],
    *[(LOSS, {"quantiles": v}) for v in ([0.0, 0.5], [0.5, 1.0], [0.6, 0.4], [0.5, 0.5], [0.5], [0.1, "a"], [])],
    *[(LOSS, {"quantiles": v}) for v in (0.5, None)],
    *[(LENGTH, {name: "longst"}) for name in ("by", "take", "reuse")],
    *[(LENGTH, {"band": v}) for v in ([-0.1, 0.5], [0.5, 1.1], [0.7, 0.3], [0.1, 0.2, 0.3], 0.5)],
    (STATIC, {"draw": "in order"}),
    (STATIC, {"reuse": "sometimes"}),
    *[(LESS, {name: "maen"}) for name in ("aggregate", "draw", "gradient_type", "engine")],
    *[(LESS, {"temperature": v}) for v in (0, -1.0, float("nan"))],
    *[(LESS, {"proj_dim": v}) for v in (0, -4)],
    (ICONS, {"tie_break": "rank"}),
    *[(NEAR, {name: "best"}) for name in ("walk", "index", "reuse", "pooling")],
    *[(NEAR, params) for params in ({"k_max": 0}, {"encoder": ""}, {"indices_path": ""})],
    *[(TSDS, {name: "best"}) for name in ("draw", "index", "reuse", "pooling")],
    *[
        (TSDS, params)
        for params in ({"alpha": 1.1}, {"C": 0}, {"sigma": -1}, {"max_K": 1}, {"kde_K": 0}, {"probs_path": ""})
    ],
    *[(IFD, {name: "best"}) for name in ("ratio", "reuse")],
    *[(IFD, params) for params in ({"upper": 0}, {"model": ""})],
    *[(INFOBATCH, params) for params in ({"r": 0.95}, {"r": -0.1}, {"delta": 0}, {"delta": 1.1})],
    *[(CLUSTER, {name: 0}) for name in ("cluster_size", "representatives", "num_iterations")],
    *[(CLUSTER, {name: "nearst"}) for name in ("pick", "aggregate", "pooling")],
]


@pytest.mark.parametrize(("cls", "params"), BAD, ids=[f"{cls.__name__}-{params}" for cls, params in BAD])
def test_a_bad_parameter_is_one_sentence_that_names_key_and_value(cls, params):
    ((name, value),) = params.items()
    with pytest.raises(ConfigError) as caught:
        cls(**params)
    message = str(caught.value)
    assert name in message
    assert repr(value) in message
    assert "\n" not in message


def test_replay_without_a_path_says_what_it_needs():
    with pytest.raises(ConfigError, match="path is empty"):
        REPLAY(path="")


@pytest.mark.parametrize("case", [c for c in CASES if not c.allows_repeats and not c.signals], ids=repr)
def test_a_quota_that_cannot_be_filled_names_both_numbers(case):
    pool = Pool.of_size(12).with_bad_rows()
    drawable = int(case.can_draw(pool).sum())
    with pytest.raises(DataFlexError) as caught:
        run(case, pool, quota=drawable + 1)
    message = str(caught.value)
    assert str(drawable + 1) in message
    assert str(drawable) in message
    assert "\n" not in message
