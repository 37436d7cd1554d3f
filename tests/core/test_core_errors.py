"""Errors: kinds and the nearest name."""

import pytest

from dataflex.core.errors import ConfigError, DataFlexError, LedgerError, did_you_mean


@pytest.mark.parametrize("kind", [ConfigError, LedgerError])
def test_every_error_can_be_caught_as_one_kind(kind):
    assert issubclass(kind, DataFlexError)


def test_the_nearest_name_is_offered_and_only_when_it_is_near():
    assert did_you_mean("windw_size", ["midpoint", "window_size"]) == " (did you mean 'window_size'?)"
    assert did_you_mean("xyz", ["midpoint", "window_size"]) == ""
    assert did_you_mean("xyz", []) == ""
