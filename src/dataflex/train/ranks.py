"""The ranks of a run: who decides, how the others learn of it, and how nobody waits for one that failed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.serialization import register_package

from dataflex.core.errors import DataFlexError

T = TypeVar("T")

# Longest silence of a rank in a decision. Their collectives have a group of their own, since the host's timeout may be
# years (LLaMA-Factory's examples set ddp_timeout: 180000000); a scoring pass speaks after every batch.
TIMEOUT = timedelta(minutes=10)


def load_cpu_checkpoints_by_index() -> None:
    """Let ``torch.load`` accept the location "cpu:0", which the Trainer gives it on several CPU ranks (gloo)."""
    register_package(100, lambda storage: None, lambda storage, location: storage if location == "cpu:0" else None)


class Ranks:
    """Rank 0 decides and writes, the others receive; an error on any rank is raised on all, so that nobody waits.

    All methods but the properties are collective. They run over gloo on the host's memory, beside the host's own
    group: independent of its backend and of its timeout.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank = accelerator.process_index
        self.world_size = accelerator.num_processes
        self.device = accelerator.device
        self._group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if self.world_size > 1 else None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def from_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 and return its result on every rank."""
        if self.world_size == 1:
            return work()
        payload: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.is_main:
            try:
                payload[0] = work()
            except Exception as error:  # told to the others first, then raised here
                failure = error
                payload[1] = _sentence(error)
        with self._in_contact():
            dist.broadcast_object_list(payload, src=0, group=self._group)
        if failure is not None:
            raise failure
        if payload[1] is not None:
            raise _told(payload[1])
        return payload[0]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate equally long tensors of all ranks along axis 0; the result lies in the host's memory."""
        mine = tensor.detach().cpu().contiguous()
        if self.world_size == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        with self._in_contact():
            dist.all_gather(parts, mine, group=self._group)
        return torch.cat(parts)

    def gather_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate tensors of all ranks, of any lengths, along axis 0; the result lies in the host's memory."""
        if self.world_size == 1:
            return tensor.detach().cpu()
        lengths = self.gather(torch.tensor([len(tensor)])).tolist()
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = self.gather(padded[None])
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def first_text(self, text: str) -> str:
        """The first text that is not empty, by rank; "" when all are."""
        texts: list[str | None] = [text]
        if self.world_size > 1:
            texts = [None] * self.world_size
            with self._in_contact():
                dist.all_gather_object(texts, text, group=self._group)
        return next((found for found in texts if found), "")

    def raise_together(self, failure: BaseException | None) -> None:
        """Raise on every rank when one failed: its own error there, its sentence on the others."""
        if self.world_size == 1:
            if failure is not None:
                raise failure
            return
        failed = torch.tensor([int(failure is not None)])
        with self._in_contact():
            dist.all_reduce(failed, group=self._group)
            if not int(failed):
                return
            sentences: list[str | None] = [None] * self.world_size
            dist.all_gather_object(sentences, failure and _sentence(failure), group=self._group)
        if failure is not None:
            raise failure
        rank, sentence = next((rank, text) for rank, text in enumerate(sentences) if text is not None)
        raise _told(f"rank {rank} failed: {sentence}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block that is not collective; an error of one rank is raised on all."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        self.raise_together(failure)

    def require_on_all(self, condition: bool, sentence: str) -> None:
        """Raise on every rank when ``condition`` fails on one."""
        agreed = self.gather(torch.tensor([int(condition)])).tolist()
        if not all(agreed):
            raise DataFlexError(f"{sentence} (rank {agreed.index(0)})")

    def require_equal(self, value: str | np.ndarray, what: str) -> None:
        """Raise on every rank when the hash of ``value`` differs from rank 0's on one of them."""
        if self.world_size == 1:
            return
        data = value.encode() if isinstance(value, str) else f"{value.dtype} {value.shape}".encode() + value.tobytes()
        mine = torch.frombuffer(bytearray(hashlib.sha256(data).digest()), dtype=torch.uint8)
        digests = self.gather(mine).view(self.world_size, -1)
        others = (digests != digests[0]).any(dim=1).nonzero().flatten().tolist()
        if others:
            raise DataFlexError(f"{what} of rank {others[0]} differs from rank 0's; nothing is trained on it")

    @contextmanager
    def _in_contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises for a lost peer and for a timeout
            minutes = int(TIMEOUT.total_seconds() // 60)
            raise DataFlexError(
                f"rank {self.rank} lost contact with the other ranks: one of them ended, or said nothing for {minutes} "
                f"minutes ({_sentence(error)[:200]}); look at its own message, then start again with "
                "overwrite_output_dir: false"
            ) from error


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _told(sentence: str) -> DataFlexError:
    """An error that another rank prints."""
    error = DataFlexError(sentence)
    error.told_by_another_rank = True
    return error
