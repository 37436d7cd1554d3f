"""The strict reading of configs: what is right is read as it was meant, what is wrong is one sentence."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_configs import BASE, HOST_KEYS, changed, write_config
from hypothesis import example, given
from hypothesis import strategies as st

from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.random import Random
from dataflex.cli.config import check_host_keys, load_files, read_config, split_config
from dataflex.cli.presets import PACKAGE_COMPONENTS, find_components, read_presets
from dataflex.cli.strict import build
from dataflex.core.errors import ConfigError
from dataflex.core.plan import Schedule


def refused(config: Any, *overrides: str, name: str = "config.yaml") -> str:
    """The one sentence that reading a config ends with."""
    with pytest.raises(ConfigError) as caught:
        read_config(write_config(Path(), config, name), list(overrides))
    said = str(caught.value)
    assert said.strip()
    assert "\n" not in said
    return said


def test_a_right_config_is_taken_apart() -> None:
    config = read_config(write_config(Path(), BASE), [])
    assert config.is_dynamic
    assert config.deciding.name == "delta_loss"
    assert config.deciding.selector == DeltaLoss(cache_dir="../dataflex_saves/delta_loss_output", window_size=0.2)
    assert config.schedule == Schedule(warmup_step=10, update_step=10, update_times=2)
    assert set(config.host) == set(BASE) - {
        "train_type",
        "component_name",
        "warmup_step",
        "update_step",
        "update_times",
    }
    assert config.resolved["component"]["name"] == "delta_loss"
    assert config.resolved["learning_rate"] == 1e-4
    json.dumps(config.resolved, allow_nan=False)


def test_the_defaults_of_the_contract() -> None:
    config = read_config(write_config(Path(), changed(warmup_step=None, update_times=None)), [])
    assert config.schedule == Schedule(warmup_step=0, update_step=10, update_times=1, train_step=0)


@pytest.mark.parametrize("train_type", ["static", None])
def test_static_leaves_everything_to_the_host(train_type: str | None) -> None:
    ours = dict.fromkeys(("component_name", "warmup_step", "update_step", "update_times"))
    config = read_config(write_config(Path(), changed(train_type=train_type, **ours)), [])
    assert not config.is_dynamic
    assert config.method is None
    assert "train_type" not in config.host


def test_static_may_keep_our_other_keys_for_the_next_run() -> None:
    config = read_config(write_config(Path(), changed(train_type="static")), [])
    assert not config.is_dynamic
    assert "warmup_step" not in config.host


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_type": "dynamic_selct"}, "did you mean 'dynamic_select'?"),
        ({"train_type": "bogus"}, "train_type is 'bogus'; it must be one of static, dynamic, dynamic_select"),
        ({"train_type": "dynamic_mix"}, "component_name 'delta_loss' is not among the mixers"),
        ({"train_type": "dynamic_weight"}, "'delta_loss' is not among the weighters"),
        ({"train_type": "dynamic"}, "component_name is set beside train_type: dynamic, which names components by"),
        ({"train_type": "dynamic", "component_name": None}, "train_type: dynamic names no component; set one of"),
        ({"select": "random"}, "select is set beside train_type: dynamic_select, whose component_name is of that kind"),
        ({"mix": "temprature"}, "mix 'temprature' is not among the mixers"),
        ({"mix": {"component_name": "temperature", "evry": 2}}, "unknown key 'evry' in mix (did you mean 'every'?)"),
        ({"mix": {"component_name": "temperature", "every": 0}}, "every of temperature is 0"),
        ({"mix": {"component_name": "temperature", "every": "2"}}, "mix.every is '2'"),
        ({"mix": {"every": 2}}, "mix is missing; it must name one of the mixers"),
        ({"mix": ["uniform", "odm"]}, "mix names 2 components"),
        ({"order": {"component_name": "folding", "every": 2}}, "orders on every segment"),
        ({"order": {"component_name": "folding", "params": {"over": "run"}}}, "draws other rows in every segment"),
        ({"compose": {"mode": "select_then_mix"}}, "needs a selector and a mixer"),
        ({"compose": {"mod": "x"}}, "unknown key 'mod' in compose (did you mean 'mode'?)"),
        ({"compose": "mean_one"}, "compose is 'mean_one'; it must be a mapping"),
        ({"static_mix": True}, "static_mix is set, but no mixer is named"),
        ({"domain_column": "task"}, "domain_column is set, but no mixer is named"),
        ({"domain_column": 3, "mix": "uniform"}, "domain_column is 3"),
        ({"train_type": True}, "train_type is True"),
        ({"train_type": ["static"]}, "train_type is ['static']"),
        ({"train_type": None}, "train_type is not; set train_type: dynamic_select"),
        ({"component_name": None}, "component_name is missing"),
        ({"component_name": "delta_los"}, "did you mean 'delta_loss'?"),
        ({"component_name": "nothing_like_it"}, "known: delta_loss, loss"),
        ({"component_name": 3}, "component_name 3 is not among"),
        ({"component_name": ["delta_loss"]}, "component_name"),
        ({"component_name": {"delta_loss": 1}}, "component_name"),
        ({"components_cfg_file": "missing.yaml"}, "'missing.yaml' does not exist"),
        ({"components_cfg_file": ""}, "does not exist"),
        ({"components_cfg_file": 7}, "'7' does not exist"),
        ({"components_cfg_file": "x" * 300}, "components_cfg_file"),
        ({"output_dir": None}, "output_dir is missing"),
        ({"update_step": None}, "update_step is missing"),
        ({"update_step": 0}, "update_step is 0; it must be at least 1"),
        ({"update_step": -5}, "update_step is -5"),
        ({"update_step": "10"}, "update_step is '10'"),
        ({"update_step": True}, "update_step is True"),
        ({"warmup_step": -1}, "warmup_step is -1"),
        ({"warmup_step": "10"}, "warmup_step is '10'"),
        ({"warmup_step": 10.5}, "warmup_step is 10.5"),
        ({"warmup_step": [10]}, "warmup_step is"),
        ({"update_times": 2.0}, "update_times is 2.0"),
        ({"train_step": -1}, "train_step is -1"),
    ],
)
def test_a_wrong_value_of_our_keys(changes: dict[str, Any], said: str) -> None:
    assert said in refused(changed(**changes))


def test_null_is_no_number() -> None:
    assert "warmup_step is None" in refused({**BASE, "warmup_step": None})
    assert "update_step is None" in refused({**BASE, "update_step": None})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("component.params.window_size=0", "window_size is 0"),
        ("component.params.window_size=1.5", "window_size is 1.5"),
        ("component.params.window_size=-0.1", "window_size is -0.1"),
        ("component.params.window_size=20%", "window_size is '20%'"),
        ("component.params.window_size=true", "window_size is True"),
        ("component.params.window_size=.nan", "window_size is nan"),
        ("component.params.window_size=null", "window_size is None"),
        ("component.params.window_size=[0.1]", "window_size is"),
        ("component.params.windowsize=0.1", "did you mean 'window_size'?"),
        ("component.params.progress=t/(T+1)", "progress is 't/(T+1)'"),
        ("component.params.replacement=1", "replacement is 1"),
        ("component.params.cache_dir=5", "cache_dir is 5"),
        ("component.params=5", "params of the preset 'delta_loss' is no mapping"),
        ("component.parms.window_size=0.1", "did you mean 'params'?"),
        ("component.name=delta_los", "did you mean 'delta_loss'?"),
        ("component.name=no.such.module:Method", "cannot be imported"),
        ("component.name=json:dumps", "is not a dataclass"),
        ("component=5", "component is 5"),
        ("component=text", "component is 'text'"),
        ("warmup_step", "'warmup_step' is not an override; write key=value"),
        ("=5", "'=5' is not an override"),
        ("--warmup_step 5", "is not an override"),
        ("learning_rate=${", "write key=value"),
        ("output_dir=${no_such_key}", "write key=value"),
        ("warmup_step=[1,", "write key=value"),
    ],
)
def test_a_wrong_override(override: str, said: str) -> None:
    assert said in refused(BASE, override)


def test_every_error_of_a_parameter_names_the_component() -> None:
    assert refused(BASE, "component.params.window_size=0").startswith("component delta_loss: ")


def test_overrides_reach_host_keys_our_keys_and_parameters() -> None:
    overrides = ["learning_rate=2e-5", "warmup_step=0", "component.params.window_size=0.1", "new_key=a b=c"]
    config = read_config(write_config(Path(), BASE), overrides)
    assert config.host["learning_rate"] == 2e-5
    assert config.host["new_key"] == "a b=c"
    assert config.schedule == Schedule(warmup_step=0, update_step=10, update_times=2)
    assert config.deciding.selector.window_size == 0.1
    assert config.resolved["component"]["params"]["window_size"] == 0.1
    assert "component" not in config.host


def test_the_method_behind_a_preset_can_be_changed() -> None:
    overrides = ["component_name=random", "component.params.replacement=true"]
    assert read_config(write_config(Path(), BASE), overrides).deciding.selector == Random(replacement=True)
    assert (
        read_config(write_config(Path(), BASE), ["component_name=static", "component.name=random"]).deciding.selector
        == Random()
    )


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_numbers_in_scientific_notation_are_numbers(text: str) -> None:
    config, _ = load_files(write_config(Path(), f"learning_rate: {text}"), [])
    assert config == {"learning_rate": 1e-4}
    config, _ = load_files(write_config(Path(), "a: 1"), [f"learning_rate={text}"])
    assert config["learning_rate"] == 1e-4


def test_values_refer_to_each_other_as_omegaconf_has_it() -> None:
    config, _ = load_files(write_config(Path(), "a: 3\nb: ${a}\nc: x-${a}"), ["a=4"])
    assert config == {"a": 4, "b": 4, "c": "x-4"}


# files


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("a: [1", "config.yaml"),
        ("a: b: c", "config.yaml"),
        ("a:\n\t- b", "config.yml"),
        ("a: 1\na: 2", "config.yaml"),
        ("{", "config.json"),
        ("a: ${", "config.yaml"),
        ("%", "config.yaml"),
        ("? [1, 2]\n: 3", "config.yaml"),
        ("a: !!python/object/apply:os.getcwd []", "config.yaml"),
    ],
)
def test_a_file_with_a_syntax_error(content: str, name: str) -> None:
    said = refused(content, name=name)
    assert name in said or "overrides" in said


def test_a_file_that_is_a_list() -> None:
    assert "holds no mapping" in refused("- a\n- b")
    assert "holds no mapping" in refused("[]", name="config.json")


@pytest.mark.parametrize("content", ["", "# only a comment\n", "---\n", "null"])
def test_an_empty_file_is_no_config(content: str) -> None:
    assert "config.yaml" in refused(content)


def test_a_file_that_is_one_number() -> None:
    refused("5")


@pytest.mark.parametrize(
    "content", [b"\x00\x01\x02\xff", b"\x89PNG\r\n\x1a\n", b"a: \xff", b"\xff\xfe", b"PK\x03\x04\x14"]
)
def test_a_binary_file(content: bytes) -> None:
    Path("config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        read_config("config.yaml", [])
    assert "\n" not in str(caught.value)


def test_a_directory_and_nothing_at_all() -> None:
    Path("folder.yaml").mkdir()
    for path in ("folder.yaml", "nowhere.yaml", "no/where.yaml"):
        with pytest.raises(ConfigError, match=rf"{path}.* cannot be read"):
            read_config(path, [])


@pytest.mark.parametrize("name", ["config", "config.txt", "config.yaml.bak", "config.toml"])
def test_another_ending(name: str) -> None:
    assert "must end in .yaml, .yml or .json" in refused(BASE, name=name)


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_configs(indent: Any) -> None:
    path = Path("config.json")
    path.write_text(json.dumps(BASE, indent=indent), encoding="utf-8")
    assert read_config(str(path), []).deciding.selector.window_size == 0.2


def test_characters_beyond_ascii_are_the_same_in_json_and_yaml() -> None:
    config = {"run_name": "狐 🦊 é"}
    for name, text in [
        ("a.json", json.dumps(config)),
        ("b.json", json.dumps(config, ensure_ascii=False)),
        ("c.yaml", "run_name: 狐 🦊 é"),
    ]:
        assert load_files(write_config(Path(), text, name), [])[0] == config, name


def test_a_path_with_spaces() -> None:
    Path("a b").mkdir()
    assert read_config(write_config(Path("a b"), BASE, "my config.yaml"), []).is_dynamic


# components files

MINE = "{mine: {name: delta_loss, params: {window_size: 0.3, cache_dir: '${output_dir}/cache'}}, other: {name: random}}"


@pytest.mark.parametrize("text", [MINE, f"selectors: {MINE}", f"mixers: {{m: {{name: x}}}}\nselectors: {MINE}"])
def test_a_components_file_with_and_without_its_heading(text: str) -> None:
    Path("mine.yaml").write_text(text)
    config = read_config(
        write_config(Path(), changed(component_name="mine", components_cfg_file="mine.yaml", output_dir="out/x")), []
    )
    assert config.deciding.selector == DeltaLoss(window_size=0.3, cache_dir="out/x/cache")
    assert list(read_presets(Path("mine.yaml"), "selectors")) == ["mine", "other"]


def test_output_dir_is_replaced_after_the_overrides() -> None:
    Path("mine.yaml").write_text(MINE)
    path = write_config(Path(), changed(component_name="mine", components_cfg_file="mine.yaml"))
    assert read_config(path, ["output_dir=elsewhere"]).deciding.selector.cache_dir == "elsewhere/cache"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "component_name 'mine'"),
        ("mixers: {mine: {name: x}}", "known: none"),
        ("selectors: [mine]", "no mapping of preset names"),
        ("selectors: null", "components.yaml"),
        ("[mine]", "holds no mapping"),
        ("mine: [1]", "'mine' of mine_components.yaml is no mapping"),
        ("mine: text", "is no mapping"),
        ("mine: {name: delta_loss, parameters: {}}", "unknown key 'parameters'"),
        ("mine: {name: delta_loss, params: [1]}", "no mapping of parameters"),
        ("mine: {name: delta_loss, params: {window: 1}}", "unknown parameter 'window'"),
        ("mine: {name: 5}", "no method named '5'"),
        ("mine: {}", "no method named 'mine'"),
        ("mine: {name: [delta_loss]}", "no method named"),
        ("mine: {name: ':'}", "cannot be imported"),
        ("mine: {name", "is not valid"),
    ],
)
def test_a_wrong_components_file(text: str, said: str) -> None:
    Path("mine_components.yaml").write_text(text)
    assert said in refused(changed(component_name="mine", components_cfg_file="mine_components.yaml"))


def test_a_preset_without_a_name_is_the_method_of_that_name() -> None:
    Path("mine.yaml").write_text("random:\nloss: {}")
    for name in ("random", "loss"):
        config = changed(component_name=name, components_cfg_file="mine.yaml")
        assert read_config(write_config(Path(), config), []).deciding.name == name


def test_the_shipped_file_is_found_from_anywhere() -> None:
    assert find_components(None) == PACKAGE_COMPONENTS
    for path in ("src/dataflex/configs/components.yaml", "configs/components.yaml"):
        assert find_components(path).resolve() == PACKAGE_COMPONENTS.resolve()


def test_a_file_in_the_working_directory_comes_before_the_package() -> None:
    Path("src/dataflex/configs").mkdir(parents=True)
    shutil.copy(PACKAGE_COMPONENTS, "src/dataflex/configs/components.yaml")
    found = find_components("src/dataflex/configs/components.yaml")
    assert found.resolve() == Path("src/dataflex/configs/components.yaml").resolve()


def test_every_shipped_preset_can_be_built() -> None:
    for name in read_presets(PACKAGE_COMPONENTS, "selectors"):
        assert read_config(write_config(Path(), changed(component_name=name)), []).deciding.selector is not None


# keys of the host


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train_typ", "train_type"),
        ("warmup_stepp", "warmup_step"),
        ("learning_rat", "learning_rate"),
        ("component_nam", "component_name"),
        ("update_setp", "update_step"),
        ("ouput_dir", "output_dir"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_name(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key '{key}' \(did you mean '{nearest}'\?\)"):
        check_host_keys({key: 1}, HOST_KEYS)


def test_warmup_steps_is_the_hosts_and_warmup_step_ours() -> None:
    check_host_keys({"warmup_steps": 5}, HOST_KEYS)
    config = read_config(write_config(Path(), changed(warmup_steps=5)), [])
    assert config.host["warmup_steps"] == 5
    assert config.schedule is not None
    assert config.schedule.warmup_step == 10


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", "1e-4x"), ("max_samples", "ten"), ("max_samples", 1.5), ("do_train", "yes"), ("seed", [1])],
)
def test_a_word_in_a_numbers_place_is_found_before_llamafactory_reads_it(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} is "):
        check_host_keys({key: value}, HOST_KEYS)
    check_host_keys({"max_samples": None, "learning_rate": 1, "dataset": "5"}, HOST_KEYS)


def test_a_key_like_no_other_has_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        check_host_keys({"zzzzzz": 1}, HOST_KEYS)
    assert "did you mean" not in str(caught.value)


# anything at all

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["delta_loss", "dynamic_select", "static", "random", "loss", "json:dumps", ":", "..", "\x00"])
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=2), max_leaves=5
)
our_keys = st.sampled_from(
    ["component_name", "components_cfg_file", "warmup_step", "update_step", "update_times", "train_step", "output_dir"]
)
parameter = st.sampled_from(["window_size", "steepness", "midpoint", "base_weight", "progress", "cache_dir", "focus"])
component_maps = st.fixed_dictionaries(
    {},
    optional={
        "name": values,
        "params": st.dictionaries(parameter, values, max_size=3) | values,
        "extra": values,
    },
)


@given(st.dictionaries(our_keys, values, max_size=4), component_maps)
@example({"component_name": ["delta_loss"]}, {})
@example({"components_cfg_file": "x" * 300}, {})
@example({}, {"params": {"steepness": 10**400}})
@example({}, {"params": {"window_size": 10**400}})
def test_anything_in_our_keys_is_read_or_refused(changes: dict, component: dict) -> None:
    with contextlib.suppress(ConfigError):
        split_config({**BASE, **changes}, component)


@given(st.dictionaries(st.text(max_size=5) | our_keys | st.just("train_type"), values, max_size=4))
def test_any_mapping_is_read_or_refused(config: dict) -> None:
    with contextlib.suppress(ConfigError):
        split_config(config, {})


def test_build_takes_no_field_that_is_not_a_parameter() -> None:
    with pytest.raises(ConfigError, match="not a dataclass"):
        build(dict, {}, where="")
    with pytest.raises(ConfigError, match="x: unknown parameter 'source'"):
        build(Random, {"source": "mine"}, where="x: ")
