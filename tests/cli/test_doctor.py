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


def test_a_package_below_our_lowest_version_is_named_with_it() -> None:
    (problem,) = diagnose({"torch": "2.13.0", "transformers": "4.40.0"})
    assert problem.startswith("transformers 4.40.0 is installed, dataflex needs >=4.55;")
    assert problem.endswith("run pip install --upgrade 'transformers>=4.55'")


def test_bounds_of_llamafactory_that_are_broken_are_read_from_its_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bounds(package: str) -> list[str]:
        return ["trl<=0.24.0,>=0.18.0", "galore-torch; extra == 'galore'"] if package == "llamafactory" else []

    monkeypatch.setattr(doctor_module, "requires", bounds)
    (problem,) = diagnose({**GOOD, "trl": "1.16.0"})
    assert "trl 1.16.0 is installed, llamafactory needs" in problem
    assert problem.endswith(REMEDY)
    assert diagnose({**GOOD, "trl": "0.24.0"}) == []


def test_an_old_trl_beside_a_new_transformers_is_a_note() -> None:
    (note,) = doctor_module.notes({**GOOD, "trl": "0.24.0", "transformers": "5.6.0"})
    assert "DPOTrainer" in note
