"""The ranks of a run: who decides, and how the others learn of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.serialization import register_package

from dataflex.core.errors import DataFlexError

T = TypeVar("T")


def load_cpu_checkpoints_by_index() -> None:
    """Let ``torch.load`` accept the location "cpu:0", which the Trainer gives it on several CPU ranks (gloo)."""
    register_package(100, lambda storage: None, lambda storage, location: storage if location == "cpu:0" else None)


class Ranks:
    """Rank 0 decides and writes, the others receive; an error there is raised everywhere, so that nobody waits."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank = accelerator.process_index
        self.world_size = accelerator.num_processes
        self.device = accelerator.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def from_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 and return its result on every rank (collective)."""
        if self.world_size == 1:
            return work()
        payload: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.is_main:
            try:
                payload[0] = work()
            except Exception as error:  # told to the others first, then raised here
                failure = error
                payload[1] = str(error) or type(error).__name__
        broadcast_object_list(payload)
        if failure is not None:
            raise failure
        if payload[1] is not None:
            error = DataFlexError(payload[1])
            error.told_by_rank_0 = True
            raise error
        return payload[0]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate equally long tensors of all ranks along axis 0 (collective)."""
        return cast(torch.Tensor, self._accelerator.gather(tensor))

    def require_on_all(self, condition: bool, sentence: str) -> None:
        """Raise on every rank when ``condition`` fails on one (collective)."""
        agreed = self.gather(torch.tensor([int(condition)], device=self.device)).tolist()
        if not all(agreed):
            raise DataFlexError(f"{sentence} (rank {agreed.index(0)})")

    def require_equal(self, value: str, what: str) -> None:
        """Raise on every rank when ``value`` differs from rank 0's (collective)."""
        if self.world_size == 1:
            return
        same = value == self.from_main(lambda: value)
        self.require_on_all(same, f"{what} differs from rank 0's; all ranks must read the same data")
