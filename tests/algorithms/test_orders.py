"""Orders: the common suite, the golden traces, closed forms, edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.algorithms.catalog import ORDERS
from dataflex.algorithms.order.base import layers, next_of_run
from dataflex.algorithms.order.folding import Folding
from dataflex.algorithms.order.saw import Saw
from dataflex.algorithms.order.segment import SegmentOrder
from dataflex.algorithms.order.sorting import Sorting
from dataflex.algorithms.order.stair import Stair
from dataflex.algorithms.order.zigzag import Zigzag
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.seeds import segment_rng
from dataflex.testing import OrderCase, OrderSuite

SCORES = np.array([0.3, 0.9, 0.1, 0.5, 0.7, 0.2, 0.8, 0.4, 0.6, 0])

CASES = [
    OrderCase(Sorting()),
    OrderCase(Sorting(polarity="hard_first", by="loss")),
    OrderCase(Sorting(jitter=8), by_chance=True),
    OrderCase(Folding()),
    OrderCase(Folding(layers=1000)),
    OrderCase(Folding(layers=3, jitter=4, polarity="hard_first"), by_chance=True),
    OrderCase(Zigzag()),
    OrderCase(Zigzag(layers=2, by="column", column="score")),
    OrderCase(Stair()),
    OrderCase(Stair(sections=4, rho=0.12, layers=2, over="run")),
    OrderCase(Saw()),
    OrderCase(Saw(by="file", path="scores.npy")),
    OrderCase(SegmentOrder(), by_chance=True),
    OrderCase(SegmentOrder(first=50, last=50, polarity="hard_first"), by_chance=True),
]


class TestOrders(OrderSuite):
    @pytest.fixture(params=CASES, ids=repr)
    def case(self, request) -> OrderCase:
        return request.param


def test_every_order_of_the_catalog_has_a_case():
    assert {type(case.order) for case in CASES} == set(ORDERS.values())


def arrange(order, scores, seed: int = 0) -> list[int]:
    return order.arrange(np.asarray(scores, float), segment_rng(seed, 0, "order")).tolist()


@pytest.mark.parametrize(
    ("order", "scores", "wanted"),
    [
        (Sorting(), SCORES, [9, 2, 5, 0, 7, 3, 8, 4, 6, 1]),
        (Folding(layers=3), SCORES, [9, 0, 8, 1, 2, 7, 4, 5, 3, 6]),
        (Zigzag(layers=3), SCORES, [9, 0, 8, 1, 4, 7, 2, 5, 3, 6]),
        (Stair(sections=2, rho=0.225, layers=3), range(20), [*range(6), 6, 9, 12, 7, 10, 13, 8, 11, *range(14, 20)]),
        (Saw(sections=3, rho=0.075, layers=2), range(20), [*range(6), 7, 8, 6, 9, 10, 11, 13, 14, 12, *range(15, 20)]),
    ],
    ids=repr,
)
def test_the_traces(order, scores, wanted):
    assert arrange(order, list(scores)) == wanted


def test_the_defaults_are_the_authors():
    assert (Folding().layers, Zigzag().layers) == (5, 5)
    assert (Stair().sections, Stair().rho, Stair().layers) == (2, 0.225, 3)
    assert (Saw().sections, Saw().rho, Saw().layers) == (3, 0.075, 2)
    assert (SegmentOrder().first, SegmentOrder().last) == (10, 10)


@given(st.integers(1, 60), st.integers(1, 12))
def test_rank_i_of_a_fold_stands_at_the_start_of_its_layer_plus_i_over_l(n, num_layers):
    folded = layers(n, num_layers)
    lengths = [len(range(k, n, num_layers)) for k in range(num_layers)]
    position = np.argsort(folded)
    assert position.tolist() == [sum(lengths[: i % num_layers]) + i // num_layers for i in range(n)]


@given(st.integers(1, 60), st.integers(1, 12))
def test_a_zigzag_is_a_fold_whose_odd_layers_run_backwards(n, num_layers):
    wanted = []
    for k in range(num_layers):
        layer = list(range(k, n, num_layers))
        wanted += layer[::-1] if k % 2 else layer
    assert layers(n, num_layers, alternate=True).tolist() == wanted


@given(st.integers(0, 200), st.integers(1, 5), st.floats(0, 0.49), st.integers(1, 4), st.booleans())
def test_outside_of_the_regions_stair_and_saw_are_sorting(n, sections, share, num_layers, saw):
    rho = share / sections
    cls = Saw if saw else Stair
    arranged = np.array(arrange(cls(sections=sections, rho=rho, layers=num_layers), np.arange(n)), dtype=int)
    assert sorted(arranged.tolist()) == list(range(n))
    near = np.zeros(n, dtype=bool)
    for k in range(1, sections):
        middle, radius = round(n * k / sections), round(n * rho)
        near[max(0, middle - radius) : middle + radius] = True
    assert np.array_equal(arranged[~near], np.flatnonzero(~near))


def test_segment_shuffles_inside_its_three_parts_only():
    for seed in range(20):
        arranged = arrange(SegmentOrder(first=20, last=30), SCORES, seed)
        ranks = [sorted(SCORES).index(SCORES[row]) for row in arranged]
        assert sorted(ranks[:2]) == [0, 1]
        assert sorted(ranks[2:7]) == [2, 3, 4, 5, 6]
        assert sorted(ranks[7:]) == [7, 8, 9]
    firsts = [arrange(SegmentOrder(first=20, last=30), SCORES, seed)[0] for seed in range(1000)]
    assert abs(firsts.count(9) - 500) < 4.5 * np.sqrt(250)


def test_jitter_moves_a_row_inside_its_block_only():
    arranged = arrange(Sorting(jitter=4), np.arange(10))
    assert [sorted(arranged[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert arranged != list(range(10))
    assert arrange(Sorting(jitter=1), np.arange(10)) == list(range(10))


def test_ties_keep_their_order_in_both_polarities():
    assert arrange(Sorting(), [1, 0, 1, 0]) == [1, 3, 0, 2]
    assert arrange(Sorting(polarity="hard_first"), [1, 0, 1, 0]) == [0, 2, 1, 3]


@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=8))
def test_an_order_over_the_run_serves_every_row_once_before_any_again(n, quotas):
    order_N, cursor, served = np.random.default_rng(n).permutation(n), 0, []
    for quota in quotas:
        rows_Q, cursor = next_of_run(order_N, cursor, quota)
        assert len(rows_Q) == quota
        served += rows_Q.tolist()
    assert served == [order_N[i % n] for i in range(sum(quotas))]


def test_an_order_of_nothing_cannot_be_served():
    with pytest.raises(DataFlexError, match="no row can be trained"):
        next_of_run(np.zeros(0, dtype=np.int64), 0, 1)


BAD = [
    (Sorting, {"by": "size"}),
    (Sorting, {"polarity": "easy"}),
    (Sorting, {"over": "epoch"}),
    (Sorting, {"jitter": -1}),
    (Sorting, {"column": "score"}),
    (Sorting, {"path": "scores.npy"}),
    (Folding, {"layers": 0}),
    (Zigzag, {"layers": 0}),
    (Stair, {"sections": 0}),
    (Stair, {"rho": 0.25}),
    (Saw, {"rho": -0.1}),
    (SegmentOrder, {"first": 101}),
    (SegmentOrder, {"last": 95}),
]


@pytest.mark.parametrize(("cls", "params"), BAD, ids=[f"{cls.__name__}-{params}" for cls, params in BAD])
def test_a_bad_parameter_is_one_sentence_that_names_its_key(cls, params):
    with pytest.raises(ConfigError) as caught:
        cls(**params)
    assert next(iter(params)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("by", "what"), [("column", "column is missing"), ("file", "path is missing")])
def test_a_score_from_somewhere_needs_its_place(by, what):
    with pytest.raises(ConfigError, match=what):
        Sorting(by=by)
