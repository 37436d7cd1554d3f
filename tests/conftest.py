"""Hypothesis settings of the whole suite: no deadlines (slow machines are no failures), no example database on disk."""

from hypothesis import settings

settings.register_profile("dataflex", deadline=None, database=None, max_examples=100)
settings.load_profile("dataflex")
