"""Tasks are run as lm_eval runs them alone: its seeds, its tokenizer; and what it would refuse is refused first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataflex.core.errors import ConfigError
from dataflex.evaluate.generate import Generation, generate_answers
from dataflex.evaluate.harness import task_digests
from dataflex.evaluate.models import ModelSpec, load_tokenizer, loaded
from dataflex.evaluate.prompts import Prompter
from dataflex.evaluate.questions import Question
from tests.evaluate.conftest import WORDS, byte_level_tokenizer, evaluate, make_rows

EXACT = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]


@pytest.fixture(scope="module")
def byte_level_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights whose words begin with their space, as those of most models do."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer = byte_level_tokenizer(special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_task(folder: Path, name: str, file: Path, **keys: Any) -> Path:
    folder.mkdir(exist_ok=True)
    common = {"dataset_path": "json", "test_split": "test", "target_delimiter": " ", "doc_to_text": "{{input}}"}
    data = {"dataset_kwargs": {"data_files": {"test": str(file)}}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **data, **keys}))
    return folder


def written(**keys: Any) -> dict[str, Any]:
    """Keys of a task whose answers are written."""
    how = {"until": ["\n"], "do_sample": False, "max_gen_toks": 5}
    return {
        "output_type": "generate_until",
        "doc_to_target": "{{output}}",
        "generation_kwargs": how,
        "metric_list": EXACT,
        **keys,
    }


@pytest.mark.long
def test_exact_match_is_the_harness_s_once_it_takes_spaces_off(config, byte_level_model: Path, tmp_path: Path) -> None:
    """A model writes ' 42' after 'The answer is', and '42' is right: the harness compares the text as it is."""
    spec = ModelSpec(name="tiny", model_name_or_path=str(byte_level_model))
    tokenizer, rows = load_tokenizer(spec), make_rows(24)
    prompts = [Prompter(tokenizer, "plain").prompt(Question(text=row["input"], answer="")) for row in rows]
    how = Generation(max_new_tokens=5, until=("\n",))
    with loaded(spec, "float32") as model:
        said = generate_answers(model, tokenizer, prompts, [0], how, tmp_path / "said.jsonl", "i")
    for row, text in list(zip(rows, said, strict=True))[::2]:
        row["output"] = text.strip() or row["output"]
    bare = sum(text != text.strip() and text.strip() == row["output"] for row, text in zip(rows, said, strict=True))
    assert bare > 0, "no answer that is right begins with a space; take another seed"
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    stripping = [{"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]
    tasks = write_task(tmp_path / "tasks", "as_it_is", tmp_path / "qa.json", **written())
    write_task(tasks, "stripping", tmp_path / "qa.json", **written(filter_list=stripping))
    results = evaluate(
        config(
            models=[{"name": "tiny", "model_name_or_path": str(byte_level_model)}],
            generation={"max_new_tokens": 5, "until": ["\n"]},
            metrics=["exact_match"],
            tasks=["as_it_is", "stripping"],
            task_dir=str(tasks),
        ),
        tmp_path,
    )
    ours = results["data"]["qa"]["metrics"]["exact_match"]["models"]["tiny"]["value"]
    assert ours >= bare / 24
    assert results["tasks"]["stripping"]["tiny"]["exact_match,stripped"] == ours
    assert results["tasks"]["as_it_is"]["tiny"]["exact_match,none"] == pytest.approx(ours - bare / 24)


@pytest.mark.long
def test_examples_and_the_end_token_are_lm_evals_own(config, byte_level_model: Path, tmp_path: Path) -> None:
    """Examples are drawn by the harness's seeds, and the template's end token is none of a task's."""
    pytest.importorskip("llamafactory")
    rows = [
        {**row, "choices": [row["output"], WORDS[i % 14], f"{WORDS[i % 13]} {WORDS[i % 11]}"]}
        for i, row in enumerate(make_rows(20, seed=5))
    ]
    (tmp_path / "mc.json").write_text(json.dumps(rows))
    (tmp_path / "examples.json").write_text(json.dumps(make_rows(40, seed=6)))
    splits = {"test": str(tmp_path / "mc.json"), "train": str(tmp_path / "examples.json")}
    perplexity = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    likely = {"output_type": "loglikelihood", "doc_to_target": " {{output}}", "metric_list": perplexity}
    few_shot = {"training_split": "train", "fewshot_split": "train", "num_fewshot": 2}
    tasks = write_task(
        tmp_path / "tasks", "few_shot", tmp_path, **likely, **few_shot, dataset_kwargs={"data_files": splits}
    )
    # Without a question, the likelihood is that after the tokenizer's own end token.
    write_task(tasks, "unasked", tmp_path / "mc.json", **{**likely, "doc_to_text": ""})
    settings = config(
        models=[{"name": "tiny", "model_name_or_path": str(byte_level_model)}],
        template="qwen",  # makes <|im_end|> the end token
        data=None,
        tasks=["few_shot", "unasked"],
        task_dir=str(tasks),
    )
    theirs = evaluate(settings, tmp_path)["tasks"]
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    alone: Any = simple_evaluate(
        model=HFLM(pretrained=str(byte_level_model), device="cpu", dtype="float32"),
        tasks=["few_shot", "unasked"],
        task_manager=TaskManager(include_path=str(tasks)),
        bootstrap_iters=0,
    )
    for name in ("few_shot", "unasked"):
        expected = alone["results"][name]["perplexity,none"]
        assert theirs[name]["tiny"]["perplexity,none"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.long
def test_a_tasks_examples_are_part_of_what_it_asks(tmp_path: Path) -> None:
    (tmp_path / "qa.json").write_text(json.dumps(make_rows(4)))
    splits = {"test": str(tmp_path / "qa.json"), "train": str(tmp_path / "examples.json")}
    few_shot = {"training_split": "train", "fewshot_split": "train", "num_fewshot": 2}
    tasks = write_task(
        tmp_path / "tasks", "few_shot", tmp_path, **written(), **few_shot, dataset_kwargs={"data_files": splits}
    )
    found = []
    for seed in (6, 6, 7):
        (tmp_path / "examples.json").write_text(json.dumps(make_rows(40, seed=seed)))
        found.append(task_digests(["few_shot"], str(tasks))["few_shot"])
    assert found[0] == found[1] != found[2]


def test_a_task_that_runs_what_a_model_writes_is_a_sentence(config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dataflex.cli.evaluate.loaded", lambda *_: pytest.fail("a model is loaded"))
    tasks = write_task(tmp_path / "tasks", "programs", tmp_path / "qa.json", **written(unsafe_code=True))
    (tasks / "all.yaml").write_text(yaml.safe_dump({"group": "all_programs", "task": ["programs"]}))
    for name, said in (("programs", "'programs' runs code"), ("all_programs", "holds 'programs', which runs code")):
        with pytest.raises(ConfigError, match=f"{said} that the model writes"):
            evaluate(config(tasks=[name], task_dir=str(tasks)), tmp_path)
    assert not (tmp_path / "out").exists()
