"""A judge over an OpenAI-compatible address: is an answer right, given the reference?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex.core.errors import ConfigError, DataFlexError

PROMPT = (
    "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to judge:\n{answer}\n\n"
    "Does the answer to judge say the same as the reference answer? Reply with one word: yes or no."
)


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
        for word in ("{question}", "{reference}", "{answer}"):
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

    def verdicts(self, rows: list[tuple[str, str, str]]) -> np.ndarray:
        """1 right, 0 wrong, NaN where the judge said neither; one a row of (question, reference, answer).

        Raises:
            DataFlexError: the service cannot be reached, or refuses.
        """
        from openai import OpenAI, OpenAIError

        client = OpenAI(base_url=self.base_url, api_key=os.environ[self.key_env], timeout=self.timeout, max_retries=4)

        def ask(row: tuple[str, str, str]) -> float:
            question, reference, answer = row
            text = self.prompt
            for word, value in (("question", question), ("reference", reference), ("answer", answer)):
                text = text.replace(f"{{{word}}}", value)
            reply: Any = client.chat.completions.create(
                model=self.model, temperature=0, messages=[{"role": "user", "content": text}]
            )
            said = (reply.choices[0].message.content or "").strip().lower()
            return 1.0 if said.startswith("yes") else 0.0 if said.startswith("no") else np.nan

        try:
            with ThreadPoolExecutor(self.workers) as pool:
                return np.array(list(pool.map(ask, rows)))
        except OpenAIError as error:
            raise DataFlexError(
                f"the judge at {self.base_url} cannot be asked ({' '.join(str(error).split())[:200]}); what was "
                "generated is kept, give the same command again"
            ) from error
