"""The verb ``select``: choose rows with a model as it is, and write them for any trainer."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from dataflex.cli.config import read_config
from dataflex.cli.measuring import measuring_settings
from dataflex.core.errors import ConfigError, DataFlexError

RECORD = ".record"  # beside the file: FILE.record/dataflex, where report and audit look


def select(
    path: str,
    overrides: list[str],
    *,
    out: str,
    take: str | None,
    update: int | None,
    baseline: str | None,
    overwrite: bool,
) -> None:
    """Write the chosen rows to ``out``, and the record of the decision beside it.

    Raises:
        DataFlexError: a mistake of the user's; nothing is left half-written.
    """
    amount = parse_take(take)
    file = Path(out)
    record = file.with_name(f"{file.name}{RECORD}")
    _check_place(file, record, overwrite)
    config = read_config(path, overrides)
    method = config.method
    if method is None:
        raise ConfigError("train_type is not dynamic_select, so that no method is named to select with; set it")
    if not method.is_plain:
        raise ConfigError(
            f"{method.title} is more than a selector, and one decision without training is a selector's; name it alone "
            "with train_type: dynamic_select"
        )
    if method.score_budget is not None:
        raise ConfigError(
            "score_budget is a share of what training costs, and nothing is trained; set score_budget=full"
        )
    if method.follows_host or "replay" in method.selector.needs:
        what = "chooses nothing" if method.follows_host else "repeats what another run chose"
        raise ConfigError(f"{method.name} {what}; name another component_name to select with")
    if "training_loss" in method.selector.needs:
        raise ConfigError(
            f"{method.name} reads the losses of training, and nothing is trained; name another component_name"
        )
    from dataflex.integrations import llamafactory
    from dataflex.integrations.selected_file import file_bytes
    from dataflex.integrations.selecting import run_select
    from dataflex.ledger.files import write_atomic
    from dataflex.ledger.ledger import Ledger
    from dataflex.train.wish import Wish

    settings = measuring_settings(config)
    wish = Wish(take=amount, update=update, baseline=baseline)
    work = Path(tempfile.mkdtemp(prefix=f".{file.name}.", dir=file.parent))
    try:
        selected = run_select(config.host, settings, wish, output_dir=str(work), file_name=file.name)
        content = file_bytes(selected.table, file.suffix)
        record.mkdir(exist_ok=True)
        if Ledger(record).exists():
            llamafactory.say(f"the record of an earlier selection was moved to {Ledger(record).move_aside()}")
        os.rename(Ledger(work).root, Ledger(record).root)
        write_atomic(file, content)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    llamafactory.say(f"chosen samples: {file} ({selected.table.num_rows} rows)")
    llamafactory.say(f"how they were chosen: {record}{os.sep}dataflex; {_report(record)}")
    llamafactory.say(f"to train on them, put {file.name} into dataset_dir and this into its dataset_info.json:")
    print(json.dumps({file.stem: selected.entry}, ensure_ascii=False, indent=2), flush=True)


def parse_take(text: str | None) -> int | float | None:
    """``40`` rows, ``0.1`` or ``10%`` of the pool; a share is a float."""
    if text is None:
        return None
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        is_share = text.endswith("%") or not text.isdecimal()
    except ValueError:
        share, is_share = 0.0, True
    if not (0 < share <= 1 if is_share else share >= 1):
        raise ConfigError(f"--take is {text!r}; write a number of rows (40) or a share of the pool (0.1 or 10%)")
    return share if is_share else int(text)


def _check_place(file: Path, record: Path, overwrite: bool) -> None:
    from dataflex.ledger.ledger import Ledger

    if file.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out is {str(file)!r}; its name must end in .jsonl or .parquet")
    if not file.parent.is_dir():
        raise ConfigError(f"the folder {file.parent} of --out does not exist; make it, or name another file")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"the folder {file.parent} of --out cannot be written; name another file")
    if file.is_dir() or record.is_file():
        raise ConfigError(f"{file if file.is_dir() else record} is in the way; name another file with --out")
    for place, is_there in ((file, file.exists()), (record, Ledger(record).exists())):
        if is_there and not overwrite:
            raise ConfigError(f"{place} exists; name another file with --out, or replace it with --overwrite")


def _report(record: Path) -> str:
    """Where the page of the decision lies, or how to make it."""
    from dataflex.report.page import write_report

    try:
        return f"report: {write_report([record], None)}"
    except DataFlexError as error:  # the plotting bundle is an extra
        return f"no report was made ({error})"
