"""One model on one file, piece by piece: each is kept, and made again only when what it depends on has changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.evaluate import part_lines
from dataflex.evaluate.generate import Generation, generate_answers
from dataflex.evaluate.heldout import AnswerLosses, answer_losses
from dataflex.evaluate.identity import digest, versions
from dataflex.evaluate.judge import REFUSED, Judge
from dataflex.evaluate.mathematics import is_readable, math
from dataflex.evaluate.prompts import Prompter
from dataflex.evaluate.questions import Question
from dataflex.evaluate.scores import PACKAGES
from dataflex.evaluate.thinking import spoken
from dataflex.ledger.files import write_atomic

Advance = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The pieces of one model on one file of questions.

    Args:
        folder: where they are kept.
        name: of the file of questions.
        base: what stands for model, questions, template and versions in the identity of each piece.
        thoughts: how thoughts before an answer begin and end; they are kept, and no part of the answer.
    """

    folder: Path
    name: str
    base: Mapping[str, Any]
    questions: Sequence[Question]
    thoughts: tuple[str, str] | None = None

    def identity(self, **more: Any) -> str:
        return digest({**self.base, **more})

    def _path(self, piece: str) -> Path:
        return self.folder / f"{self.name}.{piece}.json"

    # losses of the answers, and of all choices

    def losses(self) -> AnswerLosses | None:
        """Losses that are there."""
        found = _read(self._path("losses"), self.identity(piece="losses"))
        return None if found is None else _losses(found)

    def measure_losses(self, model: Any, prompter: Prompter, advance: Advance) -> None:
        rows = [prompter.row(question, question.answer) for question in self.questions]
        self._keep_losses("losses", answer_losses(model, rows, advance=advance), self.identity(piece="losses"))

    def choices(self) -> np.ndarray | None:
        """Loss sums of all choices that are there, one row after the other; shape (sum of choices,)."""
        found = _read(self._path("choices"), self.identity(piece="choices"))
        return None if found is None else _losses(found).loss_sums_N

    def measure_choices(self, model: Any, prompter: Prompter, advance: Advance) -> None:
        rows = [prompter.row(question, choice) for question in self.questions for choice in question.choices]
        self._keep_losses("choices", answer_losses(model, rows, advance=advance), self.identity(piece="choices"))

    def _keep_losses(self, piece: str, losses: AnswerLosses, identity: str) -> None:
        arrays = {name: values.tolist() for name, values in vars(losses).items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(piece), json.dumps({"identity": identity, **arrays}).encode())

    # answers

    def _answers(self, how: Generation) -> tuple[Path, str]:
        return self.folder / f"{self.name}.answers.jsonl", self.identity(piece="answers", generation=asdict(how))

    def answers(self, how: Generation) -> list[str] | None:
        """The answers without their thoughts, if all are there."""
        found = self._whole(part_lines.read(*self._answers(how)))
        return None if found is None else [self._spoken(text) for text in found]

    @property
    def scored(self) -> list[Question]:
        """The questions with what answers are compared with: the right ones without their thoughts."""
        return [replace(question, answer=self._spoken(question.answer)) for question in self.questions]

    def _compared(self, how: Generation) -> dict[str, Any]:
        """What scores depend on: the answers themselves, not what those depend on."""
        scored = self.scored
        right = {} if scored == list(self.questions) else {"right": [question.answer for question in scored]}
        return {"answers": self.answers(how), "questions": self.base["questions"], **right}

    def _spoken(self, text: str) -> str:
        return text if self.thoughts is None else spoken(text, self.thoughts)

    def generate(self, model: Any, prompter: Prompter, how: Generation, advance: Advance) -> None:
        path, identity = self._answers(how)
        prompts = [prompter.prompt(question) for question in self.questions]
        generate_answers(model, prompter.tokenizer, prompts, prompter.stop_ids, how, path, identity, advance=advance)

    # mathematics, at some 50 ms a row: too slow to reckon again at every start

    def mathematics(self, how: Generation) -> tuple[np.ndarray, int] | None:
        """Scores that are there, one a row, and how many references hold no mathematics."""
        found = _read(self._path("math"), self._scored(how))
        return None if found is None else (np.array(found["scores"], dtype=np.float64), sum(found["unreadable"]))

    def verify_mathematics(self, how: Generation, advance: Advance) -> None:
        """Score the answers that are there."""
        scores, unreadable = [], []
        for question, answer in zip(self.scored, self.answers(how) or [], strict=True):
            scores.append(math(answer, question.answer))
            unreadable.append(not is_readable(question.answer))
            advance(1)
        content = {"identity": self._scored(how), "scores": scores, "unreadable": unreadable}
        write_atomic(self._path("math"), json.dumps(content).encode())

    def _scored(self, how: Generation) -> str:
        return digest({**self._compared(how), "piece": "math", "versions": versions(PACKAGES)})

    # verdicts of a judge

    def verdicts(self, how: Generation, judge: Judge) -> tuple[np.ndarray, int] | None:
        """The judge's verdicts that are there, NaN where it gave none, and how many questions its service refused."""
        found = self._whole(part_lines.read(*self._judged(how, judge)))
        if found is None:
            return None
        verdicts = [None if verdict == REFUSED else verdict for verdict in found]
        return np.array(verdicts, dtype=np.float64), found.count(REFUSED)

    def ask(self, how: Generation, judge: Judge, advance: Advance) -> None:
        """Each verdict is kept as it comes: it may cost money."""
        part, identity = self._judged(how, judge)
        answers, there = self.answers(how) or [], part_lines.begin(part, identity)
        advance(len(there))
        rows = {
            row: (question.conversation, question.answer, answer)
            for row, (question, answer) in enumerate(zip(self.scored, answers, strict=True))
            if row not in there
        }
        # Closed at once when it is interrupted: nothing more is sent.
        with closing(judge.verdicts(rows)) as verdicts:
            for row, verdict in verdicts:
                part_lines.append(part, {row: verdict})
                advance(1)

    def _judged(self, how: Generation, judge: Judge) -> tuple[Path, str]:
        asked = {name: getattr(judge, name) for name in ("base_url", "model", "prompt")}
        # The same answer needs no second verdict.
        identity = digest({**self._compared(how), "judge": asked})
        return self.folder / f"{self.name}.judge.jsonl", identity

    def _whole(self, found: Mapping[int, Any]) -> list[Any] | None:
        """The value of each row; None while one is missing."""
        rows = range(len(self.questions))
        return [found[row] for row in rows] if all(row in found for row in rows) else None


def _losses(found: Mapping[str, Any]) -> AnswerLosses:
    return AnswerLosses(
        loss_sums_N=np.array(found["loss_sums_N"], dtype=np.float64),
        tokens_N=np.array(found["tokens_N"], dtype=np.int64),
        is_greedy_N=np.array(found["is_greedy_N"], dtype=bool),
    )


def _read(path: Path, identity: str) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("identity") == identity else None


def read_task(path: Path, identity: str) -> dict[str, Any] | None:
    """Numbers of a task of the harness that are there."""
    found = _read(path, identity)
    return None if found is None else found["metrics"]


def write_task(path: Path, identity: str, metrics: Mapping[str, Any]) -> None:
    """Keep the numbers of a task of the harness."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"identity": identity, "metrics": dict(metrics)}).encode())
