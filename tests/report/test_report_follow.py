"""The followed page: on loopback, read only, fixed addresses, and new as soon as the ledger is."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledgers import Run
from page_reader import Page, unpack

from dataflex.core.errors import ConfigError, LedgerError
from dataflex.report.follow import follow_runs, make_server


class Client:
    """One request at a time, with any Host and any path, as no browser would send it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True)
            if host != "":
                connection.putheader("Host", host or f"127.0.0.1:{self.port}")
            connection.endheaders()
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run").decide(3)


@pytest.fixture
def client(run: Run) -> Iterator[Client]:
    server = make_server([run.output_dir], 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Client(server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_page_is_served_and_may_ask_its_own_server_only(client: Client) -> None:
    status, headers, body = client.ask("/")
    assert status == 200
    page = Page(body.decode())
    assert page.runs[0]["summary"]["num_segments"] == 3
    assert "connect-src 'self'" in page.policy
    assert headers["Content-Security-Policy"] == page.policy
    assert headers["Cache-Control"] == "no-store"


def test_head_says_the_same_without_a_body(client: Client) -> None:
    for path in ("/", "/version", "/data"):
        status, headers, body = client.ask(path, "HEAD")
        assert status == 200
        assert int(headers["Content-Length"]) > 0
        assert body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "MKCOL"])
def test_nothing_but_reading_is_served(client: Client, method: str) -> None:
    assert client.ask("/", method)[0] in (405, 501)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil:8780"]
)
def test_a_foreign_host_name_is_refused(client: Client, host: str) -> None:
    for path in ("/", "/version", "/data"):
        status, _, body = client.ask(path, host=host)
        assert status in (400, 403)
        assert b"dataflex" not in body.lower()


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:8780", "LOCALHOST:80"])
def test_names_of_this_machine_are_answered_through_any_forwarded_port(client: Client, host: str) -> None:
    assert client.ask("/version", host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../run.yaml",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/dataflex/ledger.jsonl",
        "/rows.parquet",
        "/link",
        "/version/../data",
        "/data/",
        "/?x",
        "http://127.0.0.1/data",
        "\\..\\run.yaml",
    ],
)
def test_no_address_is_a_path_on_the_disk(client: Client, run: Run, path: str) -> None:
    os.symlink("/etc/passwd", run.output_dir / "link")
    os.symlink("/etc/passwd", run.ledger.root / "link")
    status, _, body = client.ask(path)
    assert status in (400, 404)
    assert b"root:" not in body


def test_the_server_listens_on_loopback_alone(run: Run) -> None:
    server = make_server([run.output_dir], 0)
    assert server.server_address[0] == "127.0.0.1"
    assert server.socket.family == socket.AF_INET
    server.server_close()


def test_a_new_segment_is_a_new_version_with_new_data(client: Client, run: Run) -> None:
    before = json.loads(client.ask("/version")[2])
    assert json.loads(client.ask("/version")[2]) == before
    run.decide()
    after = json.loads(client.ask("/version")[2])
    assert after != before
    content = unpack(client.ask("/data")[2])
    assert content["runs"][0]["summary"]["num_segments"] == 4
    assert [decision["segment"] for decision in content["runs"][0]["decisions"]] == [1, 2, 3]


def test_what_is_followed_is_what_a_report_from_anew_would_say(client: Client, run: Run) -> None:
    client.ask("/data")
    run.decide(2)
    run.ledger.rollback(3, "resumed from step 15")
    run.end(15)
    followed = Page(client.ask("/")[2].decode()).runs
    server = make_server([run.output_dir], 0)
    fresh = unpack(server.RequestHandlerClass.followed.data())["runs"]  # type: ignore[attr-defined]
    server.server_close()
    assert json.dumps(followed, default=lambda a: a.tolist()) == json.dumps(fresh, default=lambda a: a.tolist())


def test_new_losses_are_a_new_version(client: Client, run: Run) -> None:
    before = client.ask("/version")[2]
    run.log({5: 1.0})
    assert client.ask("/version")[2] != before
    assert unpack(client.ask("/data")[2])["runs"][0]["losses"] == {"loss": [[5, 1.0]]}


def test_a_run_moved_away_is_told_and_served_again_when_it_is_back(client: Client, run: Run) -> None:
    away = run.ledger.move_aside()
    assert "holds no record" in json.loads(client.ask("/version")[2])["error"]
    assert client.ask("/data")[0] == 503
    away.rename(run.ledger.root)
    assert "version" in json.loads(client.ask("/version")[2])
    assert client.ask("/data")[0] == 200


def test_a_port_that_is_taken_and_a_directory_without_a_run_are_one_sentence(
    client: Client, run: Run, tmp_path
) -> None:
    with pytest.raises(ConfigError, match=f"port {client.port} cannot be used"):
        make_server([run.output_dir], client.port)
    with pytest.raises(LedgerError, match="holds no record"):
        make_server([tmp_path], 0)


def test_ctrl_c_ends_it_with_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(server, poll_interval: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupted)
    said: list[str] = []
    follow_runs([run.output_dir], 0, "auto", said.append)
    assert len(said) == 2
    assert said[0].startswith("following at http://127.0.0.1:")
    assert said[1] == "the report is no longer served; the run goes on"
