"""The page is one file that asks no network, runs its own two scripts only, and shows data as text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from ledgers import Run
from page_reader import Page, words_used

from dataflex.cli.main import main
from dataflex.core.errors import ConfigError
from dataflex.report import page as page_module
from dataflex.report.page import SCRIPTS, own_script, write_report

HOSTILE = (
    "<script>document.title = 'taken'</script>",
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "{{7*7}} ${7*7} #{7*7} {% for x in range(9**9) %}bomb{% endfor %} @script@ @runs@",
    "<!-- <script> \u2028 \x00 \u202e]]>",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {"task": [HOSTILE[row % 5] for row in range(120)]}
    config = {"model_name_or_path": HOSTILE[1]}
    run = Run(tmp_path_factory.mktemp("page") / "a <b> run", texts=HOSTILE, columns=columns, config=config)
    run.decide(4).ledger.rollback(3, HOSTILE[0])
    return write_report([run.output_dir], None)


def test_the_page_loads_nothing(hostile: Path) -> None:
    page = Page.read(hostile)
    links = [
        value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset", "data")
    ]
    assert links == ["data:,", "#summary"]
    assert {tag for tag, _ in page.tags} & {"iframe", "object", "embed", "form", "base"} == set()
    style = next(part for part in re.findall(r"<style>(.*?)</style>", page.html, re.S))
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in own_script().replace("dataflex/", "")


def test_the_policy_forbids_connections_and_lets_exactly_the_two_scripts_run(hostile: Path) -> None:
    page = Page.read(hostile)
    allowed = re.findall(r"'sha256-([^']+)'", page.policy)
    scripts = [page.scripts["own"], page.bundle]
    assert allowed == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    assert "connect-src" not in rules
    kinds = [attrs.get("type") for tag, attrs in page.tags if tag == "script"]
    assert kinds == ["application/octet-stream"] * 3 + [None]


def test_text_of_the_data_is_never_markup(hostile: Path) -> None:
    page = Page.read(hostile)
    for text in (*HOSTILE, "taken", "bomb", "<b> run"):
        assert text not in page.html
    texts = page.pools[0]["texts"]
    assert texts[:4] == list(HOSTILE[:4])
    assert set(page.pools[0]["groups"][0]["labels"]) == set(HOSTILE)
    assert page.runs[0]["name"] == "a <b> run"


def test_own_scripts_never_parse_markup_or_code_from_a_string() -> None:
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert forbidden not in own_script()


def test_the_same_run_gives_the_same_page_but_for_its_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(3)
    pages = [Page.read(write_report([run.output_dir], tmp_path / f"{k}.html")) for k in range(2)]
    contents = [json.dumps(page.runs[0], default=np.ndarray.tolist) for page in pages]
    assert contents[0] == contents[1]
    assert pages[0].scripts["pools"] == pages[1].scripts["pools"]


def test_texts_are_cut_until_the_page_is_below_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, row)) for row in rng.integers(0x4E00, 0x9000, (4000, 500))]  # hard to compress
    run = Run(tmp_path / "run", num_rows=4000, texts=texts).decide(4)
    monkeypatch.setattr(page_module, "MAX_PAGE_BYTES", 2_500_000)
    path = write_report([run.output_dir], None)
    assert path.stat().st_size <= 2_500_000
    page = Page.read(path)
    pool, whole = page.pools[0], page.runs[0]["texts"]
    num_chars = pool["num_chars"]
    assert 0 < num_chars < 500
    assert pool["texts"] == [text[:num_chars] for text in texts]
    assert len(whole) >= 400  # those at the ends of an order
    for row, text in whole.items():
        assert text == texts[int(row)]


def test_every_word_of_the_page_is_there_in_both_languages() -> None:
    folder = files("dataflex.report").joinpath("page")
    words = json.loads(folder.joinpath("words.json").read_text(encoding="utf-8"))
    for key, entry in words.items():
        assert len(entry) == 2, key
        assert all(entry), key
        assert set(re.findall(r"\{\w+\}", entry[0])) == set(re.findall(r"\{\w+\}", entry[1])), key
    html = folder.joinpath("page.html").read_text(encoding="utf-8")
    used = words_used("".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS))
    used |= set(re.findall(r'data-word="([^"]+)"', html))
    assert used - words.keys() == set()
    for section in re.findall(r"^  (\w+):", own_script().split("const SECTIONS = {")[1].split("\n};")[0], re.M):
        assert {f"nav {section}", f"title {section}", f"lead {section}"} <= words.keys()


def test_the_verb_writes_beside_the_ledger_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run").decide(2)
    for arguments, path in (
        ([], run.ledger.root / "report.html"),
        (["--out", str(tmp_path / "new" / "r.html"), "--lang", "zh"], tmp_path / "new" / "r.html"),
    ):
        monkeypatch.setattr(sys, "argv", ["dataflex-cli", "report", str(run.output_dir), *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        assert str(path) in capsys.readouterr().out
        assert path.exists()
    assert 'data-language="zh"' in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "--lang", "fr"], "--lang is 'fr'"),
        (["{run}/nowhere"], "holds no record of a run"),
        (["{run}", "--out", "{run}"], "cannot be written"),
        (["{run}", "--follow", "--out", "x.html"], "--follow serves"),
        (["{run}", "--follow", "--port", "70000"], "--port is 70000"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    run = Run(tmp_path / "run").decide(1)
    given = [argument.format(run=run.output_dir) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["dataflex-cli", "report", *given])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_the_plotting_bundle_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ConfigError, match=r"pip install 'dataflex\[report\]'"):
        page_module.bundle.__wrapped__()
