"""Reads a page as the browser does: its markup, and the two blocks of content in it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.scripts = html, [], {}
        self._script: str | None = None
        self.feed(html)

    @classmethod
    def read(cls, path: Path) -> Page:
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = dict(attrs).get("id") or "own" if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    @property
    def policy(self) -> str:
        return next(a["content"] for tag, a in self.tags if a.get("http-equiv") == "Content-Security-Policy") or ""

    @property
    def runs(self) -> list[dict[str, Any]]:
        return unpack(base64.b64decode(self.scripts["runs"]))["runs"]

    @property
    def pools(self) -> list[dict[str, Any]]:
        return unpack(base64.b64decode(self.scripts["pools"]))["pools"]

    @property
    def bundle(self) -> str:
        return gzip.decompress(base64.b64decode(self.scripts["bundle"])).decode()


def unpack(block: bytes) -> Any:
    """The content of a block, arrays restored."""
    data = gzip.decompress(block)
    length = int.from_bytes(data[:4], "little")
    return _restore(json.loads(data[4 : 4 + length]), data[4 + length :])


def _restore(value: Any, planes: bytes) -> Any:
    if isinstance(value, list):
        return [_restore(item, planes) for item in value]
    if isinstance(value, dict) and "packed_at" in value:
        return _numbers(value, planes)
    return {key: _restore(item, planes) for key, item in value.items()} if isinstance(value, dict) else value


def _numbers(entry: dict[str, Any], planes: bytes) -> np.ndarray:
    n, num_bytes = entry["n"], entry["bytes"]
    stored = np.zeros(n, dtype=np.int64)
    for plane in range(num_bytes):
        begin = entry["packed_at"] + plane * n
        stored += np.frombuffer(planes[begin : begin + n], dtype=np.uint8).astype(np.int64) << (8 * plane)
    values = (stored + entry["min"]) / 10 ** entry["decimals"]
    return np.where(stored == 256**num_bytes - 1, np.nan, values) if entry["missing"] else values


def words_used(script: str) -> set[str]:
    """Keys of words that a script asks for by a plain string."""
    return set(re.findall(r'say\("([^"]+)"', script)) | set(re.findall(r'(?:caption|empty)\("([^"]+)"', script))
