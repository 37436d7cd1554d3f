"""When torchrun is started, and with what."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_configs import changed, write_config

from dataflex.cli import train as train_module
from dataflex.cli.train import torchrun_arguments, train, wants_torchrun
from dataflex.core.errors import DataFlexError


def value_of(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_one_node_takes_a_free_port() -> None:
    arguments = torchrun_arguments("a.yaml", [], 4)
    assert value_of(arguments, "--nnodes") == "1"
    assert value_of(arguments, "--nproc-per-node") == "4"
    assert "--standalone" in arguments
    assert "--master-addr" not in arguments


def test_paths_and_overrides_with_spaces_stay_whole() -> None:
    arguments = torchrun_arguments("my configs/a b.yaml", ["output_dir=my saves/x y", "a=[1, 2]"], 1)
    start = arguments.index("--module")
    assert arguments[start:] == [
        "--module",
        "dataflex.cli.main",
        "train",
        "my configs/a b.yaml",
        "output_dir=my saves/x y",
        "a=[1, 2]",
    ]


def test_the_environment_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NNODES": "2",
        "NODE_RANK": "1",
        "NPROC_PER_NODE": "3",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "29511",
    }.items():
        monkeypatch.setenv(name, value)
    arguments = torchrun_arguments("a.yaml", [], 8)
    for flag, value in {
        "--nnodes": "2",
        "--node-rank": "1",
        "--nproc-per-node": "3",
        "--master-addr": "10.0.0.7",
        "--master-port": "29511",
    }.items():
        assert value_of(arguments, flag) == value
    assert "--standalone" not in arguments


def test_an_address_without_a_port_takes_the_usual_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    assert value_of(torchrun_arguments("a.yaml", [], 1), "--master-port") == "29500"


def test_a_port_on_one_node_is_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29511")
    arguments = torchrun_arguments("a.yaml", [], 1)
    assert value_of(arguments, "--master-addr") == "127.0.0.1"
    assert value_of(arguments, "--master-port") == "29511"


@pytest.mark.parametrize("port", [None, "29511"])
def test_several_nodes_need_an_address(monkeypatch: pytest.MonkeyPatch, port: str | None) -> None:
    """With a port alone every node would wait for the others on itself."""
    monkeypatch.setenv("NNODES", "2")
    if port is not None:
        monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(DataFlexError, match="MASTER_ADDR is not set"):
        torchrun_arguments("a.yaml", [], 1)


@pytest.mark.parametrize(
    ("value", "devices", "wanted"),
    [
        (None, 1, False),
        (None, 2, True),
        ("0", 1, False),
        ("1", 1, True),
        ("true", 1, True),
        ("Y", 1, True),
        ("no", 1, False),
        ("0", 2, True),
        ("", 1, False),
    ],
)
def test_when_torchrun_is_wanted(monkeypatch: pytest.MonkeyPatch, value, devices: int, wanted: bool) -> None:
    if value is not None:
        monkeypatch.setenv("FORCE_TORCHRUN", value)
    assert wants_torchrun(devices) is wanted


def test_workers_of_torchrun_train_and_do_not_launch_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without_llamafactory
) -> None:
    launched, trained = [], []
    monkeypatch.setattr(train_module, "launch", lambda *args: launched.append(args))
    monkeypatch.setattr(train_module, "_train_dynamic", lambda config, **flags: trained.append(config))
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    path = write_config(tmp_path, changed())
    train(path, ["warmup_step=1"], fresh=True, other_versions=True)
    assert (launched, trained) == ([(path, ["warmup_step=1", "--fresh", "--other-versions"], 1)], [])
    monkeypatch.setenv("RANK", "0")  # a cluster scheduler sets it for each pod
    train(path, [])
    assert len(launched) == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    train(path, [])
    assert len(launched) == 2
    assert [config.deciding.name for config in trained] == ["delta_loss"]


def test_a_mistake_is_found_before_the_launch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without_llamafactory
) -> None:
    monkeypatch.setattr(train_module, "launch", lambda *args: pytest.fail("launched"))
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    with pytest.raises(DataFlexError, match="update_step is 0"):
        train(write_config(tmp_path, changed(update_step=0)), [])


def test_static_runs_the_host_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without_llamafactory) -> None:
    ran = []
    monkeypatch.setattr(without_llamafactory, "run_static", ran.append)
    train(write_config(tmp_path, changed(train_type="static")), [])
    assert "train_type" not in ran[0]
    assert "component_name" not in ran[0]
    assert ran[0]["learning_rate"] == 1e-4
