"""The page in a real browser: drawn without an error, searched, sorted, switched, followed; no clock decides."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ledgers import Run

from dataflex.report.follow import make_server
from dataflex.report.page import write_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium is installed: apt-get install chromium chromium-driver"
)
HOSTILE = ("<script>document.title='taken'</script>", "<img src=x onerror=document.title='taken'>", "{{7*7}} ${7*7}")
PATIENCE = 120  # seconds until a condition counts as never met


class Browser:
    """A tab, and what a test asks of it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.driver.get_log("browser")  # what former pages said
        self.driver.get(url)
        self.until("return document.documentElement.dataset.drawn")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: Any) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.05).until(lambda _: self.js(script, *arguments))

    def click(self, selector: str) -> None:
        """Click, and wait until what it draws is drawn."""
        before = self.js("return document.documentElement.dataset.drawn")
        element = self.driver.find_element("css selector", selector)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()
        if selector in ("#language", "#decision .before", "#decision .after"):
            self.until("return document.documentElement.dataset.drawn !== arguments[0]", before)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.js(script, selector)

    def column(self, number: int) -> list[str]:
        return self.texts(f"#rows tbody tr[data-at] td:nth-child({number})")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    # No sandbox: containers run tests as root, where Chromium's own refuses to start.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en-US"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,800")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield Browser(driver)
    driver.quit()


@pytest.fixture
def emulate(browser: Browser) -> Iterator[Callable[..., None]]:
    """Media features as a system or a printer sets them; taken back afterwards."""

    def emulate(media: str = "", **features: str) -> None:
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": listed})

    yield emulate
    emulate()
    browser.js("localStorage.clear()")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    columns = {"task": [(*HOSTILE, "plain")[row % 4] for row in range(300)]}
    run = Run(tmp_path_factory.mktemp("browser") / "run", num_rows=300, texts=HOSTILE, columns=columns).decide(7).end()
    return run.log({step: 3.0 - step / 20 for step in range(5, 40, 5)}).log({20: 2.5, 35: 2.0}, name="eval_loss")


@pytest.fixture(scope="module")
def url(run: Run) -> str:
    return write_report([run.output_dir], None).as_uri()


def test_every_picture_is_drawn_and_nothing_is_said_on_the_console(browser: Browser, url: str) -> None:
    browser.open(url)
    assert browser.complaints() == []
    assert browser.js("return document.getElementById('failure').hidden")
    charts = browser.js(
        "return [...document.querySelectorAll('.chart')].map((e) => e.querySelector('svg path') !== null)"
    )
    assert len(charts) == 9
    assert all(charts)
    assert browser.js("return performance.getEntriesByType('resource').length") == 0  # asked nobody for anything


def test_mixture_losses_of_domains_and_weights_are_drawn(browser: Browser, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", domains=[*HOSTILE[:2], "wiki"]).decide(7).end()
    browser.open(write_report([run.output_dir], None).as_uri())
    assert browser.complaints() == []
    drawn = browser.js(
        "return [...document.querySelectorAll('#parts .chart')].map((e) => !!e.querySelector('svg line'))"
    )
    assert drawn == [True, True, True]
    assert browser.driver.title != "taken"
    assert any(label.startswith(HOSTILE[0][:15]) for label in browser.texts("#parts .chart svg text"))
    browser.click("#language")
    assert "各领域的占比" in browser.texts("#parts h4")
    browser.js("localStorage.clear()")


def test_hostile_text_is_shown_as_text(browser: Browser, url: str) -> None:
    browser.open(url)
    assert browser.driver.title != "taken"
    assert browser.js("return document.querySelectorAll('#main script, #main img').length") == 0
    box = browser.driver.find_element("css selector", "#rows input[type=search]")
    box.send_keys("document.title")
    for _ in range(2):  # the rows of these texts are the first
        browser.click("#rows th button[data-key=row]")
    assert set(browser.texts("#rows tbody td:last-child")) & set(HOSTILE) == set(HOSTILE[:2])
    assert any(HOSTILE[2] in label for label in browser.texts(".chart svg text"))


def test_search_finds_texts_groups_and_row_numbers_and_says_how_many(browser: Browser, url: str) -> None:
    browser.open(url)
    box = browser.driver.find_element("css selector", "#rows input[type=search]")
    for query, found in (("answer 29", 11), ("PLAIN", 75), ("no such text", 0)):
        box.clear()
        box.send_keys(query)
        assert browser.texts("#rows .count") == [f"{found} of 300"]
    box.clear()
    box.send_keys("17")
    assert "17" in browser.column(1)


def test_sorting_by_a_header_turns_and_tells_assistive_technology(browser: Browser, url: str, run: Run) -> None:
    browser.open(url)
    lines = run.ledger.segments()
    first, last = (run.ledger.signals_of(lines[k])["loss"].astype(float) for k in (1, 6))
    worst_first = [str(row) for row in (first - last).argsort(kind="stable")[:3]]
    header = "#rows th button[data-key=delta]"
    sorted_now = "return document.querySelector(arguments[0]).closest('th').getAttribute('aria-sort')"
    assert browser.js(sorted_now, header) == "none"
    browser.click(header)
    assert browser.js(sorted_now, header) == "descending"
    browser.click(header)
    assert browser.js(sorted_now, header) == "ascending"
    assert browser.column(1)[:3] == worst_first
    browser.click("#rows [data-preset=improved]")
    assert browser.js(sorted_now, header) == "descending"
    assert browser.column(1)[0] == str((first - last).argmax())


def test_only_rows_in_sight_are_in_the_document_and_scrolling_brings_the_others(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.click("#rows th button[data-key=row]")
    browser.click("#rows th button[data-key=row]")
    shown = browser.column(1)
    assert shown[0] == "0"
    assert len(shown) < 60
    browser.js("document.querySelector('#rows .scroller').scrollTop = 1e6")
    browser.until(
        "return [...document.querySelectorAll('#rows tbody td:first-child')].some((e) => e.textContent === '299')"
    )


def test_the_table_is_read_with_the_keyboard_alone(browser: Browser, url: str) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(url)
    scroller = browser.driver.find_element("css selector", "#rows .scroller")
    scroller.send_keys(Keys.ARROW_DOWN)
    scroller.send_keys(Keys.ARROW_DOWN)
    second = browser.texts("#rows tbody tr[data-at='1'] td")
    assert browser.texts("#rows tr[aria-selected=true] td") == second
    assert second[-1] in browser.texts("#rows .detail pre")


def test_decisions_are_stepped_through(browser: Browser, url: str) -> None:
    browser.open(url)
    assert "steps 30–35" in browser.texts("#decision .method")[0]
    browser.click("#decision .before")
    assert "steps 25–30" in browser.texts("#decision .method")[0]
    browser.click("#decision .after")
    assert "steps 30–35" in browser.texts("#decision .method")[0]
    assert browser.js("return document.querySelector('#decision .after').disabled")
    assert browser.complaints() == []


def test_dark_follows_the_system_and_the_button_and_prints_light(
    browser: Browser, url: str, emulate: Callable[..., None]
) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    emulate(prefers_color_scheme="light")
    browser.open(url)
    light = browser.js(paper)
    emulate(prefers_color_scheme="dark")
    dark = browser.js(paper)
    assert light == "rgb(255, 255, 255)"
    assert dark != light
    line = "return getComputedStyle(document.querySelector('#loss svg .mark-line path')).stroke"
    ink = browser.js(line)
    browser.click("#theme")
    assert browser.js(paper) == light
    assert browser.js(line) != ink
    browser.click("#theme")
    emulate("print", prefers_color_scheme="dark")
    assert browser.js(paper) == light


def test_chinese_is_a_button_away_and_is_remembered(browser: Browser, url: str, emulate: Callable[..., None]) -> None:
    browser.open(url)
    assert browser.js("return document.documentElement.lang") == "en"
    browser.click("#language")
    assert browser.js("return document.documentElement.lang") == "zh-CN"
    assert browser.texts("#summary h2") == ["概览"]
    assert any("优化步" in text for text in browser.texts("#loss svg text"))
    assert browser.complaints() == []
    browser.open(url)
    assert browser.js("return document.documentElement.lang") == "zh-CN"


def test_printing_shows_rows_without_a_scroll_bar(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.js("window.dispatchEvent(new Event('beforeprint'))")
    assert len(browser.column(1)) == 40
    browser.js("window.dispatchEvent(new Event('afterprint'))")
    assert len(browser.column(1)) < 40


def test_several_runs_stand_side_by_side(browser: Browser, tmp_path: Path) -> None:
    runs = [Run(tmp_path / name, method=name).decide(4).output_dir for name in ("delta_loss", "random")]
    browser.open(write_report(runs, tmp_path / "both.html").as_uri())
    assert browser.complaints() == []
    assert browser.texts("#summary h3") == ["delta_loss", "random"]
    tops = browser.js(
        "return [...document.querySelectorAll('#summary .run')].map((e) => e.getBoundingClientRect().top)"
    )
    assert tops[0] == tops[1]


@pytest.mark.parametrize("decisions", [0, 1, 2])
def test_a_run_that_has_hardly_begun_is_drawn(browser: Browser, tmp_path: Path, decisions: int) -> None:
    run = Run(tmp_path / "run", method="loss", columns={}).decide(decisions)
    browser.open(write_report([run.output_dir], None).as_uri())
    assert browser.complaints() == []
    assert browser.js("return document.getElementById('failure').hidden")


def test_a_followed_page_shows_a_new_segment_and_keeps_search_and_order(browser: Browser, tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(3)
    server = make_server([run.output_dir], 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        browser.open(f"http://127.0.0.1:{server.server_address[1]}/")
        browser.click("#rows [data-preset=worse]")
        browser.driver.find_element("css selector", "#rows input[type=search]").send_keys("logic")
        browser.js("document.querySelector('#config details').open = true")
        browser.js("document.querySelector('#decision .before').focus()")
        run.decide()
        browser.until("return document.documentElement.dataset.segments === '4'")
        browser.until("return [...document.querySelectorAll('#decision option')].length === 3")
        assert browser.texts("#rows .count") == ["30 of 120"]
        assert browser.js("return document.querySelector('#rows input').value") == "logic"
        sort = (
            "return document.querySelector('#rows th button[data-key=delta]').closest('th').getAttribute('aria-sort')"
        )
        assert browser.js(sort) == "ascending"
        assert browser.js("return document.querySelector('#config details').open")
        assert browser.js("return document.activeElement === document.querySelector('#decision .before')")
        away = run.ledger.move_aside()
        browser.until("return document.getElementById('live').classList.contains('lost')")
        away.rename(run.ledger.root)
        browser.until("return !document.getElementById('live').classList.contains('lost')")
        assert browser.complaints() == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        browser.driver.get("about:blank")


def test_the_words_of_a_followed_page_are_checked_against_its_own_policy(browser: Browser, url: str) -> None:
    """A script that is not the page's own does not run, and no address is asked."""
    browser.open(url)
    browser.js(
        "const s = document.createElement('script'); s.textContent = 'window.taken = 1'; document.body.append(s)"
    )
    assert browser.js("return window.taken") is None
    blocked = browser.driver.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('asked'), (e) => done(String(e)))"
    )
    assert "asked" not in blocked
    assert any("Content Security Policy" in message for message in browser.complaints()), json.dumps(blocked)
