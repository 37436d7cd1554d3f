"""Arrays of other runs: only the very same weights, data and definition are served."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import make_model
from torch import nn

from dataflex.signals.cache import SignalCache, weights_digest

KEY = {"signal": "loss", "weights": "w1", "data": "d1", "definition": "mean", "precision": "fp32"}
VALUES = np.array([1.5, np.nan, -0.25], dtype=np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> SignalCache:
    return SignalCache(tmp_path / "not" / "there" / "yet")


def test_what_was_saved_is_loaded_bit_by_bit(cache: SignalCache) -> None:
    assert cache.load(KEY) is None
    path = cache.save(KEY, VALUES)
    loaded = cache.load(KEY)
    assert loaded is not None
    assert (loaded.dtype, loaded.tobytes()) == (VALUES.dtype, VALUES.tobytes())
    assert [p.name for p in cache.directory.iterdir()] == [path.name], "nothing temporary is left"


def test_the_order_of_the_key_does_not_matter(cache: SignalCache) -> None:
    cache.save(KEY, VALUES)
    assert cache.load(dict(reversed(KEY.items()))) is not None


@pytest.mark.parametrize("name", KEY)
def test_another_value_of_any_part_of_the_key_is_not_served(cache: SignalCache, name: str) -> None:
    cache.save(KEY, VALUES)
    assert cache.load({**KEY, name: "other"}) is None
    assert cache.load({k: v for k, v in KEY.items() if k != name or k == "signal"} | {"x": "y"}) is None


def test_a_file_under_another_files_name_is_not_served(cache: SignalCache) -> None:
    path, other = cache.save(KEY, VALUES), {**KEY, "weights": "w2"}
    path.rename(cache.save(other, VALUES + 1))
    assert cache.load(other) is None


@pytest.mark.parametrize("kept", [0, 1, 8, 60, -1, -8])
def test_a_file_cut_short_is_measured_anew_and_replaced(cache: SignalCache, kept: int) -> None:
    path = cache.save(KEY, VALUES)
    path.write_bytes(path.read_bytes()[:kept])
    assert cache.load(KEY) is None
    cache.save(KEY, VALUES)
    assert cache.load(KEY) is not None


@pytest.mark.parametrize("content", [b"\x00" * 64, b"no safetensors at all, but long enough to look at", b"\xff" * 9])
def test_a_foreign_file_is_ignored(cache: SignalCache, content: bytes) -> None:
    cache.save(KEY, VALUES).write_bytes(content)
    assert cache.load(KEY) is None


def test_a_folder_in_the_files_place_is_ignored(cache: SignalCache) -> None:
    path = cache.save(KEY, VALUES)
    path.unlink()
    path.mkdir()
    assert cache.load(KEY) is None


def test_a_file_without_our_array_or_our_key_is_ignored(cache: SignalCache) -> None:
    import json

    from safetensors.numpy import save_file

    path = cache.save(KEY, VALUES)
    for tensors, metadata in [
        ({"other": VALUES}, {"key": json.dumps(KEY)}),
        ({"values": VALUES}, {"key": "{no json"}),
        ({"values": VALUES}, {"key": "[]"}),
        ({"values": VALUES}, None),
    ]:
        save_file(tensors, path, metadata=metadata)
        assert cache.load(KEY) is None


def test_others_are_counted_for_the_same_signal_only(cache: SignalCache) -> None:
    assert cache.others(KEY) == 0
    cache.save(KEY, VALUES)
    assert cache.others(KEY) == 0
    cache.save({**KEY, "weights": "w2"}, VALUES)
    cache.save({**KEY, "data": "d2"}, VALUES)
    cache.save({**KEY, "signal": "length"}, VALUES)
    assert cache.others(KEY) == 2
    assert cache.others({**KEY, "weights": "w3"}) == 3
    (cache.directory / "loss-1.tmp77").write_bytes(b"left by a kill")
    assert cache.others(KEY) == 2


def test_a_crash_while_saving_leaves_the_old_array(cache: SignalCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.save(KEY, VALUES)

    def crash(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("dataflex.signals.cache.os.replace", crash)
    with pytest.raises(OSError, match="no space"):
        cache.save(KEY, VALUES + 1)
    loaded = cache.load(KEY)
    assert loaded is not None
    assert loaded.tobytes() == VALUES.tobytes()


# weights


@pytest.fixture
def model() -> nn.Module:
    model = make_model("llama")
    model.register_buffer("counter", torch.zeros(3, dtype=torch.int64))
    model.register_buffer("mask", torch.tensor([True, False, True, True]), persistent=False)
    return model


def test_a_copy_has_the_same_digest(model: nn.Module) -> None:
    clone = make_model("qwen2")
    assert weights_digest(copy.deepcopy(model)) == weights_digest(model)
    assert weights_digest(clone) != weights_digest(model)
    fresh = make_model("llama")
    assert weights_digest(fresh) == weights_digest(make_model("llama"))


def test_a_model_in_a_wrapper_has_the_digest_of_the_model(model: nn.Module) -> None:
    wrapper = nn.Module()
    wrapper.module = model
    assert weights_digest(wrapper) == weights_digest(model)


def test_modes_and_gradients_are_no_weights(model: nn.Module) -> None:
    before = weights_digest(model)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(False)
    assert weights_digest(model) == before


@pytest.mark.parametrize("position", [0, 1, 517, -1])
def test_one_changed_element_changes_the_digest(model: nn.Module, position: int) -> None:
    before = weights_digest(model)
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        at = position if position < len(flat) else -1
        old = flat[at].clone()
        flat[at] = torch.nextafter(old, torch.tensor(float("inf")))
        assert weights_digest(model) != before, name
        flat[at] = old
    assert weights_digest(model) == before


def test_swapped_elements_change_the_digest(model: nn.Module) -> None:
    before = weights_digest(model)
    weight = model.lm_head.weight.data.view(-1)
    for i, j in [(0, 1), (3, 700), (10, len(weight) - 1)]:
        assert weight[i] != weight[j]
        weight[[i, j]] = weight[[j, i]]
        assert weights_digest(model) != before
        weight[[i, j]] = weight[[j, i]]


def test_swapped_rows_and_swapped_layers_change_the_digest(model: nn.Module) -> None:
    before = weights_digest(model)
    weight = model.model.embed_tokens.weight.data
    weight[[4, 5]] = weight[[5, 4]]
    assert weights_digest(model) != before
    weight[[4, 5]] = weight[[5, 4]]
    model.model.layers = nn.ModuleList(reversed(model.model.layers))
    assert weights_digest(model) != before


@pytest.mark.parametrize("name", ["counter", "mask"])
def test_a_buffer_counts(model: nn.Module, name: str) -> None:
    before = weights_digest(model)
    buffer = getattr(model, name)
    buffer[1] = 1
    assert weights_digest(model) != before
    buffer[[0, 1]] = buffer[[1, 0]]
    assert weights_digest(model) != before


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float32])
def test_a_mask_of_the_outer_heads_is_not_one_of_the_inner_heads(dtype: torch.dtype) -> None:
    """Both hold as many ones, and their positions add up to the same number."""
    digests = set()
    for content in ([0, 1, 1, 0], [1, 0, 0, 1]):
        module = nn.Module()
        module.register_buffer("mask", torch.tensor(content).to(dtype))
        digests.add(weights_digest(module))
    assert len(digests) == 2


def test_the_name_the_shape_and_the_type_count() -> None:
    def holding(tensor: torch.Tensor, name: str = "weight") -> nn.Module:
        module = nn.Module()
        module.register_buffer(name, tensor)
        return module

    zeros = torch.zeros(2, 6)
    found = {
        weights_digest(holding(tensor, name))
        for tensor, name in [
            (zeros, "weight"),
            (zeros, "bias"),
            (zeros.T, "weight"),
            (zeros.view(3, 4), "weight"),
            (zeros.int(), "weight"),
            (zeros.bfloat16(), "weight"),
        ]
    }
    assert len(found) == 6


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.int64,
        torch.complex64,
    ],
)
def test_every_kind_of_number_can_be_hashed(dtype: torch.dtype) -> None:
    digests = set()
    for content in ([0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1]):
        module = nn.Module()
        module.register_buffer("values", torch.tensor(content, dtype=torch.float32).to(dtype))
        module.register_buffer("one", torch.tensor(1.0).to(dtype))
        module.register_buffer("none", torch.zeros(0).to(dtype))
        digests.add(weights_digest(module))
    assert len(digests) == 3


def test_a_view_with_holes_counts_as_its_values() -> None:
    one, other = nn.Module(), nn.Module()
    one.register_buffer("values", torch.arange(12.0).view(3, 4).T[1:])
    other.register_buffer("values", torch.arange(12.0).view(3, 4).T[1:].clone(memory_format=torch.contiguous_format))
    assert weights_digest(one) == weights_digest(other)


def test_an_element_that_moves_by_a_whole_block_changes_the_digest() -> None:
    module = nn.Module()
    module.register_buffer("values", torch.zeros((1 << 22) + 5, dtype=torch.int8))
    module.values[2] = 1
    first = weights_digest(module)
    module.values[2], module.values[2 + (1 << 22)] = 0, 1
    assert weights_digest(module) != first


def test_weights_of_which_this_rank_holds_a_part_have_no_digest(model: nn.Module) -> None:
    model.lm_head.weight.ds_id = 7  # as DeepSpeed ZeRO-3 marks them
    assert weights_digest(model) is None


def test_a_trained_adapter_counts_and_an_untrained_one_is_another_model() -> None:
    lora = make_model("lora")
    before = weights_digest(lora)
    name, parameter = next((n, p) for n, p in lora.named_parameters() if "lora_A" in n)
    with torch.no_grad():
        parameter[0, 0] += 1
    assert weights_digest(lora) != before, name


def test_a_flipped_bit_in_the_values_is_not_served(cache: SignalCache) -> None:
    path = cache.save(KEY, VALUES)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # inside the last value
    path.write_bytes(bytes(data))
    assert cache.load(KEY) is None


def test_the_scales_of_a_quantised_weight_count() -> None:
    """As bitsandbytes keeps them: beside the parameter, once more quantised."""

    def digest(scale: float, nested: float) -> str | None:
        model = nn.Linear(4, 4)
        model.weight = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
        nn.init.zeros_(model.bias)
        state2 = SimpleNamespace(absmax=torch.tensor([nested]))
        model.weight.quant_state = SimpleNamespace(
            absmax=torch.tensor([scale]), offset=torch.tensor(0.5), state2=state2
        )
        return weights_digest(model)

    assert digest(1.0, 2.0) == digest(1.0, 2.0)
    assert len({digest(1.0, 2.0), digest(1.5, 2.0), digest(1.0, 2.5)}) == 3


def test_weights_that_begin_in_the_middle_of_eight_bytes_have_the_same_hash() -> None:
    values = torch.randn(16).to(torch.bfloat16)
    shifted = torch.cat([torch.zeros(3, dtype=torch.bfloat16), values])[3:]
    assert shifted.storage_offset() == 3
    models = [nn.Module(), nn.Module()]
    for model, tensor in zip(models, (values, shifted), strict=True):
        model.register_buffer("x", tensor)
    assert weights_digest(models[0]) == weights_digest(models[1])
