"""The models that are evaluated: base, adapter or merged; checked before anything is loaded."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError, shown
from dataflex.evaluate import weights
from dataflex.evaluate.identity import file_digests

ADAPTER = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model by the keys of LLaMA-Factory.

    Args:
        name: in tables and file names.
        model_name_or_path: a folder, or a model at hand.
        adapter_name_or_path: an adapter on it; its folder may also stand for ``model_name_or_path``.
    """

    name: str
    model_name_or_path: str
    adapter_name_or_path: str | None = None

    @property
    def adapter(self) -> str | None:
        """The adapter's folder, if there is one."""
        alone = (Path(self.model_name_or_path) / ADAPTER).is_file()
        return self.adapter_name_or_path or (self.model_name_or_path if alone else None)

    @property
    def base(self) -> str:
        """The model below the adapter, or the model."""
        if not (Path(self.model_name_or_path) / ADAPTER).is_file():
            return self.model_name_or_path
        try:
            content = json.loads((Path(self.model_name_or_path) / ADAPTER).read_text(encoding="utf-8"))
            return str(content["base_model_name_or_path"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.model_name_or_path}/{ADAPTER} is damaged; name another adapter") from error

    @property
    def folders(self) -> list[Path]:
        """Folders whose files say which model it is."""
        return [Path(folder) for folder in (self.base, self.adapter) if folder and Path(folder).is_dir()]


def limits(spec: ModelSpec) -> tuple[int | None, int | None]:
    """Length of a text that the model was made for, and number of its tokens; None where its config does not say.

    Raises:
        ConfigError: a config that transformers cannot read.
    """
    config = _config(spec).get_text_config()
    return getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)


def identity(spec: ModelSpec) -> dict[str, Any]:
    """What stands for the model: the files of its folders; of one from the hub, its revision."""
    from transformers import AutoConfig

    found: dict[str, Any] = {"files": [sorted(file_digests([folder]).values()) for folder in spec.folders]}
    if not Path(spec.base).is_dir():
        found |= {"model": spec.base, "revision": getattr(AutoConfig.from_pretrained(spec.base), "_commit_hash", None)}
    return found


def _config(spec: ModelSpec) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(spec.base)
    except Exception as error:  # of transformers, of the hub, of its checks of single values
        raise ConfigError(
            f"model_name_or_path of {spec.name}, {shown(spec.base)}, has a config that transformers cannot read "
            f"({' '.join(str(error).split())[:200]}); correct it, or name another model"
        ) from error


def check_model(spec: ModelSpec) -> None:
    """Raise for a model that cannot be loaded; nothing is loaded.

    Raises:
        ConfigError: a folder that is missing, holds no model, or not all of its weights.
    """
    _check_places(spec)
    if Path(spec.base).is_dir():
        _config(spec)
    for folder, key, names in (
        (spec.base, "model_name_or_path", weights.MODEL),
        (spec.adapter, "adapter_name_or_path" if spec.adapter_name_or_path else "model_name_or_path", weights.ADAPTER),
    ):
        problem = weights.weights_problem(Path(folder), names) if folder and Path(folder).is_dir() else None
        if problem is not None:
            raise ConfigError(
                f"{key} of {spec.name}, {shown(folder)}, {problem}: it was not written or copied to its end; name "
                "another, or bring the rest"
            )


def _check_places(spec: ModelSpec) -> None:
    adapter = spec.adapter_name_or_path
    if adapter is not None and not (Path(adapter) / ADAPTER).is_file():
        what = "does not exist" if not Path(adapter).is_dir() else f"holds no {ADAPTER}"
        raise ConfigError(f"adapter_name_or_path of {spec.name}, {shown(adapter)}, {what}; name an adapter's folder")
    base = Path(spec.base)
    if base.is_dir():
        if not (base / "config.json").is_file():
            raise ConfigError(f"model_name_or_path of {spec.name}, {shown(str(base))}, holds no config.json")
        return
    if base.is_absolute() or spec.base.startswith((".", "~")) or spec.base.count("/") != 1:
        raise ConfigError(
            f"model_name_or_path of {spec.name}, {shown(spec.base)}, does not exist; name a model's folder"
        )
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(spec.base)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_name_or_path of {spec.name}, {shown(spec.base)}, is neither a folder nor a model that can be "
            "fetched; correct it"
        ) from error


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer, which an adapter's folder may bring."""
    from transformers import AutoTokenizer

    has_own = spec.adapter is not None and (Path(spec.adapter) / "tokenizer_config.json").is_file()
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.adapter if has_own else spec.base)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the tokenizer of {spec.name} cannot be loaded ({reason}); it must lie beside the model"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device() -> str:
    """The best kind of device at hand."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def loaded(spec: ModelSpec, dtype: str) -> Iterator[Any]:
    """The model on the best device at hand, in evaluation mode; gone from memory afterwards.

    Args:
        dtype: ``auto``, as it was saved, or ``float32``, ``bfloat16``, ``float16``.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(spec.base, dtype=kind)
        if spec.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, spec.adapter)
        model = model.to(device()).eval()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the model {spec.name}, with dtype: {dtype}, does not fit in the device's memory; set dtype: bfloat16, or "
            "take a larger device"
        ) from error
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, ImportError, EOFError, SafetensorError) as error:
        raise ConfigError(
            f"the model {spec.name} cannot be loaded ({' '.join(str(error).split())[:300]}); name another, or mend it"
        ) from error
    try:
        yield model
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
