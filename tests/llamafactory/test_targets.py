"""Target data sets of LLaMA-Factory runs: read as the training set is, grouped, kept apart, refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import make_rows, train, write_data


@pytest.fixture
def settings(config, tmp_path: Path) -> dict[str, Any]:
    rows = make_rows(9, seed=2)
    folder = write_data(
        tmp_path / "data",
        toy=make_rows(30),
        wanted=rows[:4],
        wanted_too=rows[4:],
    )
    changes = {"component_name": "less", "warmup_step": 2, "update_step": 2, "update_times": 1, "target": "wanted"}
    made = config(train_type="dynamic_select", dataset="toy", dataset_dir=str(folder), **changes)
    return {key: value for key, value in made.items() if key not in ("component", "eval_dataset")}


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, {"wanted": 4}),
        ({"target": "wanted, wanted_too"}, {"wanted": 4, "wanted_too": 5}),
        ({"target": ["wanted_too"], "target_groups": "task"}, {"task1": 2, "task2": 2, "task0": 1}),
    ],
    ids=str,
)
def test_groups_are_data_sets_or_a_columns_values(settings, tmp_path: Path, changes, groups) -> None:
    output_dir = train({**settings, **changes}, tmp_path)
    ledger = Ledger(output_dir)
    run = ledger.run()
    assert run["target"]["groups"] == groups
    assert run["target"]["order"] == list(groups)
    columns = ledger.signals_of(ledger.segments()[1])
    similarities = {name for name in columns if name.startswith("similarity_")}
    assert similarities == {f"similarity_{group}" for group in range(len(groups))}
    import pyarrow.parquet as pq

    rows = pq.read_table(output_dir / "dataflex" / "rows.parquet").to_pydict()
    assert set(rows["dataset"]) == {"toy"}
    assert rows["source_row"] == list(range(30)), "the pool's own trace is not touched by the target's"


def test_similarities_are_cosines_with_the_targets_gradients(settings, tmp_path: Path) -> None:
    """Of the model at step 2, from its own checkpoint, by autograd."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    settings = {**settings, "component": {"params": {"gradient_type": "sgd"}}, "finetuning_type": "full"}
    settings |= {"save_steps": 2, "save_strategy": "steps"}
    for key in [key for key in settings if key.startswith("lora")]:
        settings.pop(key)
    output_dir = train(settings, tmp_path)
    found_N = Ledger(output_dir).signals_of(Ledger(output_dir).segments()[1])["similarity_0"]
    model = AutoModelForCausalLM.from_pretrained(output_dir / "checkpoint-2", dtype=torch.float32).eval()
    assert load_file(output_dir / "checkpoint-2" / "model.safetensors")
    linear = [m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    if model.config.tie_word_embeddings:
        linear = [w for w in linear if w is not model.lm_head.weight]

    def gradient(features: dict[str, Any]) -> torch.Tensor:
        inputs = {name: torch.tensor([features[name]]) for name in ("input_ids", "labels")}
        loss = model(**inputs).loss
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, linear)]).double()

    pool, targets = tokenised(settings, "toy"), tokenised(settings, "wanted")
    wanted = [gradient(row) for row in targets]
    assert len(wanted) == 4
    included = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert included
    for i, row in enumerate(pool):
        g = gradient(row)
        mean = np.mean([float(g @ q / (g.norm() * q.norm())) for q in wanted])
        assert found_N[i] == pytest.approx(mean, abs=2e-4), i


def tokenised(settings: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Rows as LLaMA-Factory alone makes them."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    ours = ("train_type", "component_name", "component", "target", "warmup_step", "update_step", "update_times")
    host = {key: value for key, value in settings.items() if key not in ours}
    model_args, data_args, training_args, _, _ = get_train_args({**host, "dataset": name})
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    found = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    return [found[i] for i in range(len(found))]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": None}, r"less chooses what serves a target, and none is named; set target"),
        ({"component_name": "loss"}, r"target is set, but loss uses none"),
        ({"target": "nothing"}, r"the target \(nothing\) cannot be prepared: .*nothing"),
        ({"target": 3}, r"target is 3; it must name one or more data sets"),
        ({"target": None, "component_name": "loss", "target_groups": "task"}, r"target_groups is set, but target is"),
        ({"target_groups": "tusk"}, r"target_groups is 'tusk' \(did you mean 'task'\?\)"),
        ({"target": "toy"}, r"30 of 30 rows of the pool are target rows as well"),
        ({"warmup_step": 0}, r"warmup_step is 0, and less scales gradients"),
        ({"stage": "dpo"}, r"needs gradients of the loss of tokens, which stage dpo"),
        ({"component": {"params": {"engine": "factorised", "proj_dim": 8192}}}, r"proj_dim is 8192.*8100 or 8281"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_before_anything_is_written(settings, tmp_path: Path, changes, said) -> None:
    changed = {key: value for key, value in {**settings, **changes}.items() if value is not None}
    with pytest.raises((ConfigError, DataFlexError), match=said):
        train(changed, tmp_path)
    assert not (tmp_path / "run" / "dataflex").exists()


def test_the_user_guides_parameters_are_taken_and_what_has_no_effect_is_said(settings, tmp_path: Path, capsys) -> None:
    params = {"gradient_type": "adam", "proj_dim": 4096, "seed": 123, "cache_dir": str(tmp_path / "cache")}
    train({**settings, "component": {"params": params}}, tmp_path)
    assert "proj_dim 4096 is not used: engine exact projects nothing" in capsys.readouterr().out
    assert (tmp_path / "cache" / "gradients").is_dir()


def test_plan_and_audit_know_the_target(settings, tmp_path: Path, capsys) -> None:
    from dataflex.cli.audit import audit
    from dataflex.cli.plan import plan

    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(settings))
    plan(str(path), [])
    said = " ".join(capsys.readouterr().out.split())
    assert "Target: wanted, groups one a data set; its rows are not trained." in said
    assert "gradient rows (forward and backward), target rows besides" in said
    output_dir = train(settings, tmp_path)
    assert audit([str(output_dir)], run_code=False) == 0
    assert json.dumps(Ledger(output_dir).run()["target"])
