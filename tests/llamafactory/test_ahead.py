"""``embed`` and ``score``: what they make is what a run then needs no pass for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dataflex.cli.ahead import make_ahead
from dataflex.core.errors import ConfigError
from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import make_rows, train, write_data


@pytest.fixture
def settings(config, tmp_path: Path) -> dict[str, Any]:
    folder = write_data(tmp_path / "data", toy=make_rows(30), wanted=make_rows(5, seed=2))
    cache = {"params": {"cache_dir": str(tmp_path / "cache")}}
    changes = {"component_name": "near", "warmup_step": 0, "update_step": 2, "update_times": 2, "component": cache}
    made = config(train_type="dynamic_select", dataset="toy", dataset_dir=str(folder), target="wanted", **changes)
    return {key: value for key, value in made.items() if key != "eval_dataset"}


def written(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return folder / "run.yaml"


@pytest.mark.parametrize("verb", ["embed", "score"])
def test_a_run_is_served_by_what_was_made_ahead(settings, tmp_path: Path, verb, capsys) -> None:
    if verb == "score":
        settings = {**settings, "component_name": "delta_loss"}
        del settings["target"]
    file = written(tmp_path, settings)
    make_ahead(verb, str(file), [])
    assert f"in {tmp_path / 'cache'}" in capsys.readouterr().out
    assert not Path(settings["output_dir"]).exists()
    before = sorted(path.name for path in (tmp_path / "cache").rglob("*"))
    output_dir = train(settings, tmp_path)
    line = Ledger(output_dir).segments()[0]
    assert line["scoring"]["source"] == "cache"
    assert line["scoring"]["num_rows"] == 0
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*")) == before
    make_ahead(verb, str(file), [])
    assert "were there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "changes", "said"),
    [
        ("embed", {"component": {}}, "cache_dir is not set"),
        ("embed", {"component_name": "loss", "target": None, "component": {}}, "loss needs no embeddings"),
        ("score", {}, "near needs no initial losses"),
        ("embed", {"train_type": "static"}, "no method is named|is set but"),
    ],
    ids=str,
)
def test_what_cannot_be_made_ahead_is_one_sentence(settings, tmp_path: Path, verb, changes, said) -> None:
    changed = {key: value for key, value in {**settings, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=said):
        make_ahead(verb, str(written(tmp_path, changed)), [])
