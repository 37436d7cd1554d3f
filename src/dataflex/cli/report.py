"""The verb ``report``: the page of one or several runs, as a file or served while a run goes on."""

from __future__ import annotations

from dataflex.core.errors import ConfigError


def report(run_dirs: list[str], out: str | None, language: str, follow: bool, port: int) -> None:
    """Write the page, or serve it until Ctrl-C.

    Raises:
        DataFlexError: no run there, a place that cannot be written, or a port that is taken.
    """
    if follow:
        if out is not None:
            raise ConfigError("--follow serves the page and writes no file; leave out --out, or leave out --follow")
        from dataflex.report.follow import follow_runs

        follow_runs(run_dirs, port, language, say=lambda sentence: print(sentence, flush=True))
    else:
        from dataflex.report.page import write_report

        print(f"report: {write_report(run_dirs, out, language)}")
