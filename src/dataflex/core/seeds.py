"""Random streams: every random choice is a function of (seed, segment, role)."""

from __future__ import annotations

import hashlib

import numpy as np


def segment_rng(seed: int, segment: int, role: str) -> np.random.Generator:
    """Return the generator of one role in one segment.

    Streams of different roles are independent, so that adding a role ("mix", "order") leaves the draws of the others
    as they were. Only ``Generator.random`` and ``integers`` are used on it: their streams are stable across numpy
    releases, unlike ``choice``.

    >>> segment_rng(42, 3, "select").random() == segment_rng(42, 3, "select").random()
    True
    """
    role_word = int.from_bytes(hashlib.sha256(role.encode()).digest()[:8], "little")
    # SeedSequence wants non-negative words; a user's seed may be negative.
    sequence = np.random.SeedSequence([abs(int(seed)), int(seed < 0), int(segment), role_word])
    return np.random.Generator(np.random.Philox(sequence))


def loader_seed(seed: int, segment: int) -> int:
    """Seed of the data loader's private generator for one segment, in [0, 2**63)."""
    return int(segment_rng(seed, segment, "loader").integers(0, 2**63 - 1))
