"""What is known to break is said with its remedy; what works is left in peace."""

from __future__ import annotations

import pytest

from dataflex.cli import doctor as doctor_module
from dataflex.cli.doctor import PACKAGES, REMEDY, diagnose, doctor

GOOD = {"torch": "2.11.0", "torchaudio": "2.11.0", "llamafactory": "0.9.5"}


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules whose import was tried; every import succeeds."""
    tried: list[str] = []
    monkeypatch.setattr(doctor_module, "_import_failure", lambda module: tried.append(module))
    return tried


@pytest.mark.parametrize(
    "found",
    [
        GOOD,
        {**GOOD, "torch": "2.11.0+cu128"},
        {**GOOD, "torch": "2.11.1", "torchaudio": "2.11.0+cpu"},
        {**GOOD, "deepspeed": None, "trl": "0.24.0"},
    ],
)
def test_a_good_set_has_no_problem(imports: list[str], found: dict) -> None:
    assert diagnose(found) == []
    assert imports == ["llamafactory.hparams"]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({**GOOD, "torch": "2.15.0"}, "torchaudio 2.11.0 was built for torch 2.11, not 2.15.0"),
        ({**GOOD, "torch": "2.9.0"}, "built for torch 2.11, not 2.9.0"),
        ({**GOOD, "torchaudio": None}, "torchaudio, which is not installed"),
    ],
)
def test_a_broken_set_is_one_sentence_with_the_remedy(imports: list[str], found: dict, said: str) -> None:
    (problem,) = diagnose(found)
    assert said in problem
    assert problem.endswith(REMEDY)
    assert "\n" not in problem
    assert imports == [], "what is known to fail is not tried"


@pytest.mark.parametrize("found", [{}, {**GOOD, "torch": None}])
def test_nothing_works_without_torch(found: dict) -> None:
    (problem,) = diagnose(found)
    assert problem.startswith("torch is not installed")


def test_an_import_that_fails_for_another_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_import_failure", lambda module: "OSError: libcudart.so.13 not found")
    (problem,) = diagnose(GOOD)
    assert "libcudart.so.13" in problem
    assert problem.endswith(REMEDY)


def test_the_reason_of_a_failed_import_is_the_last_line_of_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert doctor_module._import_failure("json") is None
    said = doctor_module._import_failure("dataflex.no_such_module")
    assert said is not None
    assert said.startswith("ModuleNotFoundError")
    assert "\n" not in said


@pytest.mark.parametrize(("torch", "code"), [("2.11.0", 0), ("2.15.0", 2)])
def test_the_exit_code_and_the_table(monkeypatch: pytest.MonkeyPatch, capsys, torch: str, code: int) -> None:
    numbers = {**dict.fromkeys(PACKAGES), **GOOD, "torch": torch}
    monkeypatch.setattr(doctor_module, "installed", numbers.get)
    monkeypatch.setattr(doctor_module, "_devices", lambda: "CPU, 1 threads")
    assert doctor() == code
    out = capsys.readouterr().out
    assert torch in out
    assert ("problem: " in out) == (code == 2)
    assert ("no known problem" in out) == (code == 0)


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert doctor_module.installed("a-package-that-nobody-has-written") is None
    assert doctor_module.installed("numpy")


@pytest.mark.parametrize("found", [{"torch": "2.13.0"}, {**GOOD, "llamafactory": None, "torchaudio": None}])
def test_without_llamafactory_the_python_api_works_and_that_is_a_note(found: dict) -> None:
    assert diagnose(found) == []
    (note,) = doctor_module.notes(found)
    assert "dataflex-cli train needs it" in note


def requirements(monkeypatch: pytest.MonkeyPatch, **lines: list[str]) -> None:
    """Give packages these requirements."""
    monkeypatch.setattr(doctor_module, "requires", lambda package: lines.get(package))


OURS = ["torch>=2.6", "transformers>=4.56.1", "trl>=0.24; extra == 'trl'", "torchaudio>=99; extra == 'other'"]


@pytest.mark.parametrize(
    ("name", "number", "bound"),
    [("torch", "2.5.1+cu124", ">=2.6"), ("transformers", "4.56.0", ">=4.56.1"), ("trl", "0.23.1", ">=0.24")],
)
def test_a_package_below_our_lowest_version_is_named_with_it(
    monkeypatch: pytest.MonkeyPatch, name: str, number: str, bound: str
) -> None:
    requirements(monkeypatch, dataflex=OURS)
    (problem,) = diagnose({"torch": "2.13.0", "transformers": None, "trl": None, "torchaudio": "2.11.0", name: number})
    said = f"{name} {number} is installed, dataflex needs {bound}; run pip install --upgrade '{name}{bound}'"
    assert problem == said


def test_the_lowest_versions_themselves_are_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements(monkeypatch, dataflex=OURS)
    assert diagnose({"torch": "2.6.0+cpu", "transformers": "4.56.1", "trl": "0.24.0", "torchaudio": None}) == []


def test_the_bounds_are_those_of_our_own_metadata() -> None:
    """Every package that we cannot do without, at version 0: each is too old."""
    needed = ["numpy", "pyarrow", "torch", "transformers", "accelerate", "datasets"]
    assert {problem.split()[0] for problem in diagnose(dict.fromkeys(needed, "0"))} == set(needed)


def test_bounds_of_llamafactory_that_are_broken_are_read_from_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = ["trl<=0.24.0,>=0.18.0", "transformers!=4.57.0,<=5.6.0,>=4.55.0", "deepspeed<=0.18; extra == 'deepspeed'"]
    requirements(monkeypatch, llamafactory=bounds)
    fits = {**GOOD, "trl": "0.24.0", "transformers": "5.6.0", "deepspeed": "0.19.0"}
    assert diagnose(fits) == []
    for name, number in (("trl", "1.16.0"), ("transformers", "5.6.1"), ("transformers", "4.57.0")):
        (problem,) = diagnose({**fits, name: number})
        assert problem.startswith(f"{name} {number} is installed, llamafactory needs ")
        assert "DISABLE_VERSION_CHECK=1 hides and does not mend" in problem
        assert problem.endswith(REMEDY)
    two = diagnose({**fits, "trl": "1.16.0", "transformers": "5.24.0"})
    assert [problem.split()[0] for problem in two] == ["trl", "transformers"]


def test_a_cpu_build_of_torch_beside_a_torchaudio_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_import_failure", lambda module: "OSError: libcudart.so.13 not found")
    (problem,) = diagnose({**GOOD, "torch": "2.11.0+cpu"})
    assert "torch 2.11.0+cpu is a CPU build" in problem
    assert "libcudart.so.13" in problem
    (other,) = diagnose({**GOOD, "torch": "2.11.0+cpu", "torchaudio": "2.11.0+cpu"})
    assert "CPU build" not in other


def test_an_old_trl_beside_a_new_transformers_is_a_note() -> None:
    (note,) = doctor_module.notes({**GOOD, "trl": "0.24.0", "transformers": "5.6.0"})
    assert "DPOTrainer" in note
