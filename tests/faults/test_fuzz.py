"""Whatever a config holds, ``plan`` prints a plan or one sentence: no traceback, no other exit code, nothing written.

``DATAFLEX_FAULTS=long`` runs 10,000 inputs instead of 500. ``python tests/faults/test_fuzz.py 1234`` shows input 1234.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import (
    KINDS,
    LAUNCH_VARIABLES,
    METHODS,
    RAISING,
    TINY,
    WORK,
    Case,
    Outcome,
    as_text,
    complaint,
    finished,
    listing,
    make_case,
    placed,
    run_here,
    valid_case,
)

IS_LONG = os.environ.get("DATAFLEX_FAULTS") == "long"
NUM_CASES = 10_000 if IS_LONG else 500
NUM_PARTS = 10
IN_A_SHELL = (3, 9, 10, 17, 25, 27, 31, 38, 39, 61)  # of different kinds; 9 is planned, 3 needs LLaMA-Factory's keys
TRAINED = (17, 27, 39)  # refused, so that no training starts


@pytest.fixture(scope="module", autouse=True)
def keys_of_llamafactory() -> None:
    """Imported once, before anything is measured or captured."""
    from dataflex.integrations.llamafactory import known_keys, num_devices

    known_keys()
    num_devices()


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def failure(case: Case, folder: Path) -> str | None:
    """What is wrong with how ``plan`` took the case, with the case; None if nothing is."""
    with placed(case, folder):
        try:
            outcome = run_here("plan", case.arguments, folder)
        except Exception as error:
            return f"{type(error).__name__}: {error}\n{case}"
        wrong = complaint(outcome, refused=case.refused)
    return None if wrong is None else f"{wrong}\n{case}\n--- stdout\n{outcome.out}\n--- stderr\n{outcome.err}"


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_any_input_is_a_plan_or_one_sentence(part: int, tmp_path: Path) -> None:
    numbers = range(part, NUM_CASES, NUM_PARTS)
    failures = [text for number in numbers if (text := failure(make_case(number), tmp_path / str(number)))]
    assert not failures, f"{len(failures)} of {len(numbers)} inputs, the first is\n{failures[0]}"


def test_the_fuzzer_reaches_both_ends_and_every_kind(tmp_path: Path) -> None:
    codes: dict[str, set[int]] = {}
    for number in range(3 * len(KINDS)):
        case = make_case(number)
        with placed(case, tmp_path / str(number)):
            codes.setdefault(case.kind, set()).add(run_here("plan", case.arguments, tmp_path / str(number)).code)
    assert codes.keys() == KINDS.keys()
    assert sum(0 in found for found in codes.values()) >= 5
    assert sum(2 in found for found in codes.values()) >= 18


def test_a_number_is_always_the_same_input() -> None:
    for number in range(2 * len(KINDS)):
        one, other = make_case(number), make_case(number)
        assert (one.arguments, one.files, one.refused) == (other.arguments, other.files, other.refused)
    assert make_case(1).files != make_case(1 + len(KINDS)).files


@pytest.mark.parametrize("number", range(8))
def test_an_undamaged_config_is_planned(number: int, tmp_path: Path) -> None:
    case = finished(valid_case(number, "undamaged", random.Random(number)))
    with placed(case, tmp_path / "case"):
        outcome = run_here("plan", case.arguments, tmp_path / "case")
    assert outcome.code == 0, f"{outcome.err}\n{case}"
    assert "optimizer steps of" in outcome.out
    assert complaint(outcome, refused=False) is None


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome(1, "", "x", []), "exit code 1"),
        (Outcome(2, "", "dataflex-cli: error: a\nb\n", []), "exactly one line"),
        (Outcome(2, "", "", []), "exactly one line"),
        (Outcome(2, "", "error: a\n", []), "exactly one line"),
        (Outcome(2, "Traceback (most recent call last)", "dataflex-cli: error: a\n", []), "traceback"),
        (Outcome(0, "", "", []), "nothing was planned"),
        (Outcome(0, "10 optimizer steps of 2", "warning", []), "stderr"),
        (Outcome(0, "10 optimizer steps of 2", "", ["saves"]), "left behind"),
        (Outcome(2, "", f"dataflex-cli: error: {'a' * 3000}\n", []), "characters"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(outcome: Outcome, said: str) -> None:
    assert said in (complaint(outcome, refused=False) or "")


def test_the_fuzzer_sees_what_should_have_been_refused() -> None:
    passed = Outcome(0, "10 optimizer steps of 2", "", [])
    assert complaint(passed, refused=False) is None
    assert "must be refused" in (complaint(passed, refused=True) or "")


def in_a_shell(verb: str, case: Case, folder: Path) -> Outcome:
    before = listing(folder)
    # LLaMA-Factory warns on stderr where other tests have set this.
    in_a_terminal = {name: value for name, value in os.environ.items() if name != "DISABLE_VERSION_CHECK"}
    result = subprocess.run(
        [sys.executable, "-m", "dataflex.cli.main", verb, *case.arguments],
        capture_output=True,
        cwd=folder / WORK,
        env={**in_a_terminal, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8:strict"},
        timeout=300,
    )
    changed = sorted(path for path, _ in before ^ listing(folder))
    err = result.stderr.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return Outcome(result.returncode, result.stdout.decode("utf-8"), err, changed)


@pytest.mark.parametrize("number", IN_A_SHELL)
def test_a_process_of_its_own_says_the_same(number: int, tmp_path: Path) -> None:
    case = make_case(number)
    with placed(case, tmp_path / "case"):
        here = run_here("plan", case.arguments, tmp_path / "case")
        there = in_a_shell("plan", case, tmp_path / "case")
        assert complaint(there, refused=case.refused) is None, f"{case}\n{there}"
        assert (there.code, there.err) == (here.code, here.err), str(case)
        assert [line for line in there.out.splitlines() if not line.startswith("[dataflex]")] == [
            line for line in here.out.splitlines() if not line.startswith("[dataflex]")
        ]  # whose code is run is said once a process
        if number in TRAINED:
            assert here.code == 2, "training must not start"
            trained = in_a_shell("train", case, tmp_path / "case")
            assert trained.err == here.err, str(case)
            assert (trained.code, trained.changed) == (2, [])


# --- found by the fuzzer: each input once more, by itself ---

HUGE = "9" * 400
FOUND = {
    "a module that raises": ({}, {"name": "fuzz_raises:Method"}, [], "RuntimeError: not today"),
    "a module that leaves": ({}, {"name": "fuzz_exits:Method"}, [], "SystemExit"),
    "a module with a syntax error": ({}, {"name": "fuzz_syntax:Method"}, [], "SyntaxError"),
    "a class that refuses": ({}, {"name": "fuzz_methods:Picky"}, [], "component mine: width must be odd"),
    "a class whose types cannot be read": ({}, {"name": "fuzz_methods:Unhinted"}, [], "'Nowhere' is not defined"),
    "a class with an array": (
        {},
        {"name": "fuzz_methods:ArrayField", "params": {"table": 1}},
        [],
        "table is of type <class 'numpy.ndarray'>, which no config can hold",
    ),
    "a class without the rest": ({}, {"name": "fuzz_methods:Bare"}, [], "it has no needs; derive it from SelectorBase"),
    "an interpolation in a preset": (
        {},
        {"name": "delta_loss", "params": {"cache_dir": "${oc.env:HOME}/x"}},
        [],
        "only ${output_dir} is replaced in a preset",
    ),
    "a preset that is false": ({}, False, [], "is no mapping"),
    "params that are 0": ({}, {"name": "random", "params": 0}, [], "no mapping of parameters"),
    "an override with a tag": ({}, None, ["seed=!!bool maybe"], "the overrides cannot be applied ('maybe')"),
    "an unknown option": ({}, None, ["--warmup_step=5"], "did you mean 'warmup_step'?"),
    "an override of options": ({}, None, ["--foo"], "'--foo' is not an override"),
    "a huge batch": ({"per_device_train_batch_size": 10**400}, None, [], "per_device_train_batch_size is 1000"),
    "a large batch": ({"per_device_train_batch_size": 2**31}, None, [], "micro_batch is 2147483648; it must be"),
    "a huge num_train_epochs": ({"num_train_epochs": 1e308}, None, [], "num_train_epochs is 1e+308"),
    "many epochs": ({"num_train_epochs": 1e15}, None, [], "optimizer steps; it must have at most 2147483647"),
    "a huge warm-up": ({"warmup_step": 10**400}, None, [], "warmup_step is 1000"),
    "a million segments": ({"update_times": 10**6, "update_step": 1}, None, [], "at most 1,000,000 can be recorded"),
    "a number of 5,000 digits": ({}, None, ["update_step=0x" + "f" * 5000], "update_step is a int too long to print"),
    "a negative val_size": ({"val_size": -0.5}, None, [], "val_size is -0.5"),
    "negative max_samples": ({"max_samples": -3}, None, [], "max_samples is -3; it must be at least 1"),
    "a long word": ({"train_type": "x" * 9000}, None, [], "it must be one of static"),
    "an interpolation that leads nowhere": (
        {"seed": "${nowhere}"},
        None,
        [],
        "the values of 'config.yaml' cannot be resolved (Interpolation key 'nowhere' not found",
    ),
    "keys of bytes": (
        "deepspeed: {? !!binary aGk=\n: 1}\n",
        None,
        [],
        "the config cannot be kept as JSON in the run's record",
    ),
    "a tag with another value": ("zz: !!bool maybe\n", None, [], "the config 'config.yaml' is not valid: 'maybe'"),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_by_the_fuzzer(name: str, tmp_path: Path) -> None:
    changes, preset, overrides, said = FOUND[name]
    case = tiny_case()
    case.arguments += overrides
    if preset is not None:
        case.components["selectors"]["mine"] = preset
    if isinstance(changes, dict):
        case.config |= changes
    outcome = planned(case, tmp_path, more=changes if isinstance(changes, str) else "")
    assert outcome.code == 2, outcome.out
    assert complaint(outcome, refused=True) is None, outcome
    assert said in outcome.err


INFO = {
    "num_samples is a word": ({"num_samples": "ten"}, "num_samples of 'toy' is 'ten'; it must be a whole number"),
    "num_samples is no number": ({"num_samples": float("nan")}, "num_samples of 'toy' is nan"),
    "num_samples is 0": ({"num_samples": 0}, "num_samples of 'toy' is 0; it must be at least 1"),
    "a name that no file can have": ({"file_name": "x" * 5000}, "are not in a file at hand"),
    "a name that is markup": ({"file_name": "[/bold].csv"}, "[/bold].csv is of a format that is not counted here"),
    "a name that cannot be printed": ({"file_name": "\ud800.csv"}, "are not in a file at hand"),
}


@pytest.mark.parametrize("name", INFO)
def test_data_sets_found_by_the_fuzzer(name: str, tmp_path: Path) -> None:
    entry, said = INFO[name]
    case = tiny_case()
    case.info["toy"] = entry
    outcome = planned(case, tmp_path, {"data/[/bold].csv": "a,b"})
    assert complaint(outcome, refused=False) is None, outcome
    assert said in outcome.out + outcome.err


@pytest.mark.parametrize("folder", ["data[/x]", "[red]", "data\\"])
def test_a_folder_whose_name_is_markup_is_shown_as_it_is(folder: str, tmp_path: Path) -> None:
    case = tiny_case()
    case.config["dataset_dir"] = folder
    outcome = planned(case, tmp_path)
    assert outcome.code == 0, outcome.err
    assert f"{folder}/dataset_info.json cannot be read here" in outcome.out


def test_nesting_without_end_in_dataset_info_is_no_crash(tmp_path: Path) -> None:
    outcome = planned(tiny_case(), tmp_path, {"data/dataset_info.json": '{"toy": ' + "[" * 100_000})
    assert "cannot be read here (RecursionError)" in outcome.out


def test_rows_are_counted_by_line_feeds_alone(tmp_path: Path) -> None:
    rows = '{"instruction": "a\u2028b\x85c", "output": "d"}\r\n' * 60
    assert "pool: about 60 rows" in planned(tiny_case(), tmp_path, {"data/toy.jsonl": rows}).out


def test_a_very_long_run_is_planned_at_once(tmp_path: Path) -> None:
    case = tiny_case()
    case.config |= {"warmup_step": 3, "update_step": 1, "update_times": 4, "num_train_epochs": 190_000}
    outcome = planned(case, tmp_path)
    assert "... and 949960 more segments" in outcome.out
    assert "Scoring: 760000 passes" in outcome.out  # every update of every cycle


def test_a_replay_is_planned_without_a_quota_and_without_a_uniform_warm_up(tmp_path: Path) -> None:
    case = tiny_case()
    case.config |= {"component_name": "again", "update_step": 500}
    outcome = planned(case, tmp_path)
    assert outcome.code == 0, outcome.err
    assert "warm-up" not in outcome.out


# --- no code runs but what module:Class names ---


def tiny_case() -> Case:
    case = valid_case(0, "tiny", random.Random(0))
    case.config, case.arguments = dict(TINY), ["config.yaml"]
    return case


def planned(case: Case, tmp_path: Path, files: dict[str, str] | None = None, more: str = "") -> Outcome:
    """``plan`` over the case as it is now, with these files in place of its own and ``more`` at the config's end."""
    case.files |= {
        "config.yaml": as_text(case, case.config, as_json=False) + more.encode(),
        "components.yaml": as_text(case, case.components, as_json=False),
        "data/dataset_info.json": json.dumps(case.info).encode(),
        **{name: text.encode() for name, text in (files or {}).items()},
    }
    with placed(case, tmp_path / "case"):
        return run_here("plan", case.arguments, tmp_path / "case")


SPY = "import pathlib\npathlib.Path('ran').touch()\n\n\ndef run():\n    pathlib.Path('ran').touch()\n"
ATTEMPTS = (
    "!!python/object/apply:spy.run []",
    "!!python/object/new:spy.Method []",
    "!!python/object:spy.Method {}",
    "!!python/name:spy.run ''",
    "!!python/module:spy ''",
    "!!python/object/apply:os.mkdir [ran]",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [ran]",
    "!!spy.run []",
    "${spy:run}",
    "${oc.eval:spy}",
    "${oc.create:{x:1}}",
    "${oc.decode:'!!python/module:spy'}",
    "${oc.env:PATH}",
    "spy",
    "spy.Method",
    "spy.py",
    "__import__('spy')",
    "{name: spy:Method}",
)


@pytest.mark.parametrize("place", ["the name", "a parameter", "another preset", "another kind", "the key"])
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_components_file_runs_no_code_by_tags_interpolations_or_names(
    attempt: str, place: str, tmp_path: Path
) -> None:
    case = tiny_case()
    mine = "  mine: {name: random}\n"
    components = {
        "the name": f"selectors:\n  mine:\n    name: {attempt}\n",
        "a parameter": f"selectors:\n  mine:\n    name: delta_loss\n    params:\n      cache_dir: {attempt}\n",
        "another preset": f"selectors:\n{mine}  other:\n    name: {attempt}\n",
        "another kind": f"mixers: {attempt}\nselectors:\n{mine}",
        "the key": f"selectors:\n{mine}  ? {attempt}\n  : 1\n",
    }[place]
    outcome = planned(case, tmp_path, {"spy.py": SPY + METHODS, "components.yaml": components})
    assert outcome.changed == [], "code was run"
    assert "spy" not in sys.modules
    assert complaint(outcome, refused=False) is None, outcome


def test_a_preset_that_is_not_chosen_is_not_imported(tmp_path: Path) -> None:
    case = tiny_case()
    case.components["selectors"]["other"] = {"name": "fuzz_exits:Method"}
    outcome = planned(case, tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert not set(RAISING) & set(sys.modules)


def test_whose_code_is_run_is_said_once_and_before_it_runs(tmp_path: Path) -> None:
    from dataflex.cli import method_config

    method_config._say_foreign.cache_clear()
    case = tiny_case()
    case.config["component_name"] = "foreign"
    said = "[dataflex] method 'fuzz_methods:Sound' is code of module 'fuzz_methods', named in components.yaml"
    assert planned(case, tmp_path).out.splitlines()[0] == said
    assert said not in planned(case, tmp_path).out
    case.components["selectors"]["foreign"]["name"] = "fuzz_raises:Method"
    outcome = planned(case, tmp_path)
    assert outcome.code == 2
    assert "'fuzz_raises:Method' is code of module 'fuzz_raises'" in outcome.out


def test_a_name_given_in_the_config_is_said_to_stand_there(tmp_path: Path) -> None:
    from dataflex.cli import method_config

    method_config._say_foreign.cache_clear()
    case = tiny_case()
    case.arguments.append("component.name=fuzz_methods:Sound")
    case.config["component_name"] = "host"
    assert "is code of module 'fuzz_methods', named in the config" in planned(case, tmp_path).out


def test_the_methods_of_dataflex_are_not_announced(tmp_path: Path) -> None:
    assert "[dataflex]" not in planned(tiny_case(), tmp_path).out


def test_the_code_of_another_packages_entry_point_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from dataflex.algorithms import catalog
    from dataflex.cli import method_config

    method_config._say_foreign.cache_clear()
    point = EntryPoint("theirs", "fuzz_methods:Sound", "dataflex.selectors")
    monkeypatch.setattr(catalog, "entry_points", lambda group: [point])
    case = tiny_case()
    case.components["selectors"]["mine"] = {"name": "theirs"}
    outcome = planned(case, tmp_path)
    assert outcome.code == 0, outcome.err
    assert "[dataflex] method 'theirs' is code of module 'fuzz_methods', named in components.yaml" in outcome.out
    case.components["selectors"]["mine"] = {"name": "broken"}
    point = EntryPoint("broken", "fuzz_raises:Method", "dataflex.selectors")
    assert "method 'broken' cannot be imported (RuntimeError: not today)" in planned(case, tmp_path).err


if __name__ == "__main__":
    print(make_case(int(sys.argv[1])))
