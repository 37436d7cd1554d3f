"""Whatever is under way on the terminal, the error sentence is the last thing on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.train.terminal import as_seen, in_pipe, on_terminal

SCRIPT = """
import sys
from tqdm import tqdm as plain
from tqdm.auto import tqdm
from dataflex.cli import main
from dataflex.core.errors import DataFlexError

def app():
    bars = [plain(total=9, desc="plain"), tqdm(total=10, desc="training")]
    for bar in bars:
        bar.update(3)
    print("a line of stdout")
    main.kept = bars
    raise DataFlexError("the disk is full;\\n free some space")

main.app = app
sys.argv = ["dataflex-cli", "train"]
main.main()
"""


@pytest.mark.parametrize("run", [on_terminal, in_pipe])
def test_the_error_sentence_comes_after_bars_and_output(run: Callable[..., tuple[int, str]]) -> None:
    code, output = run("-c", SCRIPT)
    assert code == 2
    seen = as_seen(output)
    assert seen[-1] == "dataflex-cli: error: the disk is full; free some space"
    assert output.endswith("free some space\n")
    assert any("a line of stdout" in line for line in seen)
