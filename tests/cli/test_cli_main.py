"""``dataflex-cli``: a mistake is one line on stderr and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_configs import changed, write_config

from dataflex import __version__
from dataflex.cli.main import PASS_THROUGH, main


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["dataflex-cli", *arguments])
    try:
        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


MISTAKES = [
    changed(train_type="bogus"),
    changed(component_name="delta_los"),
    changed(update_step=0),
    changed(learning_rat=1),
    changed(train_type=None),
    "a: [1",
    "- a",
]


@pytest.mark.usefixtures("without_llamafactory")
@pytest.mark.parametrize("verb", ["train", "plan"])
@pytest.mark.parametrize("config", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path: Path, verb: str, config) -> None:
    path = write_config(tmp_path, config)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(monkeypatch, capsys, verb, path)
    assert code == 2
    assert out == ""
    assert err.startswith("dataflex-cli: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("without_llamafactory")
def test_only_the_first_rank_says_it(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(monkeypatch, capsys, "train", "nowhere.yaml") == (2, "", "")
    monkeypatch.setenv("RANK", "0")
    assert run(monkeypatch, capsys, "train", "nowhere.yaml")[2].startswith("dataflex-cli: error: ")


@pytest.mark.usefixtures("without_llamafactory")
def test_an_override_on_the_command_line_is_checked_like_the_file(monkeypatch, capsys, tmp_path: Path) -> None:
    path = write_config(tmp_path, changed())
    code, _, err = run(monkeypatch, capsys, "plan", path, "component.params.window_size=2", "learning_rate=1")
    assert code == 2
    assert "window_size is 2" in err


@pytest.mark.parametrize("arguments", [["train"], ["plan"], ["no-such-verb"], ["train", "--no-such-option"]])
def test_a_wrong_command_line_is_exit_code_2(monkeypatch, capsys, arguments: list[str]) -> None:
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_the_verbs(monkeypatch, capsys, flag: str) -> None:
    code, out, _ = run(monkeypatch, capsys, flag)
    assert code == 0
    for verb in ("train", "plan", "components", "doctor", "version", "export"):
        assert verb in out


def test_version(monkeypatch, capsys) -> None:
    assert run(monkeypatch, capsys, "version") == (0, f"dataflex {__version__}\n", "")


def test_components_lists_methods_and_presets(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine: {name: delta_loss, params: {window_size: 0.3}}\nempty:")
    code, out, _ = run(monkeypatch, capsys, "components", "--file", "mine.yaml")
    assert code == 0
    for text in ("window_size", "0.2", "t/(T-1) | t/T", "DataFlex user guide", "mine: delta_loss", "empty: empty"):
        assert text in out
    code, _, err = run(monkeypatch, capsys, "components", "--file", "nowhere.yaml")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("verb", PASS_THROUGH)
def test_foreign_verbs_are_handed_on_unchanged(monkeypatch, capsys, without_llamafactory, verb: str) -> None:
    seen = []

    class Cli:
        @staticmethod
        def main() -> None:
            seen.append(list(sys.argv))

    without_llamafactory.import_module = lambda name: Cli
    monkeypatch.setattr("dataflex.cli.passthrough.llamafactory", without_llamafactory, raising=False)
    code, _, _ = run(monkeypatch, capsys, verb, "a b.yaml", "x=1", "--flag")
    assert code == 0
    assert seen == [["llamafactory-cli", verb, "a b.yaml", "x=1", "--flag"]]


def test_the_light_verbs_import_no_torch() -> None:
    script = (
        "import sys; from dataflex.cli.main import main\n"
        "sys.argv = ['dataflex-cli', 'train', 'nowhere.yaml']\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert left.code == 2\n"
        "heavy = {'torch', 'transformers', 'llamafactory', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_true_command_end_to_end(tmp_path: Path) -> None:
    """LLaMA-Factory's own keys, in a process of its own: a plan, then a key that nobody knows."""
    pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed")
    data = tmp_path / "my data"
    data.mkdir()
    (data / "toy.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 60)
    (data / "dataset_info.json").write_text('{"toy": {"file_name": "toy.jsonl"}}')
    good = write_config(tmp_path, changed(dataset_dir=str(data), lora_rank=4, neftune_noise_alpha=5), "good.yaml")
    bad = write_config(tmp_path, changed(dataset_dir=str(data), lora_rnk=4), "bad.yaml")
    before = sorted(tmp_path.rglob("*"))
    script = (
        "import sys; from dataflex.cli.main import main\n"
        f"sys.argv = ['dataflex-cli', 'plan', {good!r}]\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code\n"
        f"sys.argv = ['dataflex-cli', 'train', {bad!r}, 'warmup_step=1']\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "0.7946 to 0.9946" in result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("dataflex-cli: error:")]
    assert errors == [
        "dataflex-cli: error: unknown key 'lora_rnk' (did you mean 'lora_rank'?); remove or correct it"
    ], result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
