"""Entry points of other packages: what is broken is told, and hides nothing else."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint

import pytest

from dataflex.algorithms import catalog
from dataflex.algorithms.catalog import SELECTORS, component_class, component_names, foreign_module
from dataflex.algorithms.select.random import Random
from dataflex.cli.components import components
from dataflex.core.errors import ConfigError

MODULE = "methods_of_another_package"


@dataclass(frozen=True, kw_only=True)
class Sound(Random):
    """Rows in [/] brackets."""

    source = "a [/] source"
    groups: list[str] = field(default_factory=list)


class NoDataclass:
    pass


@dataclass(frozen=True, kw_only=True)
class UnknownType(Random):
    """Its parameter has a type that exists nowhere."""

    size: NoSuchType = 1  # type: ignore[name-defined]  # noqa: F821


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch):
    """Give the entry points of this environment; the classes above are importable."""
    module = types.ModuleType(MODULE)
    for cls in (Sound, NoDataclass, UnknownType):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setenv("COLUMNS", "250")

    def offer(*pairs: tuple[str, str]) -> None:
        points = [EntryPoint(name, value, "dataflex.selectors") for name, value in pairs]
        monkeypatch.setattr(catalog, "entry_points", lambda group: points if group == "dataflex.selectors" else [])

    return offer


BROKEN = {
    "no module": ("no_such_module_at_all:Method", "ModuleNotFoundError"),
    "no class": (f"{MODULE}:Missing", "AttributeError"),
    "no path": ("this is no path", "AttributeError"),
    "no dataclass": (f"{MODULE}:NoDataclass", "its parameters cannot be read"),
    "no class but a module": (MODULE, "its parameters cannot be read"),
    "unknown type": (f"{MODULE}:UnknownType", "NoSuchType"),
}


@pytest.mark.parametrize("value", list(BROKEN))
def test_a_broken_method_is_one_sentence_and_the_others_are_listed(offered, capsys, value: str) -> None:
    path, said = BROKEN[value]
    offered(("aaa", path), ("sound", f"{MODULE}:Sound"))
    components(None)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("aaa")]
    assert "cannot be used: " in line
    assert said in line
    for name in (*SELECTORS, "sound"):
        assert any(line.startswith(f"{name}  ") for line in lines), name
    assert any(line.startswith("presets of ") for line in lines)


def test_texts_of_another_package_are_printed_as_they_are(offered, capsys) -> None:
    offered(("sound", f"{MODULE}:Sound"))
    components(None)
    out = capsys.readouterr().out
    assert "sound  (package an unknown package)  Rows in [/] brackets." in out
    assert "source: a [/] source" in out
    (groups,) = [line for line in out.splitlines() if line.strip().startswith("groups")]
    assert "[]" in groups


def test_a_name_that_two_packages_offer_is_refused_with_both_paths(offered) -> None:
    offered(("sound", f"{MODULE}:Sound"), ("sound", f"{MODULE}:UnknownType"))
    assert component_names("selectors").count("sound") == 1
    with pytest.raises(ConfigError) as caught:
        component_class("selectors", "sound")
    assert f"'{MODULE}:Sound' or as '{MODULE}:UnknownType'" in str(caught.value)


def test_a_package_that_is_found_twice_is_one(offered) -> None:
    """An editable installation beside an ordinary one."""
    offered(("sound", f"{MODULE}:Sound"), ("sound", f"{MODULE}:Sound"))
    assert component_class("selectors", "sound") is Sound


def test_a_method_with_a_name_of_ours_is_not_taken_and_that_is_said(offered, capsys) -> None:
    offered(("random", f"{MODULE}:Sound"))
    assert component_class("selectors", "random") is Random
    assert foreign_module("selectors", "random") is None
    components(None)
    assert "random of an unknown package is hidden by ours" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["this is no path", MODULE, f"{MODULE}:Sound"])
def test_the_module_is_told_before_anything_is_imported(offered, value: str) -> None:
    offered(("theirs", value))
    assert foreign_module("selectors", "theirs") == value.partition(":")[0]
