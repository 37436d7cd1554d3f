"""Questions and their answers from a file: question-answer pairs, alpaca or sharegpt rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.core.json_rows import ENDINGS, read_json

FORMATS = ("qa", "alpaca", "sharegpt")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of questions.

    Args:
        name: in tables and file names.
        path: .json (a list) or .jsonl.
        format: ``qa``: two columns; ``alpaca``: instruction, input, output; ``sharegpt``: conversations whose last turn
            is the answer.
        question, answer: the columns of ``qa``.
        choices: a column of possible answers; ``answer`` is then one of them, or its place from 0.
        source: a column by whose values losses are told apart.
        limit: the first rows only.
    """

    name: str
    path: str
    format: Literal["qa", "alpaca", "sharegpt"] = "qa"
    question: str = "input"
    answer: str = "output"
    choices: str | None = None
    source: str | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row."""

    text: str  # what a user asks
    answer: str
    turns: tuple[tuple[str, str], ...] = ()  # role and text of what was said before, the question not among them
    choices: tuple[str, ...] = ()
    right: int = -1  # place of the answer among the choices
    source: str = ""

    @property
    def conversation(self) -> str:
        """All that the model was asked, for readers who see a text only; without earlier turns the question alone.

        >>> turns = (("user", "Is 2 even?"), ("assistant", "Yes"))
        >>> print(Question(text="And 3?", answer="No", turns=turns).conversation)
        User: Is 2 even?
        <BLANKLINE>
        Assistant: Yes
        <BLANKLINE>
        User: And 3?
        """
        if not self.turns:
            return self.text
        return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in (*self.turns, ("user", self.text)))


def read_questions(source: Source) -> list[Question]:
    """Read and check all rows.

    Raises:
        ConfigError: no such file, no rows, or a row without what is needed; the sentence names the row.
    """
    rows = _rows(Path(source.path), source.name)
    if source.limit is not None:
        if source.limit < 1:
            raise ConfigError(f"limit of {source.name} is {source.limit}; it must be at least 1")
        rows = rows[: source.limit]
    return [_question(row, number, source) for number, row in enumerate(rows)]


def _rows(path: Path, name: str) -> list[Any]:
    if path.suffix not in ENDINGS:
        raise ConfigError(f"path of {name} is {shown(str(path))}; it must end in .json or .jsonl")
    try:
        rows = read_json(path)
    except OSError as error:
        raise ConfigError(f"path of {name}, {shown(str(path))}, cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no valid JSON ({' '.join(str(error).split())[:200]}); correct it") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{path} holds no list of rows; write [{{...}}, {{...}}], or one row a line in a .jsonl file")
    if not rows:
        raise ConfigError(f"{path} is empty; there is nothing to evaluate on")
    return rows


def _question(row: Any, number: int, source: Source) -> Question:
    if not isinstance(row, dict):
        raise ConfigError(f"row {number} of {source.path} is no mapping of columns to values")
    label = _text(row, source.source, number, source) if source.source else ""
    if source.format == "alpaca":
        parts = [_text(row, "instruction", number, source), str(row.get("input") or "")]
        text = "\n".join(part for part in parts if part)
        return Question(text=text, answer=_text(row, "output", number, source), source=label)
    if source.format == "sharegpt":
        return _conversation(row, number, source, label)
    text = _text(row, source.question, number, source)
    if source.choices is None:
        return Question(text=text, answer=_text(row, source.answer, number, source), source=label)
    choices = _column(row, source.choices, number, source)
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise ConfigError(f"{source.choices} of row {number} of {source.path} is no list of two texts or more")
    answer = _column(row, source.answer, number, source)
    # True is a whole number to Python, and no place.
    is_place = isinstance(answer, int) and not isinstance(answer, bool)
    right = answer if is_place else choices.index(answer) if answer in choices else -1
    if not 0 <= right < len(choices):
        raise ConfigError(f"{source.answer} of row {number} of {source.path} is {shown(answer)}, none of its choices")
    return Question(text=text, answer=choices[right], choices=tuple(choices), right=right, source=label)


def _conversation(row: Mapping[str, Any], number: int, source: Source, label: str) -> Question:
    turns = row.get("conversations", row.get("messages"))
    roles = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
    if not isinstance(turns, list) or not turns:
        raise ConfigError(f"row {number} of {source.path} has no conversations; set format: qa or alpaca")
    said = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise ConfigError(
                f"row {number} of {source.path} has the turn {shown(turn)}; write it as a mapping of from and value, "
                "or of role and content"
            )
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(role, str) or role not in roles:
            raise ConfigError(f"row {number} of {source.path} has a turn of {shown(role)}; known: {', '.join(roles)}")
        if not isinstance(text, str):
            raise ConfigError(f"row {number} of {source.path} has a turn that says {shown(text)}; a text is needed")
        if text or roles[role] != "system":  # an empty one is none
            said.append((roles[role], text))
    if len(said) < 2 or said[-1][0] != "assistant" or said[-2][0] != "user":
        raise ConfigError(f"row {number} of {source.path} does not end in a question and its answer")
    if isinstance(row.get("system"), str) and row["system"]:
        said.insert(0, ("system", row["system"]))
    return Question(text=said[-2][1], answer=said[-1][1], turns=tuple(said[:-2]), source=label)


def _text(row: Mapping[str, Any], name: str, number: int, source: Source) -> str:
    value = _column(row, name, number, source)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{name} of row {number} of {source.path} is {shown(value)}; a text is needed")
    return str(value)


def _column(row: Mapping[str, Any], name: str, number: int, source: Source) -> Any:
    if name not in row:
        known = [str(key) for key in row]
        raise ConfigError(
            f"row {number} of {source.path} has no column {shown(name)}{did_you_mean(name, known)}; it has "
            f"{', '.join(known) or 'none'}"
        )
    return row[name]
