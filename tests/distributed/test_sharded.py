"""A model sharded by FSDP2 over two gloo ranks scores as one process does, before and after a training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        Version(torch.__version__) < Version("2.9"),
        reason="FSDP2 of torch before 2.9 fails on a CPU or trains other weights than one process, without us too",
    ),
]
PROGRAM = Path(__file__).with_name("fsdp2_program.py")
VARIANTS = ("layers", "head of its own", "tied", "lora and checkpointing")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    folder, found = tmp_path_factory.mktemp("sharded"), {}
    for world_size in (1, 2):
        launcher = [sys.executable]
        if world_size > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        out = folder / f"{world_size}.json"
        result = subprocess.run(
            [*launcher, str(PROGRAM), str(out), *VARIANTS],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        found[world_size] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tables_are_those_of_one_process(results, variant: str, when: str) -> None:
    one, two = (np.array(results[world_size][variant][when], dtype=float) for world_size in (1, 2))
    assert np.isnan(one).sum() == 3, "rows without labels"
    np.testing.assert_allclose(two, one, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_after_a_pass_changes_the_losses(results, variant: str) -> None:
    """Parameters that the pass left gathered would be trained in vain."""
    before, after = (np.array(results[2][variant][when], dtype=float) for when in ("before", "after"))
    assert np.nanmax(np.abs(after - before)) > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_rank_makes_as_many_forwards(results, variant: str) -> None:
    assert len(set(results[2][variant]["forwards"])) == 1


def test_the_fast_path_is_taken_unless_the_head_is_a_shard_of_its_own(results) -> None:
    taken = {variant: results[2][variant]["fast"] for variant in VARIANTS}
    assert taken == {variant: variant != "head of its own" for variant in VARIANTS}
