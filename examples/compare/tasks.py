"""Short reasoning tasks, made by rule: a question, its answer, and the name of the task."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import date, timedelta

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn")


def addition(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return f"What is {a} + {b}?", str(a + b)


def subtraction(rng: random.Random) -> tuple[str, str]:
    a, b = sorted((rng.randint(1, 99), rng.randint(1, 99)), reverse=True)
    return f"What is {a} - {b}?", str(a - b)


def sorting(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(0, 9) for _ in range(rng.randint(3, 6))]
    return f"Sort {' '.join(map(str, numbers))}.", " ".join(map(str, sorted(numbers)))


def largest(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(10, 99) for _ in range(3)]
    return f"Which is largest: {' '.join(map(str, numbers))}?", str(max(numbers))


def comparison(rng: random.Random) -> tuple[str, str]:
    (one, other), (a, b) = rng.sample(NAMES, 2), rng.sample(range(5, 90), 2)
    return f"{one} is {a} and {other} is {b}. Who is older?", one if a > b else other


def next_day(rng: random.Random) -> tuple[str, str]:
    day = date(2001, 1, 1) + timedelta(days=rng.randrange(364))
    tomorrow = day + timedelta(days=1)
    return f"Which day follows {day:%m-%d}?", f"{tomorrow:%m-%d}"


def counting(rng: random.Random) -> tuple[str, str]:
    letters = "".join(rng.choice("abc") for _ in range(rng.randint(4, 9)))
    wanted = rng.choice("abc")
    return f"How many {wanted} are in {letters}?", str(letters.count(wanted))


def reversal(rng: random.Random) -> tuple[str, str]:
    letters = "".join(rng.choice("abcdefgh") for _ in range(rng.randint(3, 6)))
    return f"Reverse {letters}.", letters[::-1]


Task = Callable[[random.Random], tuple[str, str]]  # question, answer

TASKS: tuple[Task, ...] = (addition, subtraction, sorting, largest, comparison, next_day, counting, reversal)


def make_rows(
    count: int, seed: int, avoid: frozenset[str] = frozenset(), tasks: Sequence[Task] = TASKS
) -> list[dict[str, str]]:
    """``count`` rows, the tasks in turn; no question that ``avoid`` holds."""
    rng = random.Random(seed)
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        task = tasks[len(rows) % len(tasks)]
        question, answer = task(rng)
        if question not in avoid:
            rows.append({"instruction": question, "input": "", "output": answer, "task": task.__name__})
    return rows


def corrupt(rows: list[dict[str, str]], share: float, seed: int) -> list[dict[str, str]]:
    """``share`` of the rows get the answer of another such row of the same task; the column ``state`` says which.

    Within the task, so that a wrong answer looks like a right one. Answers go round in a circle after shuffling; a
    neighbour may have the same answer by chance, as in real data.
    """
    rng = random.Random(seed)
    chosen = set(rng.sample(range(len(rows)), round(share * len(rows))))
    by_task: dict[str, list[int]] = {}
    for i in rng.sample(sorted(chosen), len(chosen)):
        by_task.setdefault(rows[i]["task"], []).append(i)
    answers = {i: rows[group[k - 1]]["output"] for group in by_task.values() for k, i in enumerate(group)}
    return [
        {**row, "output": answers.get(i, row["output"]), "state": "corrupted" if i in chosen else "clean"}
        for i, row in enumerate(rows)
    ]
