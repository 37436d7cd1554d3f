"""Arrays and JSON as one small gzip block, which the page unpacks (``page/unpack.js``)."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import numpy as np


class Packer:
    """Collects arrays; the JSON content holds what ``numbers`` returns in their place.

    An array is stored as whole numbers, value = (stored + min) / 10 ** decimals, in as few bytes as they need, byte
    plane after byte plane: the high planes hardly vary and compress to almost nothing. The highest number stands for
    a missing value where ``missing`` is true. The block is gzip of: length of the JSON (uint32, little endian), JSON,
    planes.
    """

    def __init__(self) -> None:
        self._planes: list[bytes] = []
        self._size = 0

    def numbers(self, values: np.ndarray, decimals: int = 0) -> dict[str, Any]:
        """Store an array, rounded to ``decimals`` places; NaN and infinite values count as missing."""
        array = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(array)
        magnitude = float(np.abs(array[finite]).max(initial=0.0))
        while decimals > 0 and magnitude * 10**decimals > 2**30:  # keeps differences within 32 bits
            decimals -= 1
        whole = np.clip(np.rint(np.where(finite, array, 0.0) * 10**decimals), -(2**30), 2**30).astype(np.int64)
        low, high = (int(whole[finite].min()), int(whole[finite].max())) if finite.any() else (0, 0)
        missing = not finite.all()
        num_bytes = next(n for n in (1, 2, 3, 4) if high - low + missing < 256**n)
        stored = np.where(finite, whole - low, 256**num_bytes - 1)
        planes = stored.astype("<u4").reshape(-1, 1).view(np.uint8)[:, :num_bytes].T
        block = np.ascontiguousarray(planes).tobytes()
        entry = {"packed_at": self._size, "n": len(array), "bytes": num_bytes, "min": low, "decimals": decimals}
        self._planes.append(block)
        self._size += len(block)
        return {**entry, "missing": missing}

    def block(self, content: Any) -> bytes:
        """The compressed block of ``content`` and all arrays stored so far."""
        text = json.dumps(plain(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        encoded = text.encode("utf-8", "replace")  # a lone surrogate cannot be encoded
        return compress(len(encoded).to_bytes(4, "little") + encoded + b"".join(self._planes))


def compress(data: bytes) -> bytes:
    """gzip without a time stamp: the same content gives the same page."""
    return gzip.compress(data, compresslevel=6, mtime=0)


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def plain(value: Any) -> Any:
    """Values that JSON knows: numpy numbers as Python's own, NaN and infinity as null, the rest as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
