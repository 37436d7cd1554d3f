"""Two ranks as two threads of one process: collectives meet at a barrier, as gloo's do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


class ThreadRanks:
    """What ``Ranks`` offers to those who only gather, for one of ``world_size`` threads."""

    def __init__(self, rank: int, world_size: int, shared: dict[str, Any]) -> None:
        self.rank, self.world_size, self._shared = rank, world_size, shared
        self.num_messages = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        parts = self._exchange(tensor.detach().cpu())
        assert len({part.shape for part in parts}) == 1, "gather takes equally long tensors"
        return torch.cat(parts)

    def gather_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        parts = self._exchange(tensor.detach().cpu())
        assert len({part.shape[1:] for part in parts}) == 1, "lengths may differ, widths may not"
        return torch.cat(parts)

    def _exchange(self, mine: torch.Tensor) -> list[torch.Tensor]:
        self.num_messages += 1
        self._shared["parts"][self.rank] = mine
        self._shared["barrier"].wait(timeout=20)
        parts = list(self._shared["parts"])
        self._shared["barrier"].wait(timeout=20)
        return parts


def one_rank() -> Any:
    return on_ranks(1, lambda ranks: ranks)[0]


def on_ranks(world_size: int, work: Callable[[Any], Any]) -> list[Any]:
    """The results of ``work`` on each rank; the first error is raised."""
    shared = {"parts": [None] * world_size, "barrier": threading.Barrier(world_size)}
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, world_size, shared))
        except BaseException as error:
            errors.append(error)
            shared["barrier"].abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results
