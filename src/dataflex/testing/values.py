"""How a method is compared and shown, whatever its kind."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


def described(method: Any) -> str:
    """The class and the parameters that are not at their default."""
    changed = [
        f"{f.name}={getattr(method, f.name)}"
        for f in dataclasses.fields(method)
        if getattr(method, f.name) != f.default
    ]
    return f"{type(method).__name__}({', '.join(changed)})"


def check_value(method: Any, protocol: type) -> None:
    """It is a frozen keyword-only dataclass of its parameters that serves the protocol and names its source."""
    assert isinstance(method, protocol)
    assert type(method).__dataclass_params__.frozen
    assert all(f.kw_only for f in dataclasses.fields(method))
    assert method.source
    assert "Source:" in (type(method).__doc__ or "")
    assert method == dataclasses.replace(method)


def same_arrays(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        np.asarray(v).dtype == np.asarray(other[k]).dtype
        and np.array_equal(v, other[k], equal_nan=np.asarray(v).dtype.kind == "f")
        for k, v in one.items()
    )
