"""Twelve more short reasoning tasks, so that one of twenty can be a target among the others."""

from __future__ import annotations

import random

from tasks import NAMES, TASKS, Task

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ROMAN = ((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def _numbers(rng: random.Random, count: int) -> list[int]:
    return rng.sample(range(100), count)


def product(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return f"What is {a} * {b}?", str(a * b)


def remainder(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(2, 9)
    return f"What is left of {a} by {b}?", str(a % b)


def parity(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(100, 999)
    return f"Is {number} odd or even?", "odd" if number % 2 else "even"


def next_letter(rng: random.Random) -> tuple[str, str]:
    place, step = rng.randrange(20), rng.randint(1, 5)
    return f"Which letter is {step} after {LETTERS[place]}?", LETTERS[place + step]


def length(rng: random.Random) -> tuple[str, str]:
    letters = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 12)))
    return f"How long is {letters}?", str(len(letters))


def first_and_last(rng: random.Random) -> tuple[str, str]:
    letters = "".join(rng.choice(LETTERS) for _ in range(rng.randint(4, 9)))
    return f"First and last of {letters}?", letters[0] + letters[-1]


def smallest(rng: random.Random) -> tuple[str, str]:
    numbers = _numbers(rng, 4)
    return f"Which is smallest: {' '.join(map(str, numbers))}?", str(min(numbers))


def median(rng: random.Random) -> tuple[str, str]:
    numbers = _numbers(rng, 3)
    return f"Which is the middle one: {' '.join(map(str, numbers))}?", str(sorted(numbers)[1])


def roman(rng: random.Random) -> tuple[str, str]:
    rest, written = rng.randint(1, 89), ""
    question = f"Write {rest} in Roman numerals."
    for value, sign in ROMAN:
        written += sign * (rest // value)
        rest %= value
    return question, written


def weekday(rng: random.Random) -> tuple[str, str]:
    day, days = rng.randrange(7), rng.randint(1, 20)
    return f"Which day is {days} days after {DAYS[day]}?", DAYS[(day + days) % 7]


def doubled(rng: random.Random) -> tuple[str, str]:
    letters = "".join(rng.choice("pqrs") for _ in range(rng.randint(2, 5)))
    return f"Double each letter of {letters}.", "".join(2 * letter for letter in letters)


def third_name(rng: random.Random) -> tuple[str, str]:
    one, two, three = rng.sample(NAMES, 3)
    return f"{one} beats {two}. {two} beats {three}. Who is last?", three


ALL_TASKS: tuple[Task, ...] = (
    *TASKS,
    *(product, remainder, parity, next_letter, length, first_and_last),
    *(smallest, median, roman, weekday, doubled, third_name),
)
