"""A judge over an OpenAI-compatible address: is an answer right, given the reference?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from dataflex.core.errors import ConfigError, DataFlexError

PROMPT = (
    "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to judge:\n{answer}\n\n"
    "Does the answer to judge say the same as the reference answer? Reply with one word: yes or no."
)

_WORDS: tuple[str, ...] = ("{question}", "{reference}", "{answer}")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Where the judge is and what it is asked.

    Args:
        base_url: address of the service, such as http://localhost:8000/v1.
        model: its name there.
        key_env: the environment variable that holds the key; the key itself is written nowhere.
        prompt: with {question}, {reference} and {answer}; a reply that begins with yes counts as right, one that begins
            with no as wrong, any other as none.
        workers: requests at a time.
        timeout: seconds of one request.
    """

    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    prompt: str = PROMPT
    workers: int = 4
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for word in _WORDS:
            if word not in self.prompt:
                raise ConfigError(f"prompt of the judge holds no {word}; write where it goes")
        if self.workers < 1:
            raise ConfigError(f"workers of the judge is {self.workers}; it must be at least 1")

    def check(self) -> None:
        """Raise where the key is missing."""
        if not os.environ.get(self.key_env):
            raise ConfigError(
                f"key_env of the judge names {self.key_env}, which is not set; export it (any text where the service "
                "asks for none)"
            )

    def verdicts(self, rows: Mapping[int, tuple[str, str, str]]) -> Iterator[tuple[int, float | None]]:
        """Row and verdict, as they come: 1 right, 0 wrong, None where the judge said neither.

        Args:
            rows: question, reference and answer by row.

        Raises:
            DataFlexError: the service cannot be reached, or refuses.
        """
        from openai import OpenAI, OpenAIError

        client = OpenAI(base_url=self.base_url, api_key=os.environ[self.key_env], timeout=self.timeout, max_retries=4)

        def ask(row: tuple[str, str, str]) -> float | None:
            texts: dict[str, str] = dict(zip(_WORDS, row, strict=True))
            # In one pass: a question may itself hold "{answer}".
            text = re.sub("|".join(map(re.escape, _WORDS)), lambda found: texts[found.group()], self.prompt)
            reply: Any = client.chat.completions.create(
                model=self.model, temperature=0, messages=[{"role": "user", "content": text}]
            )
            said = (reply.choices[0].message.content or "").strip().lower()
            return 1.0 if said.startswith("yes") else 0.0 if said.startswith("no") else None

        with ThreadPoolExecutor(self.workers) as pool:
            asked = {pool.submit(ask, texts): row for row, texts in rows.items()}
            try:
                for done in as_completed(asked):
                    yield asked[done], done.result()
            except OpenAIError as error:
                pool.shutdown(cancel_futures=True)
                raise DataFlexError(
                    f"the judge at {self.base_url} cannot be asked ({' '.join(str(error).split())[:200]}); answers and "
                    "verdicts so far are kept, give the same command again"
                ) from error
