"""run.yaml: what is known of a run before its first decision, sealed against accidental edits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dataflex.core.errors import LedgerError
from dataflex.ledger.files import RESTORE, write_atomic

SEAL = "seal"  # last key of the file: checksums of its other keys and of rows.parquet


def write_run(path: Path, run: Mapping[str, Any], rows_sha256: str | None) -> None:
    """Write run.yaml; ``rows_sha256`` is the checksum of rows.parquet."""
    # Through JSON, so that one object in two places does not become a YAML anchor and its alias.
    plain = json.loads(json.dumps(dict(run)))
    plain[SEAL] = {"rows": rows_sha256, "run": content_digest(plain)}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != plain:  # PyYAML loses a few line-end characters unless they are escaped
        text = yaml.safe_dump(plain, sort_keys=False)
    write_atomic(path, text.encode("utf-8"))


def read_run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of run.yaml and its seal, not compared; no tag of YAML makes an object or runs code.

    Raises:
        LedgerError: there is no such file, or it is no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LedgerError(
            f"{path} cannot be read ({reason}); this directory holds no complete run of DataFlex"
        ) from error
    if not isinstance(content, dict):
        raise LedgerError(f"{path} is damaged: it holds no mapping; {RESTORE}")
    seal = content.pop(SEAL, None)
    return content, seal if isinstance(seal, dict) else {}


class _Loader(yaml.SafeLoader):
    """Without aliases, which we never write: a few lines of them can stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias")
        return super().compose_node(parent, index)


def seal_problem(content: Mapping[str, Any], seal: Mapping[str, Any]) -> str | None:
    """What is wrong with the seal of run.yaml, or None."""
    if "run" not in seal:
        return "its checksum is missing"
    try:
        same = seal["run"] == content_digest(content)
    except (TypeError, ValueError, RecursionError):  # keys or values that JSON does not have
        same = False
    return None if same else "it was changed since it was written: its checksum does not match"


def content_digest(content: Mapping[str, Any]) -> str:
    """sha256 of the values, whatever the layout of the file."""
    text = json.dumps(content, sort_keys=True, default=repr)  # repr: a date, which only an edited file holds
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
