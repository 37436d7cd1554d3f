"""Two gloo ranks under DDP measure similarities and train on; started by test_gradient_similarity.py.

Usage: gradient_ranks_program.py MODEL FOLDER
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    import numpy as np
    import torch
    import torch.distributed as dist
    from test_gradient_similarity import measured, trained

    from dataflex.signals.gradient.moments import adam_of
    from dataflex.signals.gradient.weights import trainable_weights
    from dataflex.signals.sweep import Collective

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    name, folder = sys.argv[1], Path(sys.argv[2])
    model, optimizer = trained(name)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    ranks = Collective(device=torch.device("cpu"), rank=rank, world_size=dist.get_world_size(), gather=gather)
    adam = adam_of(optimizer, model, trainable_weights(model))
    found = measured(model, adam, folder / f"rows{rank}", ranks=ranks)
    assert (folder / f"rows{rank}").exists() == (rank == 0)
    np.save(folder / f"rank{rank}.npy", found.similarities_NxG)
    # DDP still reduces: another row on each rank, the same gradient afterwards.
    tokens = torch.tensor([[3, 4, 5 + rank]])
    wrapped(input_ids=tokens, labels=tokens).loss.backward()
    first = next(p for p in model.parameters() if p.requires_grad)
    assert first.grad is not None
    both = gather(first.grad[None])
    assert torch.equal(both[0], both[1])
    del wrapped
    dist.barrier()
    dist.destroy_process_group()
    # The interpreter's end may abort in a thread of gloo that is not joined yet.
    os._exit(0)


if __name__ == "__main__":
    main()
