"""The verb on tiny models: numbers against brute force and lm_eval's own, resumes, refusals, files for other tools."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.evaluate.generate import Generation, generate_answers
from dataflex.evaluate.judge import PROMPT
from dataflex.evaluate.models import ModelSpec, load_tokenizer, loaded
from dataflex.evaluate.prompts import Prompter
from dataflex.evaluate.questions import Question, Source, read_questions
from dataflex.evaluate.results import markdown
from tests.evaluate.conftest import WORDS, evaluate, make_rows


def spec(folder: Path) -> ModelSpec:
    return ModelSpec(name="tiny", model_name_or_path=str(folder))


# numbers


def test_losses_are_the_models_own(config, tiny_model: Path, tmp_path: Path) -> None:
    results = evaluate(config(metrics=["loss"]), tmp_path)["data"]["qa"]
    with loaded(spec(tiny_model), "float32") as model:
        tokenizer = load_tokenizer(spec(tiny_model))
        sums: dict[str, list[float]] = {}
        for row in make_rows(12):
            prompt = tokenizer(row["input"]).input_ids
            whole = tokenizer(f"{row['input']} {row['output']}").input_ids
            labels = torch.tensor([[-100] * len(prompt) + whole[len(prompt) :]])
            count = len(whole) - len(prompt)
            loss = model(input_ids=torch.tensor([whole]), labels=labels).loss.item() * count
            entry = sums.setdefault(row["task"], [0.0, 0.0])
            entry[0] += loss
            entry[1] += count
    total = sum(s for s, _ in sums.values()) / sum(n for _, n in sums.values())
    assert results["metrics"]["loss"]["models"]["tiny"]["value"] == pytest.approx(total, rel=1e-5)
    assert results["metrics"]["perplexity"]["models"]["tiny"]["value"] == pytest.approx(math.exp(total), rel=1e-5)
    for task, (loss_sum, count) in sums.items():
        assert results["sources"]["tiny"][task]["value"] == pytest.approx(loss_sum / count, rel=1e-5)


def test_answers_do_not_depend_on_their_batch(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(spec(tiny_model))
    prompter = Prompter(tokenizer, "plain")
    prompts = [prompter.prompt(Question(text=row["input"], answer="")) for row in make_rows(23)]
    found = []
    with loaded(spec(tiny_model), "float32") as model:
        for batch_tokens in (1, 60, 10_000):
            how = Generation(max_new_tokens=8, batch_tokens=batch_tokens)
            found.append(generate_answers(model, tokenizer, prompts, [], how, tmp_path / f"{batch_tokens}.jsonl", "i"))
        alone = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            written = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8
            )
            alone.append(tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True))
    assert found[0] == found[1] == found[2] == alone
    assert len(set(alone)) > 5


def test_an_answer_ends_at_the_texts_that_end_it(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(spec(tiny_model))
    prompts = [Prompter(tokenizer, "plain").prompt(Question(text=row["input"], answer="")) for row in make_rows(9)]
    with loaded(spec(tiny_model), "float32") as model:
        whole = generate_answers(model, tokenizer, prompts, [], Generation(max_new_tokens=8), tmp_path / "a", "i")
        end = whole[0][3:5]
        how = Generation(max_new_tokens=8, until=(end,))
        cut = generate_answers(model, tokenizer, prompts, [], how, tmp_path / "b", "i")
    assert cut == [text.split(end)[0] for text in whole]
    assert cut != whole


def test_an_answer_ends_at_the_stop_words_of_the_template(tiny_model: Path, tmp_path: Path) -> None:
    """The model's own generation config may know nothing of them: a base model, tuned with a chat template."""
    tokenizer = load_tokenizer(spec(tiny_model))
    prompts = [Prompter(tokenizer, "plain").prompt(Question(text=row["input"], answer="")) for row in make_rows(9)]
    with loaded(spec(tiny_model), "float32") as model:
        whole = generate_answers(model, tokenizer, prompts, [], Generation(max_new_tokens=8), tmp_path / "a", "i")
        word = whole[0].split()[2]
        stop = tokenizer.convert_tokens_to_ids(word)
        cut = generate_answers(model, tokenizer, prompts, [stop], Generation(max_new_tokens=8), tmp_path / "b", "i")
    for before, after in zip(whole, cut, strict=True):
        words = before.split()
        assert after.split() == (words[: words.index(word) + 1] if word in words else words)
    pytest.importorskip("llamafactory")
    tokenizer = load_tokenizer(spec(tiny_model))
    assert tokenizer.eos_token_id in Prompter(tokenizer, "default").stop_ids
    llama3 = Prompter(tokenizer, "llama3")
    assert llama3.tokenizer.convert_tokens_to_ids("<|eot_id|>") in llama3.stop_ids


def test_drawn_answers_are_those_of_their_seed(config, tmp_path: Path) -> None:
    drawn = {"max_new_tokens": 6, "temperature": 1.0, "batch_tokens": 60}
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        settings = config(generation={**drawn, "seed": seed}, output_dir=str(tmp_path / str(number)))
        evaluate(settings, tmp_path)
        texts.append((tmp_path / str(number) / "answers" / "qa_answers_tiny.json").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_base_adapter_and_merged_stand_side_by_side(config, tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    models = [
        {"name": "base", "model_name_or_path": str(tiny_model)},
        {"name": "adapter", "model_name_or_path": str(tiny_model), "adapter_name_or_path": str(adapter)},
        {"name": "alone", "model_name_or_path": str(adapter)},
        {"name": "merged", "model_name_or_path": str(tiny_model.parent / "merged")},
    ]
    metrics = evaluate(config(models=models), tmp_path)["data"]["qa"]["metrics"]
    losses = {name: entry["value"] for name, entry in metrics["loss"]["models"].items()}
    assert losses["adapter"] == losses["alone"]
    assert losses["adapter"] == pytest.approx(losses["merged"], rel=1e-5)
    assert abs(losses["adapter"] - losses["base"]) > 0.01
    difference = metrics["loss"]["differences"]["adapter"]
    assert difference["value"] == pytest.approx(losses["adapter"] - losses["base"])
    assert difference["low"] < difference["value"] < difference["high"]
    table = (Path(config()["output_dir"]) / "results.md").read_text()
    assert "| base | adapter | alone | merged |" in table


@pytest.mark.long
def test_the_numbers_are_those_of_lm_eval_on_the_same_file(
    config, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact match of written answers, choices by likelihood, and likelihood of the answer, to the digit."""
    tokenizer = load_tokenizer(spec(tiny_model))
    rows = make_rows(30)
    prompts = [Prompter(tokenizer, "plain").prompt(Question(text=row["input"], answer="")) for row in rows]
    with loaded(spec(tiny_model), "float32") as model:
        said = generate_answers(
            model, tokenizer, prompts, [], Generation(max_new_tokens=4), tmp_path / "said.jsonl", "i"
        )
    for i in range(0, 30, 3):  # a third of the answers are what the model says
        rows[i]["output"] = said[i].strip() or rows[i]["output"]
    choices = [
        {**row, "choices": [row["output"], WORDS[i % 14], f"{WORDS[i % 13]} {WORDS[i % 11]}"], "place": 0}
        for i, row in enumerate(make_rows(30, seed=5))
    ]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    (tmp_path / "mc.json").write_text(json.dumps(choices))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    common = {"dataset_path": "json", "test_split": "test", "target_delimiter": " ", "doc_to_text": "{{input}}"}

    def task(name: str, file: str, **keys: Any) -> None:
        data = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / file)}}}
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **data, **keys}))

    task(
        "written",
        "qa.json",
        output_type="generate_until",
        doc_to_target="{{output}}",
        generation_kwargs={"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    task(
        "chosen",
        "mc.json",
        output_type="multiple_choice",
        doc_to_target="place",
        doc_to_choice="choices",
        metric_list=[{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
    )
    task(
        "likely",
        "qa.json",
        output_type="loglikelihood",
        doc_to_target=" {{output}}",  # no delimiter is put before it for this type
        metric_list=[
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    )
    settings = config(
        data=[
            {"name": "qa", "path": str(tmp_path / "qa.json")},
            {"name": "mc", "path": str(tmp_path / "mc.json"), "choices": "choices"},
        ],
        generation={"max_new_tokens": 4, "until": ["\n"]},
        tasks=["written", "chosen", "likely"],
        task_dir=str(tasks),
    )
    results = evaluate(settings, tmp_path)
    ours = {name: found["metrics"] for name, found in results["data"].items()}
    theirs = {name: found["tiny"] for name, found in results["tasks"].items()}
    with monkeypatch.context() as patch:
        patch.setattr("dataflex.cli.evaluate.loaded", lambda *_: pytest.fail("a model is loaded"))
        assert evaluate(settings, tmp_path) == results, "finished tasks are not run again"
        (tmp_path / "mc.json").write_text(json.dumps(choices[:20]))
        with pytest.raises(BaseException, match="a model is loaded"):
            evaluate({**settings, "data": settings["data"][:1]}, tmp_path)  # the task's own file is another
        (tmp_path / "mc.json").write_text(json.dumps(choices))
    exact = ours["qa"]["exact_match"]["models"]["tiny"]["value"]
    assert 0.2 < exact < 0.9
    assert theirs["written"]["exact_match,none"] == exact
    for name in ("acc", "acc_norm"):
        value = ours["mc"][name]["models"]["tiny"]["value"]
        assert theirs["chosen"][f"{name},none"] == value
        assert 0 < value < 1
    # The harness averages the log-likelihood of rows, not of tokens.
    part = json.loads((tmp_path / "out" / "parts" / "tiny" / "qa.losses.json").read_text())
    assert theirs["likely"]["perplexity,none"] == pytest.approx(np.exp(np.mean(part["loss_sums_N"])), rel=1e-5)
    assert theirs["likely"]["acc,none"] == np.mean(part["is_greedy_N"])
    acc = theirs["chosen"]["acc,none"]
    assert theirs["chosen"]["acc_stderr,none"] == pytest.approx(math.sqrt(acc * (1 - acc) / 29))
    # And what the verb reports of a task is what the harness reports when it is asked alone.
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    alone: Any = simple_evaluate(
        model=HFLM(pretrained=str(tiny_model), device="cpu", dtype="float32"),
        tasks=["written", "chosen", "likely"],
        task_manager=TaskManager(include_path=str(tasks)),
        bootstrap_iters=0,
    )
    for name, found in theirs.items():
        for metric, value in found.items():
            if "stderr" not in metric:
                assert value == pytest.approx(alone["results"][name][metric], rel=1e-6)


def test_references_without_mathematics_are_told_and_scores_are_kept(config, tmp_path: Path, monkeypatch) -> None:
    rows = [{"input": "one ?", "output": right} for right in ("2", "yes", r"\sqrt{2}", "天空")]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    settings = config(metrics=["math"], data=[{"name": "qa", "path": str(tmp_path / "qa.json")}])
    found = evaluate(settings, tmp_path)["data"]["qa"]
    assert found["unreadable_references"] == 2
    assert "2 of 4 references of qa hold no number or expression" in (tmp_path / "out" / "results.md").read_text()
    monkeypatch.setattr("dataflex.evaluate.parts.math", lambda *_: pytest.fail("what is there is scored again"))
    assert evaluate(settings, tmp_path)["data"]["qa"] == found
    assert "unreadable_references" not in evaluate({**settings, "metrics": ["f1"]}, tmp_path)["data"]["qa"]


# being interrupted


def files_of(folder: Path) -> dict[str, bytes]:
    """What an evaluation says; parts of it say when."""
    named = [folder / "results.json", folder / "results.md", *sorted((folder / "answers").glob("*"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in named}


@pytest.mark.long
def test_a_killed_evaluation_goes_on_and_says_the_same(config, tmp_path: Path) -> None:
    """SIGKILL in the middle of the answers."""
    (tmp_path / "qa.json").write_text(json.dumps(make_rows(60)))
    how = {"max_new_tokens": 40, "batch_tokens": 1}  # one row a batch: long enough to be hit
    whole, cut = (config(generation=how, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    evaluate(whole, tmp_path)
    path = tmp_path / "cut.yaml"
    path.write_text(json.dumps(cut))
    part = tmp_path / "cut" / "parts" / "tiny" / "qa.answers.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "dataflex.cli.main", "evaluate", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not (part.is_file() and part.read_bytes().count(b"\n") >= 4):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = part.read_bytes()
    assert 4 <= before.count(b"\n") < 61
    assert not (tmp_path / "cut" / "results.json").exists()
    losses = (tmp_path / "cut" / "parts" / "tiny" / "qa.losses.json").stat().st_mtime_ns
    evaluate(cut, tmp_path)
    kept = before[: before.rfind(b"\n") + 1]
    assert part.read_bytes().startswith(kept), "finished answers are not written again"
    assert (tmp_path / "cut" / "parts" / "tiny" / "qa.losses.json").stat().st_mtime_ns == losses
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


@pytest.mark.long
def test_an_evaluation_that_is_killed_at_any_write_goes_on_and_says_the_same(config, tmp_path: Path) -> None:
    """SIGKILL before each file is synced or put in place, one after the other; then the command again."""
    evaluate(config(output_dir=str(tmp_path / "whole")), tmp_path)
    said = files_of(tmp_path / "whole")
    for at in range(1, 100):
        cut = config(output_dir=str(tmp_path / f"cut{at}"))
        child = os.fork()
        if child == 0:
            kill_at(at)
            evaluate(cut, tmp_path)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        evaluate(cut, tmp_path)
        assert files_of(tmp_path / f"cut{at}") == said, f"killed before write {at}"
    assert 15 < at < 99


def kill_at(number: int) -> None:
    """This process is killed at its ``number``-th sync or replacement of a file."""
    seen = itertools.count(1)

    def killing(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace"):
        setattr(os, name, killing(getattr(os, name)))


def test_what_is_there_needs_no_model(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    settings = config()
    evaluate(settings, tmp_path)
    said = files_of(tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    monkeypatch.setattr("dataflex.cli.evaluate.loaded", lambda *_: pytest.fail("a model is loaded"))
    evaluate(settings, tmp_path)
    assert files_of(tmp_path / "out") == said
    assert "tiny: everything is there" in capsys.readouterr().out


def test_an_unfinished_line_of_a_kill_is_written_again(config, tmp_path: Path) -> None:
    settings = config()
    evaluate(settings, tmp_path)
    said = files_of(tmp_path / "out")
    part = tmp_path / "out" / "parts" / "tiny" / "qa.answers.jsonl"
    part.write_bytes(part.read_bytes()[:-15])
    evaluate(settings, tmp_path)
    assert files_of(tmp_path / "out") == said
    assert all(json.loads(line) for line in part.read_text().split("\n")[:-1])


@pytest.mark.parametrize("change", ["data", "generation", "model", "template"])
def test_a_piece_of_something_else_is_not_used(
    config, tiny_model: Path, adapter: Path, tmp_path: Path, change: str
) -> None:
    evaluate(config(), tmp_path)
    part = tmp_path / "out" / "parts" / "tiny" / "qa.answers.jsonl"
    first = json.loads(part.read_text().split("\n")[0])
    settings = config()
    if change == "data":
        (tmp_path / "qa.json").write_text(json.dumps(make_rows(12, seed=3)))
    elif change == "generation":
        settings["generation"] = {"max_new_tokens": 7, "batch_tokens": 60}
    elif change == "model":
        settings["models"] = [{"name": "tiny", "model_name_or_path": str(adapter)}]
    else:
        settings["template"] = "chat"
    evaluate(settings, tmp_path)
    assert json.loads(part.read_text().split("\n")[0]) != first
    fresh = {**settings, "output_dir": str(tmp_path / "fresh")}
    evaluate(fresh, tmp_path)
    assert files_of(tmp_path / "fresh") == files_of(tmp_path / "out")


# mistakes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": []}, "models is empty"),
        ({"models": [{"name": "a", "model_name_or_path": "/nowhere"}]}, "'/nowhere', does not exist"),
        ({"models": [{"name": "a"}]}, r"models\[0\]: model_name_or_path is missing"),
        ({"models": [{"name": "a/b", "model_name_or_path": "x"}]}, "a model is called 'a/b'"),
        ({"models": [{"name": "a", "model": "x"}]}, "unknown parameter 'model'"),
        ({"data": None}, "neither data nor tasks is set"),
        ({"data": [{"name": "x", "path": "missing.json"}]}, "'missing.json', cannot be read"),
        ({"data": [{"name": "x", "path": "x.csv"}]}, "must end in .json or .jsonl"),
        ({"data": [{"name": "x", "path": "EMPTY"}]}, "is empty; there is nothing"),
        ({"data": [{"name": "x", "path": "QA", "question": "inptu"}]}, r"no column 'inptu' \(did you mean 'input'\?\)"),
        ({"data": [{"name": "x", "path": "QA", "choices": "output"}]}, "is no list of two texts"),
        ({"data": [{"name": "x", "path": "QA", "format": "alpaca"}]}, "no column 'instruction'"),
        ({"data": [{"name": "x", "path": "QA", "format": "sharegpt"}]}, "has no conversations"),
        ({"data": [{"name": "x", "path": "QA", "format": "csv"}]}, "format"),
        ({"metrics": ["exact_mach"]}, r"a metric is 'exact_mach' \(did you mean 'exact_match'\?\)"),
        ({"template": "lama3"}, r"template is 'lama3' \(did you mean 'llama3'\?\)"),
        ({"template": "llama3"}, "uses tokens that tiny does not have"),
        ({"tasks": ["no_such_task_of_all"]}, "is none of lm-evaluation-harness"),
        ({"tasks": ["x"], "task_dir": "nowhere"}, "task_dir is 'nowhere'"),
        ({"generation": {"max_new_tokens": 0}}, "max_new_tokens is 0"),
        ({"generation": {"max_new_tokens": 125}}, "tokens with its answer, and tiny was made for 128"),
        ({"generation": {"temperature": -1.0}}, "temperature is -1"),
        ({"generation": {"seed": -1}}, "generation: seed is -1; it must be at least 0"),
        ({"generation": {"until": ["x", ""]}}, r"until is \['x', ''\]; it must be texts of at least one character"),
        ({"bootstrap": {"seed": -1}}, "bootstrap: seed is -1; it must be at least 0"),
        ({"bootstrap": {"confidence": 1.5}}, "a confidence between 0 and 1"),
        ({"judge": {"base_url": "http://x", "model": "m", "key_env": "NOT_SET_ANYWHERE"}}, "NOT_SET_ANYWHERE"),
        ({"judge": {"base_url": "http://x", "model": "m", "prompt": "hm"}}, r"holds no \{question\}"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"outputdir": "x"}, r"unknown parameter 'outputdir' \(did you mean 'output_dir'\?\)"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence_before_a_model_is_loaded(config, tmp_path: Path, changes, said, monkeypatch) -> None:
    monkeypatch.setattr("dataflex.cli.evaluate.loaded", lambda *_: pytest.fail("a model is loaded"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text("[]")
    for source in changes.get("data") or []:
        places = {"EMPTY": "empty.json", "QA": "qa.json"}
        source["path"] = str(tmp_path / places[source["path"]]) if source["path"] in places else source["path"]
    with pytest.raises(ConfigError, match=said):
        evaluate(config(**changes), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (["hello", "hi"], "has the turn 'hello'; write it as a mapping"),
        ([{"from": ["human"], "value": "a"}], r"has a turn of \['human'\]; known: human"),
        ([{"from": "human", "value": 3}], "has a turn that says 3; a text is needed"),
        ([None], "has the turn None"),
    ],
)
def test_a_turn_that_is_none_is_a_sentence(tmp_path: Path, turns: list[Any], said: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps([{"conversations": turns}]))
    with pytest.raises(ConfigError, match=f"row 0 of .* {said}"):
        read_questions(Source(name="s", path=str(tmp_path / "s.json"), format="sharegpt"))


def test_true_is_no_place_among_choices(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps([{"input": "a", "output": True, "choices": ["x", "y"]}]))
    with pytest.raises(ConfigError, match=r"output of row 0 of .* is True, none of its choices"):
        read_questions(Source(name="c", path=str(tmp_path / "c.json"), choices="choices"))


@pytest.mark.parametrize("question", ["", "  "])
def test_a_question_without_a_token_is_a_sentence(config, tmp_path: Path, question: str) -> None:
    """The tiny model's tokenizer puts no token before a text."""
    rows = [*make_rows(2), {"input": question, "output": "red fox", "task": "a"}]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=r"row 2 of .* has an empty question"):
        evaluate(config(), tmp_path)


def test_an_output_dir_that_is_a_file_is_a_sentence(config, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match=r"output_dir is '.*out', where no folder can be made \(File exists\)"):
        evaluate(config(), tmp_path)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_adapter_that_is_none_is_a_sentence(config, tiny_model: Path, tmp_path: Path) -> None:
    models = [{"name": "a", "model_name_or_path": str(tiny_model), "adapter_name_or_path": str(tiny_model)}]
    with pytest.raises(ConfigError, match=r"holds no adapter_config\.json"):
        evaluate(config(models=models), tmp_path)


def test_a_package_that_is_missing_is_a_sentence(config, tmp_path: Path, monkeypatch) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "math_verify" else original(name))
    with pytest.raises(ConfigError, match=r"the metric math needs the package math_verify.*dataflex\[evaluate\]"):
        evaluate(config(metrics=["math"]), tmp_path)


# formats and other tools


def test_alpaca_and_sharegpt_rows_are_read(tmp_path: Path) -> None:
    alpaca = [{"instruction": "say", "input": "red", "output": "blue"}, {"instruction": "go", "output": "fox"}]
    turns = [("system", "be"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    sharegpt = [{"conversations": [{"from": role, "value": text} for role, text in turns]}]
    for name, rows in (("alpaca", alpaca), ("sharegpt", sharegpt)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    first = read_questions(Source(name="a", path=str(tmp_path / "alpaca.jsonl"), format="alpaca"))
    assert [(q.text, q.answer) for q in first] == [("say\nred", "blue"), ("go", "fox")]
    (second,) = read_questions(Source(name="s", path=str(tmp_path / "sharegpt.jsonl"), format="sharegpt"))
    assert (second.text, second.answer) == ("c", "d")
    assert second.turns == (("system", "be"), ("user", "a"), ("assistant", "b"))
    for row in ({"system": "", **sharegpt[0]}, {"system": "be", "conversations": sharegpt[0]["conversations"][1:]}):
        (tmp_path / "system.jsonl").write_text(json.dumps(row))
        (third,) = read_questions(Source(name="s", path=str(tmp_path / "system.jsonl"), format="sharegpt"))
        assert third == second, "an empty system prompt is none"


@pytest.mark.parametrize("template", ["plain", "chat", "default"])
def test_only_the_answer_carries_labels_and_the_prompt_is_its_beginning(tiny_model: Path, template: str) -> None:
    if template == "default":
        pytest.importorskip("llamafactory")
    tokenizer = load_tokenizer(spec(tiny_model))
    prompter = Prompter(tokenizer, template)
    question = Question(text="red fox ?", answer="blue dog")
    row, prompt = prompter.row(question, question.answer), prompter.prompt(question)
    labels = np.array(row["labels"])
    assert row["input_ids"][: len(prompt)] == prompt
    assert (labels[: len(prompt)] == -100).all()
    answered = tokenizer.decode(labels[len(prompt) :].tolist(), skip_special_tokens=True)
    assert answered.replace(" ", "") == "bluedog"


def dataflow_config(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a generated file makes of DataFlow's own, which is here as far as ours touches it."""
    program = types.ModuleType(f"dataflow.cli_funcs.eval_pipeline.{path.stem}")
    own: dict[str, Any] = {"JUDGE_MODEL_CONFIG": {}, "TARGET_MODELS": [], "BENCH_CONFIG": [], "EVAL_CONFIG": {}}
    vars(program).update(own)
    program.FairAnswerJudgePrompt = type("FairAnswerJudgePrompt", (), {})  # type: ignore[attr-defined]
    program.get_evaluator_config = lambda: {name: getattr(program, name) for name in own}  # type: ignore[attr-defined]
    parent = types.ModuleType("dataflow.cli_funcs.eval_pipeline")
    setattr(parent, path.stem, program)
    for name in ("dataflow", "dataflow.cli_funcs", "dataflow.core", "dataflow.core.prompt"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    allowed = type("DIYPromptABC", (), {})
    sys.modules["dataflow.core.prompt"].DIYPromptABC = allowed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dataflow.cli_funcs.eval_pipeline", parent)
    made = importlib.util.spec_from_file_location("config", path)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    assert issubclass(program.FairAnswerJudgePrompt, allowed), "its evaluator refuses any other class"
    return module.get_evaluator_config()


def test_answers_are_what_dataflow_reads_and_its_config_runs_as_it_is(config, tmp_path: Path, monkeypatch) -> None:
    evaluate(config(), tmp_path)
    rows = json.loads((tmp_path / "out" / "answers" / "qa_answers_tiny.json").read_text())
    assert [set(row) for row in rows] == [{"input", "output", "model_generated_answer"}] * 12
    assert [row["input"] for row in rows] == [row["input"] for row in make_rows(12)]
    folder = tmp_path / "out" / "dataflow"
    assert [row["output"] for row in json.loads((folder / "qa.json").read_text())] == [
        r["output"] for r in make_rows(12)
    ]
    for kind in ("local", "api"):
        found = dataflow_config(folder / f"eval_{kind}.py", monkeypatch)
        assert [target["name"] for target in found["TARGET_MODELS"]] == ["tiny"]
        assert found["TARGET_MODELS"][0]["vllm_max_tokens"] == 6
        assert Path(found["TARGET_MODELS"][0]["path"]).is_absolute()
        assert found["JUDGE_MODEL_CONFIG"] == {"model_path" if kind == "local" else "api_url": "SET_ME"}
        assert (folder / found["BENCH_CONFIG"][0]["input_file"]).is_file()
    compile((folder / "check_answers.py").read_text(), "check_answers.py", "exec")


class Service(BaseHTTPRequestHandler):
    """Says yes where the reference stands in the answer, and nothing useful about one row."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append({"key": self.headers["Authorization"], **body})
        said = "No." if len(body["messages"][0]["content"]) % 2 else "Yes, it does."
        reply = {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
        content = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", **reply}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def test_judge_and_dataflow_get_the_whole_conversation(config, tmp_path: Path, monkeypatch) -> None:
    turns = [("human", "red fox"), ("gpt", "blue dog"), ("human", "one ?"), ("gpt", "two")]
    long = {"system": "moon", "conversations": [{"from": role, "value": text} for role, text in turns]}
    short = {"conversations": long["conversations"][2:]}
    (tmp_path / "qa.json").write_text(json.dumps([long, short]))
    monkeypatch.setenv("OUR_KEY", "key")
    seen: dict[int, tuple[str, str, str]] = {}

    def verdicts(judge: Any, rows: Any) -> Any:
        seen.update(rows)
        yield from ((row, 1.0) for row in rows)

    monkeypatch.setattr("dataflex.evaluate.judge.Judge.probe", lambda judge: None)
    monkeypatch.setattr("dataflex.evaluate.judge.Judge.verdicts", verdicts)
    judge = {"base_url": "http://x/v1", "model": "m", "key_env": "OUR_KEY"}
    data = [{"name": "qa", "path": str(tmp_path / "qa.json"), "format": "sharegpt"}]
    evaluate(config(data=data, judge=judge, metrics=["f1"]), tmp_path)
    asked = ["System: moon\n\nUser: red fox\n\nAssistant: blue dog\n\nUser: one ?", "one ?"]
    assert [seen[row][0] for row in (0, 1)] == asked
    for file in ("answers/qa_answers_tiny.json", "dataflow/qa.json"):
        assert [row["input"] for row in json.loads((tmp_path / "out" / file).read_text())] == asked
    service = dataflow_config(tmp_path / "out" / "dataflow" / "eval_api.py", monkeypatch)["JUDGE_MODEL_CONFIG"]
    assert service == {"api_url": "http://x/v1/chat/completions", "model_name": "m", "api_key_env": "OUR_KEY"}


def test_results_say_how_they_came_about(config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OUR_KEY", "very-secret-key")
    monkeypatch.setattr("dataflex.evaluate.judge.Judge.probe", lambda judge: None)
    monkeypatch.setattr("dataflex.evaluate.judge.Judge.verdicts", lambda judge, rows: ((row, 1.0) for row in rows))
    judge = {"base_url": "http://me:pass@x/v1", "model": "m", "key_env": "OUR_KEY", "prompt": PROMPT}
    found = evaluate(config(judge=judge, metrics=["f1"], dtype="float32", delimiter="\n"), tmp_path)
    assert found["judge"] == {"base_url": "http://x/v1", "model": "m", "prompt": PROMPT}
    assert (found["dtype"], found["delimiter"], found["task_limit"]) == ("float32", "\n", None)
    assert found["device"] in ("cpu", "cuda")
    for package in ("dataflex", "torch", "scipy", "lm_eval", "math-verify"):
        assert found["versions"][package]
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert not re.search(b"very-secret-key|me:pass", path.read_bytes()), path
    few = {**found, "tasks": {"t": {"tiny": {"acc,none": 0.5}}}, "task_limit": 10}
    assert "Tasks were run on their first 10 rows only" in markdown(few)
    assert "rows only" not in markdown({**few, "task_limit": None})


@pytest.mark.long
def test_a_judge_is_asked_once_and_its_key_is_written_nowhere(config, tmp_path: Path, monkeypatch) -> None:
    Service.asked = []
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OUR_KEY", "very-secret-key")
    judge = {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "key_env": "OUR_KEY"}
    results = evaluate(config(judge=judge, metrics=["loss"]), tmp_path)
    assert len(Service.asked) == 1 + 12, "one question that tries the judge, and one a row"
    assert Service.asked[0]["key"] == "Bearer very-secret-key"
    said = [len(request["messages"][0]["content"]) % 2 == 0 for request in Service.asked[1:]]
    assert results["data"]["qa"]["metrics"]["judge"]["models"]["tiny"]["value"] == pytest.approx(np.mean(said))
    evaluate(config(judge=judge, metrics=["loss"]), tmp_path)
    assert len(Service.asked) == 1 + 12, "finished pieces are not asked again"
    part = tmp_path / "out" / "parts" / "tiny" / "qa.judge.jsonl"
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:8]) + b'{"row": 3, "va')
    assert evaluate(config(judge=judge, metrics=["loss"]), tmp_path) == results
    assert len(Service.asked) == 1 + 12 + 1 + 5, "after a kill only what is missing is asked"
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"very-secret-key" not in everything
    server.shutdown()
    other = {**judge, "base_url": "http://127.0.0.1:9/v1"}
    monkeypatch.setattr("dataflex.evaluate.judge.RETRIES", 0)
    monkeypatch.setattr("dataflex.cli.evaluate.loaded", lambda *_: pytest.fail("a model is loaded"))
    with pytest.raises(DataFlexError, match="cannot be asked"):
        evaluate(config(judge=other, metrics=["loss"], output_dir=str(tmp_path / "new")), tmp_path)
