"""The page of a run that goes on: served on loopback, read only, at three fixed addresses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.report.content import Reader, pools_block
from dataflex.report.losses import files_read
from dataflex.report.page import bundle, own_script, page_html, security_policy
from dataflex.report.record import Record

LOOPBACK = "127.0.0.1"
# A page of another site that has its own name point here (DNS rebinding) sends that name as Host.
HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
EXCERPT_CHARS = 500


class Followed:
    """Runs under way: read again when one of their files has changed."""

    def __init__(self, run_dirs: Sequence[str | Path], language: str) -> None:
        """Raises LedgerError where no run is recorded."""
        self._reader, self._language = Reader(run_dirs), language
        self._lock = threading.Lock()  # requests come in threads; one of them reads
        self._version, self._runs = "", b""
        self._records, self._pools, self._pool_keys = [], b"", None
        self._refresh()

    def version(self) -> str:
        with self._lock:
            self._refresh()
            return self._version

    def data(self) -> bytes:
        with self._lock:
            self._refresh()
            return self._runs

    def page(self) -> bytes:
        with self._lock:
            self._refresh()
            return page_html(self._pools, self._runs, self._language, follow=True, version=self._version)

    def _refresh(self) -> None:
        stamp = _stamp(self._records)
        if stamp == self._version and self._runs:
            return
        self._records, pools, self._runs = self._reader.read()
        keys = [pool.key for pool in pools]
        if keys != self._pool_keys:
            self._pools, self._pool_keys = pools_block(pools, EXCERPT_CHARS), keys
        # Stamped before it was read: what was written meanwhile is a change, and is read again.
        self._version = stamp if self._version else _stamp(self._records)


def _stamp(records: list[Record]) -> str:
    """Changes with every file that the page is made from."""
    digest = hashlib.sha256()
    for record in records:
        paths = [record.ledger.path, *(record.ledger.root / name for name in ("run.yaml", "rows.parquet"))]
        for path in [*paths, *files_read(record)]:
            try:
                stat = path.stat()
                digest.update(f"{path} {stat.st_mtime_ns} {stat.st_size} {stat.st_ino}\n".encode())
            except OSError:
                digest.update(f"{path} absent\n".encode())
    return digest.hexdigest()[:16]


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of fixed addresses; no address is ever turned into a path on the disk."""

    server_version, sys_version = "dataflex", ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds; a client that says nothing does not hold a thread for ever
    followed: Followed

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        self.close_connection = True  # a body may follow that nobody reads
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"read only\n", {"Allow": "GET, HEAD"})

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_POST

    def _answer(self, *, body: bool) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or (hosts[0].rsplit(":", 1)[0].lower() not in HOSTS and hosts[0].lower() not in HOSTS):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers to localhost only\n", body=body)
            return
        routes: dict[str, tuple[str, Callable[[], bytes]]] = {
            "/": ("text/html; charset=utf-8", self.followed.page),
            "/version": ("application/json", self._version),
            "/data": ("application/octet-stream", self.followed.data),
        }
        if self.path not in routes:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n", body=body)
            return
        kind, make = routes[self.path]
        try:
            content = make()
        except DataFlexError as error:  # e.g. the run's directory was moved away meanwhile
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", f"{error}\n".encode(), body=body)
            return
        self._send(HTTPStatus.OK, kind, content, body=body)

    def _version(self) -> bytes:
        try:
            return json.dumps({"version": self.followed.version()}).encode()
        except DataFlexError as error:
            return json.dumps({"error": str(error)}).encode()

    def _send(
        self, status: HTTPStatus, kind: str, content: bytes, headers: dict[str, str] | None = None, *, body: bool = True
    ) -> None:
        self.send_response(status)
        safe = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": security_policy(own_script(), bundle(), follow=True),
        }
        for name, value in {**safe, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows where the page is, not every poll."""


def make_server(run_dirs: Sequence[str | Path], port: int, language: str = "auto") -> ThreadingHTTPServer:
    """A server on loopback that is not serving yet; port 0 takes a free one.

    Raises:
        ConfigError: the port is out of range or taken.
        LedgerError: a directory holds no run.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}; it must be 0 (any free port) to 65535")
    handler = type("RunHandler", (Handler,), {"followed": Followed(run_dirs, language)})
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), handler)
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); name another with --port, or 0") from error
    server.daemon_threads = True
    return server


def follow_runs(run_dirs: Sequence[str | Path], port: int, language: str, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C."""
    server = make_server(run_dirs, port, language)
    try:
        say(f"following at http://{LOOPBACK}:{server.server_address[1]}/ (this machine only); Ctrl-C ends it")
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("the report is no longer served; the run goes on")
    finally:
        server.server_close()
