"""The judge against a service on this machine that can be slow, broken or particular; no model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.evaluate import judge as judges
from dataflex.evaluate.intervals import Bootstrap
from dataflex.evaluate.judge import REFUSED, Judge, verdict_of
from dataflex.evaluate.results import compared, judged

Reply = tuple[int, str, str]  # status, type, content


def says(text: str | None) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return 200, "application/json", json.dumps(whole)


class Service(ThreadingHTTPServer):
    """Answers by a function of what it is asked, and remembers it."""

    def __init__(self, reply: Callable[[str], Reply]) -> None:
        self.reply, self.asked = reply, []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *args: Any) -> None:
        """A client that went away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Service  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        self.server.asked.append(text)
        status, kind, content = self.server.reply(text)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str], Reply]], Service]]:
    """Start a service; no request to it is repeated."""
    monkeypatch.setenv("OUR_KEY", "secret")
    monkeypatch.setattr(judges, "RETRIES", 0)
    started = []

    def start(reply: Callable[[str], Reply]) -> Service:
        service = Service(reply)
        threading.Thread(target=service.serve_forever, daemon=True).start()
        started.append(service)
        return service

    yield start
    for service in started:
        service.shutdown()
        service.server_close()


def of(service: Service, **changes: Any) -> Judge:
    return Judge(
        base_url=service.url, model="m", key_env="OUR_KEY", prompt="{question}|{reference}|{answer}", **changes
    )


def rows(count: int) -> dict[int, tuple[str, str, str]]:
    return {row: (f"q{row}", "right", "said") for row in range(count)}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("yes", 1),
        ("Yes, it does.", 1),
        ("  **Yes**", 1),
        ("NO", 0),
        ("no, 3 is not 4", 0),
        ("Not only that, it is yes.", None),
        ("None of it", None),
        ("Yesterday", None),
        ("I would say yes", None),
        ("", None),
    ],
)
def test_a_verdict_is_the_first_word(reply: str, verdict: float | None) -> None:
    assert verdict_of(reply) == verdict


def test_a_row_that_is_refused_has_no_verdict_and_the_others_have(serve) -> None:
    service = serve(lambda text: (400, "application/json", '{"error": "too long"}') if "q2" in text else says("yes"))
    assert dict(of(service).verdicts(rows(4))) == {0: 1.0, 1: 1.0, 2: REFUSED, 3: 1.0}


@pytest.mark.parametrize(
    "reply",
    [
        (200, "text/html", "<html>log in</html>"),
        (200, "application/json", '{"id": "1", "choices": null}'),
        (200, "application/json", '{"id": "1", "choices": []}'),
        (200, "application/json", '{"id": "1", "choices": [{"mess'),
        (200, "application/json", "[]"),
        (401, "application/json", '{"error": "no such key"}'),
        (500, "text/plain", "down"),
    ],
    ids=lambda reply: reply[2],
)
def test_a_reply_that_is_none_is_a_sentence(serve, reply: Reply) -> None:
    judge = of(serve(lambda text: reply))
    for ask in (judge.probe, lambda: list(judge.verdicts(rows(3)))):
        with pytest.raises(DataFlexError, match=r"the judge at http.* cannot be asked \(.*give the same command again"):
            ask()


def test_an_address_where_nobody_answers_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "secret")
    monkeypatch.setattr(judges, "RETRIES", 0)
    with pytest.raises(DataFlexError, match="cannot be asked"):
        Judge(base_url="http://127.0.0.1:9/v1", model="m", key_env="OUR_KEY").probe()


@pytest.mark.parametrize("url", ["no address", "localhost:8000/v1", "http://", "http://["])
def test_an_address_that_is_none_is_a_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match=r"base_url of the judge is .*; write an address such as"):
        Judge(base_url=url, model="m")


def test_what_is_written_of_an_address_holds_no_password_and_no_query() -> None:
    judge = Judge(base_url="https://me:pass@host:81/v1?key=abc", model="m")
    assert judge.public == {"base_url": "https://host:81/v1", "model": "m", "prompt": judge.prompt}


def test_the_probe_knows_a_model_that_is_refused(serve) -> None:
    service = serve(lambda text: (400, "application/json", '{"error": {"message": "no such model"}}'))
    with pytest.raises(DataFlexError, match="no such model"):
        of(service).probe()


@pytest.mark.parametrize("how", ["error", "interrupted"])
def test_what_was_not_sent_is_not_sent_after_the_end(serve, how: str) -> None:
    def reply(text: str) -> Reply:
        time.sleep(0.05)
        return says("yes") if how == "interrupted" else (403, "application/json", "{}")

    service = serve(reply)
    with closing(of(service, workers=2).verdicts(rows(200))) as verdicts:
        if how == "interrupted":
            next(verdicts)  # and here Ctrl-C closes it
        else:
            with pytest.raises(DataFlexError):
                next(verdicts)
    time.sleep(0.5)
    assert len(service.asked) <= 6


def test_all_rows_are_asked_once_and_no_more_than_the_workers_at_a_time(serve) -> None:
    running, most, guard = 0, 0, threading.Lock()

    def reply(text: str) -> Reply:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with guard:
            running -= 1
        return says("no" if int(text.split("|")[0][1:]) % 2 else "yes")

    service = serve(reply)
    found = dict(of(service, workers=3).verdicts(rows(40)))
    assert found == {row: float(row % 2 == 0) for row in range(40)}
    assert len(service.asked) == 40
    assert 2 <= most <= 3


def test_verdicts_that_are_there_come_before_the_error_beside_them(serve) -> None:
    service = serve(lambda text: (403, "application/json", "{}") if "q3" in text else says("yes"))
    verdicts = of(service, workers=1).verdicts(rows(9))
    assert [next(verdicts)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataFlexError):
        next(verdicts)


def test_a_difference_is_over_the_rows_where_both_have_a_verdict() -> None:
    """The second model has no verdict on the rows that the first one has wrong, and is not better for that."""
    first = judged(np.array([1.0] * 10 + [0.0] * 10))
    second = judged(np.array([1.0] * 10 + [np.nan] * 10))
    found = compared({"a": {"judge": first}, "b": {"judge": second}}, Bootstrap(resamples=50))["judge"]
    assert found["models"]["a"] == {
        "value": 0.5,
        "low": pytest.approx(0.3, abs=0.1),
        "high": pytest.approx(0.7, abs=0.1),
        "num_rows": 20,
    }
    assert (found["models"]["b"]["value"], found["models"]["b"]["num_rows"]) == (1.0, 10)
    assert found["differences"]["b"] == {"value": 0.0, "low": 0.0, "high": 0.0, "num_rows": 10}


def test_no_verdict_at_all_is_no_number() -> None:
    first, second = judged(np.array([np.nan, np.nan])), judged(np.array([1.0, 0.0]))
    found = compared({"a": {"judge": first}, "b": {"judge": second}}, Bootstrap(resamples=50))["judge"]
    nothing = {"value": None, "low": None, "high": None, "num_rows": 0}
    assert found["models"]["a"] == nothing
    assert found["differences"]["b"] == nothing
