"""What is told while a pass goes on: a bar on a terminal, a few sentences elsewhere."""

from __future__ import annotations

import pytest

from dataflex.train.progress import PassProgress, duration
from tests.train.terminal import as_seen, in_pipe, on_terminal

SCRIPT = """
import sys, time
from tqdm.auto import tqdm
from dataflex.train.progress import PassProgress, say
host = tqdm(total=4, desc="host", disable={host_off})
host.update(2)
say("before")
with PassProgress(300, 3000, bar={bar}, shown={shown}) as progress:
    for _ in range(300):
        progress.advance(10)
        time.sleep(0.002)
say("after")
host.close()
"""


def script(*, host_off: bool = False, bar: bool = True, shown: bool = True) -> str:
    return SCRIPT.format(host_off=host_off, bar=bar, shown=shown)


def test_a_terminal_shows_what_is_scored_and_how_long_it_will_take() -> None:
    code, output = on_terminal("-c", script())
    assert code == 0
    assert "[dataflex] scoring 300 samples:" in output
    assert "3.00k" in output
    assert "tokens/s]" in output
    seen = as_seen(output)
    assert "[dataflex] before" in seen
    assert "[dataflex] after" in seen


def test_a_pipe_gets_whole_lines_without_control_characters() -> None:
    code, output = in_pipe("-c", script(host_off=True))
    assert (code, output) == (0, "[dataflex] before\n[dataflex] after\n")


def test_beside_the_hosts_bar_our_lines_begin_at_the_margin_of_a_log() -> None:
    code, output = in_pipe("-c", script())
    assert code == 0
    assert [line for line in output.split("\n") if "dataflex" in line] == ["[dataflex] before", "[dataflex] after"]
    assert "scoring" not in output
    assert "\x1b" not in output


@pytest.mark.parametrize("switched_off", [{"bar": False}, {"shown": False}], ids=str)
def test_no_bar_where_the_host_has_none_or_another_rank_shows_it(switched_off: dict[str, bool]) -> None:
    _, output = on_terminal("-c", script(host_off=True, **switched_off))
    assert as_seen(output) == ["[dataflex] before", "[dataflex] after"]
    assert "scoring" not in output


def progress_of_an_hour(*, shown: bool = True) -> list[str]:
    now, said = [0.0], []
    progress = PassProgress(12_000, 3600, bar=False, shown=shown, say=said.append, clock=lambda: now[0])
    for second in range(1, 3601):
        now[0] = float(second)
        progress.advance(1)
    return said


def test_a_long_pass_without_a_bar_is_spoken_of_a_few_times() -> None:
    assert progress_of_an_hour() == [
        "scoring 12,000 samples: 1% after 30 s, about 60 min left",
        "scoring 12,000 samples: 2% after 60 s, about 59 min left",
        "scoring 12,000 samples: 3% after 2 min, about 58 min left",
        "scoring 12,000 samples: 7% after 4 min, about 56 min left",
        "scoring 12,000 samples: 13% after 8 min, about 52 min left",
        "scoring 12,000 samples: 27% after 16 min, about 44 min left",
        "scoring 12,000 samples: 53% after 32 min, about 28 min left",
    ]
    assert progress_of_an_hour(shown=False) == []


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (12_000, "3 h 20 min")])
def test_lengths_of_time_are_said_as_a_person_says_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
