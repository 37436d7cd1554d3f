"""The verb ``train``: read the config, then train here or under torchrun."""

from __future__ import annotations

import os
import sys

from dataflex.cli.config import RunConfig, check_host_keys, dataset_names, read_config
from dataflex.core.errors import DataFlexError


def train(path: str, overrides: list[str], *, fresh: bool = False, other_versions: bool = False) -> None:
    """Train from a config file.

    Args:
        fresh: take no losses from the cache of another run.
        other_versions: resume although packages have other versions than before.

    Raises:
        DataFlexError: a mistake of the user's, found before anything is written.
    """
    config = read_config(path, overrides)
    from dataflex.integrations import llamafactory

    check_host_keys(config.host, llamafactory.known_keys())
    if config.is_dynamic:
        llamafactory.refuse_config(config.host)
    # LOCAL_RANK is torchrun's own; RANK alone is also set for each pod by cluster schedulers.
    if "LOCAL_RANK" not in os.environ and wants_torchrun(llamafactory.num_devices()):
        flags = [*(["--fresh"] if fresh else []), *(["--other-versions"] if other_versions else [])]
        launch(path, [*overrides, *flags], llamafactory.num_devices())
    elif config.is_dynamic:
        _train_dynamic(config, fresh=fresh, other_versions=other_versions)
    else:
        llamafactory.run_static(config.host)


def _train_dynamic(config: RunConfig, *, fresh: bool, other_versions: bool) -> None:
    from dataflex.integrations import llamafactory
    from dataflex.train.settings import Settings

    assert config.schedule is not None
    settings = Settings(
        method=config.deciding,
        schedule=config.schedule,
        score_batch_tokens=config.score_batch_tokens,
        log_source_loss=config.log_source_loss,
        domain_column=config.domain_column,
        domain_names=domain_names(config),
        target_names=config.target,
        target_groups=config.target_groups,
        allow_overlap=config.allow_overlap,
        config=config.resolved,
        fresh=fresh,
        other_versions=other_versions,
    )
    trainer = llamafactory.run_dynamic(config.host, settings)
    if trainer.args.process_index == 0:
        output_dir = trainer.args.output_dir
        llamafactory.say(f"model or adapter: {output_dir}")
        llamafactory.say(f"what was trained, when and why: {os.path.join(output_dir, 'dataflex')}")


def domain_names(config: RunConfig) -> tuple[str, ...] | None:
    """The order of the domains where they are the data sets: that of ``dataset``."""
    names = dataset_names(config.host) if config.domain_column is None else None
    return tuple(map(str, names)) if names is not None else None


def wants_torchrun(num_devices: int) -> bool:
    """Several devices, or FORCE_TORCHRUN=1, as LLaMA-Factory decides it."""
    forced = os.environ.get("FORCE_TORCHRUN", "0").lower() in ("1", "true", "y")
    return forced or num_devices > 1


def torchrun_arguments(path: str, overrides: list[str], num_devices: int) -> list[str]:
    """Arguments of torchrun; NNODES, NODE_RANK, NPROC_PER_NODE, MASTER_ADDR and MASTER_PORT are honoured."""
    env = os.environ
    nodes = launch_number("NNODES", 1)
    if nodes > 1 and "MASTER_ADDR" not in env:
        raise DataFlexError(
            f"NNODES is {nodes} but MASTER_ADDR is not set; set MASTER_ADDR and MASTER_PORT on every node"
        )
    if "MASTER_ADDR" in env or "MASTER_PORT" in env:
        address, port = env.get("MASTER_ADDR", "127.0.0.1"), str(launch_number("MASTER_PORT", 29500))
        rendezvous = ["--master-addr", address, "--master-port", port]
    else:
        rendezvous = ["--standalone"]  # one node, a free port
    return [
        "--nnodes",
        str(nodes),
        "--node-rank",
        str(launch_number("NODE_RANK", 0)),
        "--nproc-per-node",
        str(launch_number("NPROC_PER_NODE", num_devices)),
        *rendezvous,
        "--module",
        "dataflex.cli.main",
        "train",
        path,
        *overrides,
    ]


def launch_number(variable: str, default: int) -> int:
    """A whole number from the environment."""
    text = os.environ.get(variable, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise DataFlexError(f"{variable} is {text!r}; it must be a whole number") from error


def launch(path: str, overrides: list[str], num_devices: int) -> None:
    """Start torchrun in this process and leave with the workers' exit code."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # LLaMA-Factory's launcher sets these two for faster DDP; a user's own values stay.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("TORCH_NCCL_AVOID_RECORD_STREAMS", "1")
    try:
        run(parse_args(torchrun_arguments(path, overrides, num_devices)))
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        # Workers print a user's mistake themselves (the others are then terminated); else torchrun's report is shown.
        if codes - {2, -15}:
            print(error, file=sys.stderr)
            sys.exit(1)
        sys.exit(2)
