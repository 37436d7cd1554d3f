"""Asserts in the shared helpers are explained like those of the tests."""

import pytest

pytest.register_assert_rewrite("dataflex.testing")
