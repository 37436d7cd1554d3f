"""When a finished part may stand for the one that is asked for: same config, same data, same model, same versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflex import __version__

PACKAGES = ("torch", "transformers", "accelerate", "peft", "llamafactory", "numpy")
READ_WHOLE = 64 * 2**20  # bytes; of a larger file, size and time of the last change stand for the content


def run_digest(config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """sha256 of a run's config (without where it writes), of what it reads, and of the packages' versions."""
    named = {key: value for key, value in config.items() if key != "output_dir"}
    return digest({"config": named, "inputs": dict(inputs), "versions": versions()})


def file_digests(paths: Iterable[Path]) -> dict[str, str]:
    """What stands for the content of each file; of a folder, of the files that lie directly in it."""
    found = {}
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                found[str(file)] = _file_digest(file)
    return found


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of what a run's numbers depend on."""
    found = {"dataflex": __version__}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _file_digest(path: Path) -> str:
    status = path.stat()
    if status.st_size > READ_WHOLE:
        return f"{status.st_size} bytes, changed {status.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Mapping[str, Any]) -> str:
    """sha256 of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
