"""Our file in a checkpoint folder, and which checkpoint is the newest complete one."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.ledger.files import write_atomic
from dataflex.ledger.fingerprint import differences
from dataflex.ledger.trained import STATE_FILE

MARKS = (TRAINER_STATE_NAME, STATE_FILE)  # without either a checkpoint is not complete


def write_state(checkpoint: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays and JSON values into a checkpoint folder, atomically.

    Raises:
        DataFlexError: an array that holds no numbers.
    """
    checkpoint.mkdir(parents=True, exist_ok=True)
    # ascontiguousarray would give a single number an axis.
    contiguous = {name: np.asarray(values, order="C") for name, values in arrays.items()}
    for name, values in contiguous.items():
        if values.dtype.kind not in "biuf":
            raise DataFlexError(f"the method's state {name!r} holds {values.dtype}; a state is made of numbers only")
    write_atomic(checkpoint / STATE_FILE, save(contiguous, metadata={"dataflex": json.dumps(meta)}))


def read_state(checkpoint: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what ``write_state`` wrote.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = checkpoint / STATE_FILE
    if not path.exists():
        raise ConfigError(
            f"{checkpoint} holds no {STATE_FILE}: it was not saved by a run of DataFlex, or was cut short; resume "
            "from another checkpoint, or start anew with overwrite_output_dir: true"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            meta = json.loads(file.metadata()["dataflex"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118  not a dict
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); resume from another checkpoint") from error


def restore_state(
    checkpoint: Path, fingerprint: Mapping[str, Any], why_not: Callable[[Mapping[str, Any]], str | None]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what ``write_state`` wrote, of a checkpoint that the present run can go on from.

    Args:
        why_not: given a checkpoint's values, why it does not belong to the present run and record, or None.

    Raises:
        ConfigError: it is damaged, or of another run.
    """
    arrays, meta = read_state(checkpoint)
    expected = {"step", "run_id", "trained", "fingerprint", "world_size", "seconds"} <= meta.keys()
    if not expected or not {"times_trained_N", "scorable_N"} <= arrays.keys():
        raise ConfigError(f"{checkpoint / STATE_FILE} is damaged: a part is missing; resume from another checkpoint")
    if meta["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{checkpoint} belongs to another run: {differences(meta['fingerprint'], dict(fingerprint))}; resume "
            "with the config of that run, or start anew with overwrite_output_dir: true"
        )
    reason = why_not(meta)
    if reason is not None:
        raise ConfigError(
            f"{checkpoint} {reason}; resume from another checkpoint, or start anew with overwrite_output_dir: true"
        )
    return arrays, meta


def _rng_files(world_size: int) -> list[str]:
    """Files of the ranks' random streams that this machine must have; the Trainer writes them without a barrier."""
    if world_size == 1:
        return ["rng_state.pth"]
    here = min(world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    return [f"rng_state_{rank}.pth" for rank in range(here)]


def newest_complete_checkpoint(
    output_dir: str, why_not: Callable[[Mapping[str, Any]], str | None], say: Callable[[str], None]
) -> str | None:
    """The checkpoint of the highest step that can be resumed; None when there is none.

    Args:
        why_not: given a checkpoint's values, why it does not belong to the present run and record, or None.
        say: told of each checkpoint that is passed over.
    """
    found = sorted(
        (int(path.name.rsplit("-", 1)[1]), path)
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rsplit("-", 1)[1].isdigit()
    )
    for _, path in reversed(found):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            _, meta = read_state(path)
        except (OSError, ValueError, ConfigError):
            say(f"{path} was not written to the end and is passed over")
            continue
        if not list(path.glob("rng_state*.pth")):
            say(f"{path} holds no optimizer state (save_only_model: true) and is passed over")
            continue
        if not all(zipfile.is_zipfile(path / name) for name in _rng_files(int(meta.get("world_size", 1)))):
            say(f"{path} lacks a rank's random state (killed while it was written) and is passed over")
            continue
        reason = why_not(meta)
        if reason is not None:
            say(f"{path} {reason} and is passed over")
            continue
        return str(path)
    return None
