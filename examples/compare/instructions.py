"""Short instructions about words, made by rule: another family of data than tasks.py, without wrong answers.

    python examples/compare/instructions.py

Writes the pool and held-out rows of compare_instructions.yaml and trains its small model. The eight kinds are not
equally frequent in the pool, as in collected data: the first has a third of the rows, the last one percent. Held-out
rows are of all kinds alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from prepare import DATA, MODELS, NUM_BASE, NUM_HELD_OUT, NUM_POOL, UNTRAINED, train_base, write_sets

ANIMALS = ("cat", "dog", "fox", "hen", "owl", "pig", "bee", "ant", "cow", "rat")
COLOURS = ("red", "blue", "green", "black", "white", "brown")
PLACES = ("barn", "river", "garden", "market", "bridge", "school")
OPPOSITES = {
    "big": "small",
    "hot": "cold",
    "old": "new",
    "fast": "slow",
    "wet": "dry",
    "dark": "light",
    "full": "empty",
}
SPANISH = {
    "cat": "gato",
    "dog": "perro",
    "cow": "vaca",
    "bee": "abeja",
    "fox": "zorro",
    "hen": "gallina",
    "owl": "buho",
}
SHARES = (32, 24, 16, 12, 8, 4, 3, 1)  # percent of the pool, by kind


def phrase(rng: random.Random) -> str:
    return f"the {rng.choice(COLOURS)} {rng.choice(ANIMALS)} at the {rng.choice(PLACES)}"


def capitals(rng: random.Random) -> tuple[str, str]:
    text = phrase(rng)
    return f"Write in capitals: {text}", text.upper()


def colour(rng: random.Random) -> tuple[str, str]:
    text = phrase(rng)
    return f"Name the colour: {text}", text.split()[1]


def last_word(rng: random.Random) -> tuple[str, str]:
    words = rng.sample((*ANIMALS, *PLACES), rng.randint(3, 6))
    return f"Give the last word: {' '.join(words)}", words[-1]


def alphabet(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(ANIMALS, rng.randint(3, 5))
    return f"Put in order: {' '.join(words)}", " ".join(sorted(words))


def opposite(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(tuple(OPPOSITES))
    return f"Say the opposite: a {word} {rng.choice(PLACES)} by the {rng.choice(PLACES)}", OPPOSITES[word]


def translation(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(tuple(SPANISH), 2)
    return f"In Spanish: {words[0]} and {words[1]}", f"{SPANISH[words[0]]} y {SPANISH[words[1]]}"


def plural(rng: random.Random) -> tuple[str, str]:
    word, number = rng.choice((*ANIMALS, *PLACES)), rng.randint(2, 9)
    return f"Say how many: {word} x {number}", f"{number} {word}s"


def list_of(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(ANIMALS, rng.randint(2, 4))
    return f"Make a list: {', '.join(words)}", "; ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


KINDS: tuple[Callable[[random.Random], tuple[str, str]], ...] = (
    capitals, colour, last_word, alphabet, opposite, translation, plural, list_of,
)  # fmt: skip


def make_rows(
    count: int, seed: int, *, shares: tuple[int, ...] | None, avoid: frozenset[str] = frozenset()
) -> list[dict]:
    """Rows of the kinds by their shares, or of all alike; no question that ``avoid`` holds."""
    rng = random.Random(seed)
    kinds = [kind for kind, share in zip(KINDS, shares or (1,) * len(KINDS), strict=True) for _ in range(share)]
    rows: list[dict] = []
    while len(rows) < count:
        kind = kinds[len(rows) % len(kinds)] if shares is None else rng.choice(kinds)
        question, answer = kind(rng)
        if question not in avoid:
            rows.append({"instruction": question, "input": "", "output": answer, "task": kind.__name__})
    return rows


def main() -> None:
    held_out = make_rows(NUM_HELD_OUT, 13, shares=None)
    avoid = frozenset(row["instruction"] for row in held_out)
    write_sets(
        {
            "instructions_base": make_rows(NUM_BASE // 4, 11, shares=SHARES, avoid=avoid),
            "instructions_pool": make_rows(NUM_POOL, 12, shares=SHARES, avoid=avoid),
            "instructions_held_out": held_out,
        }
    )
    if not UNTRAINED.is_dir():
        raise SystemExit(f"{UNTRAINED} is not there; run examples/compare/prepare.py first")
    base = MODELS / "instructions_base"
    if not base.is_dir():
        train_base(base, "dataset=instructions_base", "eval_dataset=instructions_held_out", f"dataset_dir={DATA}")


if __name__ == "__main__":
    main()
