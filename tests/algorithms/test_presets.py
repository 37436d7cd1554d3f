"""Every preset of the shipped components file builds its method, of every kind."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import dataflex
from dataflex.algorithms.catalog import COMPONENTS, component_class, component_names
from dataflex.algorithms.mix.odm import ODM
from dataflex.cli.presets import read_presets
from dataflex.cli.strict import build
from dataflex.core.errors import ConfigError

FILE = Path(dataflex.__file__).parent / "configs" / "components.yaml"
SECTIONS = OmegaConf.to_container(OmegaConf.load(FILE))
PRESETS = [(kind, name) for kind, presets in SECTIONS.items() for name in presets]
# They have a parameter that no file can know.
UNNAMED = {
    "selectors": {"replay", "rho_loss", "s2l"},
    "mixers": {"stages"},
    "weighters": {"rho1"},
}  # have a parameter that no file can know


@pytest.mark.parametrize(("kind", "preset"), PRESETS)
def test_a_preset_builds_its_method_strictly(kind, preset):
    content = SECTIONS[kind][preset]
    method = build(component_class(kind, content["name"]), content.get("params") or {}, where="")
    assert type(method) is COMPONENTS[kind][content["name"]]


def test_every_method_has_a_preset():
    for kind, methods in COMPONENTS.items():
        named = {content["name"] for content in SECTIONS[kind].values()}
        assert named == set(methods) - UNNAMED.get(kind, set())


@pytest.mark.parametrize("kind", list(COMPONENTS))
def test_users_are_shown_the_presets_of_every_kind(kind):
    assert set(read_presets(FILE, kind)) == set(SECTIONS[kind])


def test_proportions_are_read_as_a_yaml_list_a_mapping_or_a_word():
    for value in ([0.7, 0.3], [1, 3], {"wiki": 0.7, "c4": 0.3}, "uniform"):
        method = build(component_class("mixers", "static"), {"proportions": value}, where="")
        assert method.proportions == (tuple(value) if isinstance(value, list) else value)
    stages = [[0, [0.7, 0.3]], [100, {"wiki": 1.0}]]
    assert build(component_class("mixers", "stages"), {"stages": stages}, where="").stages == tuple(stages)
    with pytest.raises(ConfigError, match="proportions"):
        build(component_class("mixers", "static"), {"proportions": "equal"}, where="")
    with pytest.raises(ConfigError, match=r"unknown parameter 'alpha'.*known: .*smoothing"):
        build(component_class("mixers", "odm"), {"alpha": 0.9}, where="")


@pytest.mark.parametrize("kind", list(COMPONENTS))
def test_methods_of_every_kind_are_found_by_name_and_by_path(kind):
    for name, cls in COMPONENTS[kind].items():
        assert component_class(kind, name) is cls
        assert component_class(kind, f"{cls.__module__}:{cls.__name__}") is cls
    assert component_names(kind)[: len(COMPONENTS[kind])] == list(COMPONENTS[kind])
    with pytest.raises(ConfigError, match=f"known: {next(iter(COMPONENTS[kind]))}"):
        component_class(kind, "no such method")


def test_a_name_means_the_method_of_its_kind():
    assert component_class("selectors", "static") is not component_class("mixers", "static")
    assert component_class("mixers", "odm") is ODM
