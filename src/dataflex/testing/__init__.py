"""What every method must hold to, ours or another package's.

Another package tests its own method by a subclass in its tests::

    class TestMine(SelectorSuite):
        @pytest.fixture(params=[SelectorCase(Mine(), signals={"mine": lambda pool, progress, quota: ...})], ids=repr)
        def case(self, request):
            return request.param

and likewise with ``MixerSuite``, ``WeigherSuite`` and ``OrderSuite``. Every check is a method
``test_...(self, case)``, so that all of them run for every case.
"""

from dataflex.testing.mixers import MixerCase, MixerSuite
from dataflex.testing.orders import OrderCase, OrderSuite
from dataflex.testing.selectors import (
    PLAN,
    QUOTA,
    SCHEDULE,
    Pool,
    SelectorCase,
    SelectorSuite,
    all_same,
    frozen_state,
    read_only,
    run,
    same,
    saved_and_loaded,
)
from dataflex.testing.weighers import WeigherCase, WeigherSuite

__all__ = [
    "PLAN",
    "QUOTA",
    "SCHEDULE",
    "MixerCase",
    "MixerSuite",
    "OrderCase",
    "OrderSuite",
    "Pool",
    "SelectorCase",
    "SelectorSuite",
    "WeigherCase",
    "WeigherSuite",
    "all_same",
    "frozen_state",
    "read_only",
    "run",
    "same",
    "saved_and_loaded",
]
