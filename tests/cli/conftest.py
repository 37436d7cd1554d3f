"""Every test in an empty working directory, and without LLaMA-Factory where it is not what is tested."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("cli_configs")

LAUNCH_VARIABLES = ("NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT", "FORCE_TORCHRUN", "RANK")


@pytest.fixture(autouse=True)
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in LAUNCH_VARIABLES:
        # Set first: what the code under test leaves in the environment is taken back as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without_llamafactory(monkeypatch: pytest.MonkeyPatch):
    from cli_configs import fake_llamafactory

    import dataflex.integrations

    fake = fake_llamafactory()
    monkeypatch.setitem(sys.modules, "dataflex.integrations.llamafactory", fake)
    monkeypatch.setattr(dataflex.integrations, "llamafactory", fake, raising=False)
    return fake
