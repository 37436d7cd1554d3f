"""A judge over an OpenAI-compatible address: is an answer right, given the reference?"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from dataflex.core.errors import ConfigError, DataFlexError, shown

PROMPT = (
    "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to judge:\n{answer}\n\n"
    "Does the answer to judge say the same as the reference answer? Reply with one word: yes or no."
)

RETRIES = 4  # of the client, with growing pauses: a service that is busy for a moment ends nothing
REFUSED: Literal["refused"] = "refused"
Verdict = float | None | Literal["refused"]  # 1 right, 0 wrong, None where the judge said neither

_WORDS: tuple[str, ...] = ("{question}", "{reference}", "{answer}")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Where the judge is and what it is asked.

    Args:
        base_url: address of the service, such as http://localhost:8000/v1.
        model: its name there.
        key_env: the environment variable that holds the key; the key itself is written nowhere.
        prompt: with {question}, {reference} and {answer}; a reply whose first word is yes counts as right, one whose
            first word is no as wrong, any other as none.
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
        try:
            scheme, host = urlsplit(self.base_url).scheme, urlsplit(self.base_url).hostname
        except ValueError:  # brackets without an address of six parts
            scheme = host = None
        if scheme not in ("http", "https") or not host:
            raise ConfigError(
                f"base_url of the judge is {shown(self.base_url)}; write an address such as http://localhost:8000/v1"
            )
        if self.workers < 1:
            raise ConfigError(f"workers of the judge is {self.workers}; it must be at least 1")

    def check(self) -> None:
        """Raise where the key is missing."""
        if not os.environ.get(self.key_env):
            raise ConfigError(
                f"key_env of the judge names {self.key_env}, which is not set; export it (any text where the service "
                "asks for none)"
            )

    @property
    def address(self) -> str:
        """The address without a password or a query, either of which may hold a key."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @property
    def public(self) -> dict[str, str]:
        """What was asked, and whom, without the key."""
        return {"base_url": self.address, "model": self.model, "prompt": self.prompt}

    def probe(self) -> None:
        """Ask one question whose answer is plain, so that a wrong address, key or model is known early.

        Raises:
            DataFlexError: as of ``verdicts``, also where this one question is refused.
        """
        try:
            self._ask(self._client(), ("Is two more than one?", "yes", "yes"))
        except Exception as error:  # of the client, of the network, of a reply that is none
            raise self._cannot_be_asked(error) from error

    def verdicts(self, rows: Mapping[int, tuple[str, str, str]]) -> Generator[tuple[int, Verdict], None, None]:
        """Row and verdict, as they come; when the caller stops, what was not yet sent is not sent.

        Args:
            rows: question, reference and answer by row.

        Raises:
            DataFlexError: the service cannot be reached, refuses the key or the model, or gives no reply that can be
                read.
        """
        from openai import BadRequestError

        client = self._client()

        def ask(texts: tuple[str, str, str]) -> Verdict:
            try:
                return self._ask(client, texts)
            except BadRequestError:  # of this row: too long, or not to the taste of a filter
                return REFUSED

        left = iter(rows.items())
        asked: dict[Future[Verdict], int] = {}
        pool = ThreadPoolExecutor(self.workers)
        try:
            while True:
                # Twice as many as run: no worker waits, and what an interruption finds queued is little.
                for row, texts in itertools.islice(left, 2 * self.workers - len(asked)):
                    asked[pool.submit(ask, texts)] = row
                if not asked:
                    return
                done, _ = wait(asked, return_when=FIRST_COMPLETED)
                # Those that failed last: a verdict that is there may have cost money.
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    row = asked.pop(future)
                    if (error := future.exception()) is not None:
                        raise self._cannot_be_asked(error) from error
                    yield row, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # what is being sent may end, and is not tried again

    def _client(self) -> Any:
        from openai import OpenAI

        key = os.environ[self.key_env]
        return OpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=RETRIES)

    def _ask(self, client: Any, row: tuple[str, str, str]) -> float | None:
        texts: dict[str, str] = dict(zip(_WORDS, row, strict=True))
        # In one pass: a question may itself hold "{answer}".
        text = re.sub("|".join(map(re.escape, _WORDS)), lambda found: texts[found.group()], self.prompt)
        reply = client.chat.completions.create(
            model=self.model, temperature=0, messages=[{"role": "user", "content": text}]
        )
        # The client checks nothing: a page of a proxy comes as a str, and what the service left out as None.
        choices = getattr(reply, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise ValueError(f"its reply is no chat completion: {shown(reply)}")
        return verdict_of(choices[0].message.content or "")

    def _cannot_be_asked(self, error: BaseException) -> DataFlexError:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        return DataFlexError(
            f"the judge at {self.address} cannot be asked ({said}); answers and verdicts so far are kept: correct "
            "base_url, model or key_env if one of them is wrong, and give the same command again"
        )


def verdict_of(reply: str) -> float | None:
    """1 where a reply begins with the word yes, 0 with no, None with neither; marks before it aside.

    >>> [verdict_of(text) for text in ("Yes.", "**no**, it says", "Not only that, yes", "")]
    [1.0, 0.0, None, None]
    """
    found = re.match(r"[\W_]*(yes|no)(?![^\W_])", reply, re.IGNORECASE)
    return float(found.group(1).lower() == "yes") if found else None
