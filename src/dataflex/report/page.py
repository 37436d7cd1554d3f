"""The HTML page: our own markup, style and script, the plotting bundle, and the packed content, in one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from dataflex.core.errors import ConfigError
from dataflex.core.packages import drawing_package
from dataflex.ledger.files import write_atomic
from dataflex.report.content import Reader, fitting_pools_block
from dataflex.report.pack import base64_text, compress

MAX_PAGE_BYTES = 4_900_000
MIN_TEXT_BYTES = 150_000  # many runs on one page: some text stays, whatever the bound
# Order matters: each file may use what stands before it.
SCRIPTS = tuple(
    f"{name}.js"
    for name in (
        *("words", "unpack", "format", "table", "specs", "decision_specs", "charts"),
        *("summary", "sections", "parts", "decisions", "rows", "ledger", "main"),
    )
)
LANGUAGES = ("auto", "en", "zh")


def write_report(run_dirs: Sequence[str | Path], out: str | Path | None, language: str = "auto") -> Path:
    """Build the page of one or several runs; returns where it lies.

    Raises:
        ConfigError: an unknown language, a place that cannot be written, or the plotting bundle is not installed.
        LedgerError: a directory holds no run.
    """
    reader = Reader(run_dirs)
    records, pools, runs = reader.read()
    room = MAX_PAGE_BYTES - len(page_html(b"", runs, language))
    page = page_html(fitting_pools_block(pools, max(MIN_TEXT_BYTES, room * 3 // 4)), runs, language)
    path = Path(out) if out is not None else records[0].ledger.root / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {path} ({error}); name another file with --out") from error
    return path


def page_html(pools: bytes, runs: bytes, language: str = "auto", *, follow: bool = False, version: str = "") -> bytes:
    """The whole page. What comes from the data is in the two blocks alone, as base64, and is never markup.

    The Content-Security-Policy lets exactly these two scripts run, by their hashes, and forbids every connection (a
    page that follows a run may ask the server that it came from).
    """
    if language not in LANGUAGES:
        raise ConfigError(f"--lang is {language!r}; it must be one of {', '.join(LANGUAGES)}")
    script = own_script()
    policy = security_policy(script, bundle(), follow=follow)
    parts = {
        "@policy@": policy,
        "@style@": _asset("style.css"),
        "@settings@": f'data-language="{language}" data-follow="{str(follow).lower()}" data-version="{version}"',
        "@bundle@": compressed_bundle(),
        "@pools@": base64_text(pools),
        "@runs@": base64_text(runs),
        "@script@": script,
    }
    html = _asset("page.html")
    for mark, part in parts.items():
        before, after = html.split(mark)  # each stands there once
        html = before + part + after
    return html.encode("utf-8")


def security_policy(*scripts: str, follow: bool = False) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    connect = " connect-src 'self';" if follow else ""
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:;{connect} "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def own_script() -> str:
    words = json.dumps(json.loads(_asset("words.json")), ensure_ascii=False).replace("<", "\\u003c")
    parts = [f"const WORDS = {words};", *(_asset(name) for name in SCRIPTS)]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();"


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the package that carries them."""
    return drawing_package().javascript_bundle("window.vegaEmbed = vegaEmbed;")


@cache
def compressed_bundle() -> str:
    return base64_text(compress(bundle().encode("utf-8")))


def _asset(name: str) -> str:
    return files("dataflex.report").joinpath("page", name).read_text(encoding="utf-8")
