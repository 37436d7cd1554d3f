"""A model that cannot be loaded is a sentence, and before the first of several is loaded wherever that can be told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dataflex.core.errors import ConfigError
from dataflex.evaluate.models import ModelSpec, check_model, limits, loaded
from dataflex.evaluate.weights import MODEL, weights_problem
from tests.evaluate.conftest import evaluate


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def in_shards(folder: Path) -> list[Path]:
    """Cut the weights into two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return [folder / shard for shard in shards]


def without_a_shard(folder: Path) -> None:
    in_shards(folder)[1].unlink()


def with_a_damaged_index(folder: Path) -> None:
    in_shards(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')


def of_an_unknown_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_model"}))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (without_weights, r"holds no weights \(model.safetensors, pytorch_model.bin\): it was not written"),
    "cut short": (cut_short, r"has a damaged model.safetensors \("),
    "empty": (cut_to_nothing, "has an empty model.safetensors"),
    "no shard": (without_a_shard, "lacks model-00002-of-00002.safetensors, which its index names"),
    "index": (with_a_damaged_index, "has a damaged model.safetensors.index.json"),
    "unknown": (of_an_unknown_kind, r"has a config that transformers cannot read \(.*no_such_model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_second_model_that_is_damaged_is_found_before_the_first_is_loaded(
    config, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("dataflex.cli.evaluate.loaded", lambda *_: pytest.fail("a model is loaded"))
    make, said = DAMAGES[damage]
    other = tmp_path / "checkpoint-4"
    shutil.copytree(tiny_model, other)
    make(other)
    models = [{"name": "first", "model_name_or_path": str(tiny_model)}]
    models.append({"name": "second", "model_name_or_path": str(other)})
    with pytest.raises(ConfigError, match=f"model_name_or_path of second, '.*checkpoint-4', {said}"):
        evaluate(config(models=models), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_alone", [True, False])
def test_an_adapter_without_its_weights_is_a_sentence(
    tiny_model: Path, adapter: Path, tmp_path: Path, is_alone: bool
) -> None:
    other = tmp_path / "checkpoint-4"
    shutil.copytree(adapter, other)
    (other / "adapter_model.safetensors").unlink()
    spec = ModelSpec(
        name="a",
        model_name_or_path=str(other if is_alone else tiny_model),
        adapter_name_or_path=None if is_alone else str(other),
    )
    key = "model_name_or_path" if is_alone else "adapter_name_or_path"
    with pytest.raises(ConfigError, match=rf"^{key} of a, .*holds no weights \(adapter_model.safetensors"):
        check_model(spec)


def test_whole_weights_are_whole(tiny_model: Path, tmp_path: Path) -> None:
    assert weights_problem(tiny_model, MODEL) is None
    shutil.copytree(tiny_model, tmp_path / "shards")
    in_shards(tmp_path / "shards")
    assert weights_problem(tmp_path / "shards", MODEL) is None
    check_model(ModelSpec(name="a", model_name_or_path=str(tmp_path / "shards")))


def test_limits_of_an_unknown_kind_are_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "other")
    of_an_unknown_kind(tmp_path / "other")
    with pytest.raises(ConfigError, match="a config that transformers cannot read"):
        limits(ModelSpec(name="a", model_name_or_path=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            SafetensorError("Error while deserializing header"),
            r"a cannot be loaded \(Error while deserializing header\)",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "a, with dtype: auto, does not fit in the device's memory"),
        (ImportError("needs bitsandbytes"), r"a cannot be loaded \(needs bitsandbytes\)"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("when", ["from_pretrained", "to"])
def test_what_goes_wrong_while_a_model_is_loaded_is_a_sentence(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, when: str
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise error

    if when == "to":
        monkeypatch.setattr("transformers.PreTrainedModel.to", fails)
    else:
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fails)
    with (
        pytest.raises(ConfigError, match=f"the model {said}"),
        loaded(ModelSpec(name="a", model_name_or_path=str(tiny_model)), "auto"),
    ):
        pass
