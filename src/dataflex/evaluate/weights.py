"""Are the weights of a model or an adapter there? Told from names and headers; nothing is loaded."""

from __future__ import annotations

import json
from pathlib import Path

# In the order in which they are looked for; an index names files of its own.
MODEL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
INDEX = ".index.json"


def weights_problem(folder: Path, names: tuple[str, ...]) -> str | None:
    """Why a folder's weights cannot be loaded, to be read after its name; None where nothing speaks against it.

    A damaged end of a .bin file is not found: it has no header.

    Args:
        names: ``MODEL`` or ``ADAPTER``.
    """
    there = next((name for name in names if (folder / name).is_file()), None)
    if there is None:
        return f"holds no weights ({', '.join(name for name in names if not name.endswith(INDEX))})"
    files = [there]
    if there.endswith(INDEX):
        try:
            files = sorted(set(json.loads((folder / there).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"has a damaged {there}"
    for file in files:
        problem = _problem(folder / file)
        if problem is not None:
            return problem
    return None


def _problem(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return f"lacks {path.name}, which its index names"
    if not path.stat().st_size:
        return f"has an empty {path.name}"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):  # compares what the header promises with the file's length
                pass
        except (SafetensorError, OSError) as error:
            return f"has a damaged {path.name} ({' '.join(str(error).split())[:200]})"
    return None
