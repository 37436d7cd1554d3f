"""Signal arrays that other runs may reuse, each kept under a hash of everything it depends on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from dataflex.signals.adapter import canonical_name

CHUNK = 1 << 22  # words summed at a time: bounds the copies to 32 MiB each


class SignalCache:
    """A directory of arrays, one file each, named by the hash of a key.

    The key names the weights an array was measured with, the tokenised data and the definition of the signal; a file
    under another key is never read, and its full key is compared again on loading.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, key: Mapping[str, str]) -> np.ndarray | None:
        """Return the array of exactly this key, or None."""
        path = self._path(key)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                values = file.get_tensor("values")
                same = json.loads(metadata.get("key", "null")) == dict(key)
                return values if same and metadata.get("sha256") == _digest(values) else None
        except (OSError, SafetensorError, ValueError):  # absent, or cut short by a full disk: measure anew
            return None

    def save(self, key: Mapping[str, str], values: np.ndarray) -> Path:
        """Keep an array; atomic, and harmless when two runs do it at once."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        temporary = path.with_suffix(f".tmp{os.getpid()}")
        metadata = {"key": json.dumps(dict(key), sort_keys=True), "sha256": _digest(values)}
        save_file({"values": np.ascontiguousarray(values)}, temporary, metadata=metadata)
        os.replace(temporary, path)
        return path

    def others(self, key: Mapping[str, str]) -> int:
        """Number of arrays of the same signal under other keys: made with other weights or other data."""
        mine = self._path(key).name
        return sum(path.name != mine for path in self.directory.glob(f"{key['signal']}-*.safetensors"))

    def _path(self, key: Mapping[str, str]) -> Path:
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        return self.directory / f"{key['signal']}-{digest[:32]}.safetensors"


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def weights_digest(model: nn.Module, part: Literal["all", "base", "frozen"] = "all") -> str | None:
    """Hash of a model's weights; None when this rank holds only a part of them.

    Two sums modulo 2**64 per tensor, plain and weighted by position, computed where the tensor lives (hashing the
    bytes of an 8B model on the host would take minutes): a guard against accident, not against forgery. Names are
    those of the base model, so that the hash of the base is the same under any adapter or none.

    Args:
        part: all parameters and buffers; the base model's, without LoRA matrices; or the parameters that are not
            trained.
    """
    digest = hashlib.sha256()
    if part == "frozen":
        tensors = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    else:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in sorted((canonical_name(name), tensor) for name, tensor in tensors.items()):
        if part == "base" and "lora_" in name:
            continue
        if hasattr(tensor, "ds_id") or type(tensor).__name__ == "DTensor":
            return None
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(f"{_tensor_sums(tensor.detach())};".encode())
        for scales in _scales_of(tensor):
            digest.update(f"{_tensor_sums(scales.detach())};".encode())
    return digest.hexdigest()


def _scales_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Scales of a weight that bitsandbytes quantised (QLoRA): they lie beside it, not among the parameters."""
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (scales for name in ("absmax", "offset") if torch.is_tensor(scales := getattr(state, name, None)))
        state = getattr(state, "state2", None)


def _tensor_sums(tensor: torch.Tensor) -> tuple[int, int]:
    """Sum of the tensor's words as integers, plain and weighted by a scramble of their position, modulo 2**64."""
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().view(-1)
    flat = flat.view(torch.uint8) if flat.dtype == torch.bool else flat
    # Eight bytes at a time where they are whole; a view may begin in the middle of eight.
    size = 8 if flat.numel() * flat.element_size() % 8 == 0 else flat.element_size()
    flat = flat.clone() if flat.storage_offset() * flat.element_size() % size else flat
    words = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    plain = weighted = 0
    weights = _scramble(min(CHUNK, words.numel()), str(words.device))
    for number, start in enumerate(range(0, words.numel(), CHUNK)):
        chunk = words[start : start + CHUNK].to(torch.int64)
        plain += int(chunk.sum())
        # An odd factor of the chunk's own, so that chunks cannot change places.
        weighted += int((chunk * weights[: len(chunk)]).sum()) * (number * 0x9E3779B97F4A7C16 + 1)
    return plain % 2**64, weighted % 2**64


@functools.lru_cache(maxsize=1)
def _scramble(size: int, device: str) -> torch.Tensor:
    """Weights by position. Not linear in it: 1 + 4 = 2 + 3, so that a mask would have the sum of its mirror image."""
    weights = torch.arange(1, size + 1, device=device) * 0x9E3779B97F4A7C1
    weights = (weights ^ (weights >> 29)) * 0x5851F42D4C957F2
    return weights ^ (weights >> 32)
