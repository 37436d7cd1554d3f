"""Verbs that LLaMA-Factory serves."""

from __future__ import annotations

import sys

from dataflex.integrations import llamafactory


def pass_through(arguments: list[str]) -> None:
    """Run ``llamafactory-cli`` in this process with the given arguments."""
    cli = llamafactory.import_module("llamafactory.cli")
    sys.argv = ["llamafactory-cli", *arguments]
    cli.main()
