"""What of a template is prompt, what is answer and what ends it; thoughts are kept and are no part of an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dataflex.core.errors import ConfigError
from dataflex.evaluate.prompts import Prompter
from dataflex.evaluate.questions import Question
from dataflex.evaluate.thinking import spoken
from tests.evaluate.conftest import byte_level_tokenizer, evaluate

QWEN3 = (  # as far as thoughts go: the last answer is written with thoughts, empty ones if it has none
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set thought = m.content.split('</think>')[0].split('<think>')[-1] %}"
    "<think>\n{{ (thought if '</think>' in m.content else '').strip() }}\n</think>\n\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
R1 = (  # thoughts begin in the prompt, and what was said is written without them
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
HEAD = "<|im_start|>user\nred fox ?<|im_end|>\n<|im_start|>assistant\n"


def tokenizer(chat_template: str | None) -> Any:
    found = byte_level_tokenizer(special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], plain=["<think>", "</think>"])
    found.chat_template = chat_template
    return found


def sides(prompter: Prompter, answer: str) -> tuple[str, str, str]:
    """The prompt of a question; of a row what carries no labels, and what does."""
    question = Question(text="red fox ?", answer=answer)
    row = prompter.row(question, answer)
    at = sum(label == -100 for label in row["labels"])
    assert row["labels"] == [-100] * at + row["input_ids"][at:]
    decoded = (prompter.prompt(question), row["input_ids"][:at], row["input_ids"][at:])
    return tuple(prompter.tokenizer.decode(ids) for ids in decoded)  # type: ignore[return-value]


@pytest.mark.parametrize("enable_thinking", [True, False, None])
def test_empty_thoughts_of_llamafactorys_template_are_no_part_of_the_answer(enable_thinking: bool | None) -> None:
    pytest.importorskip("llamafactory")
    prompter = Prompter(tokenizer(None), "qwen3", enable_thinking=enable_thinking)
    prompt, before, answer = sides(prompter, "blue")
    assert prompt == (HEAD if enable_thinking else HEAD + EMPTY)
    assert before == HEAD + EMPTY
    assert answer == "blue<|im_end|>\n"
    assert prompter.thoughts == ("<think>", "</think>")
    thoughtful = "<think>\nhm\n</think>\n\nblue"
    _, before, answer = sides(prompter, thoughtful)
    if enable_thinking is False:
        assert (before, answer) == (HEAD + EMPTY, "blue<|im_end|>\n")
    else:
        assert (before, answer) == (HEAD, f"{thoughtful}<|im_end|>\n")


def test_one_prompter_does_not_change_another() -> None:
    """LLaMA-Factory's template is one object, which keeps what it was told last."""
    pytest.importorskip("llamafactory")
    thinks = Prompter(tokenizer(None), "qwen3", enable_thinking=True)
    Prompter(tokenizer(None), "qwen3", enable_thinking=False)
    assert sides(thinks, "blue")[0] == HEAD


@pytest.mark.parametrize("enable_thinking", [True, False, None])
def test_empty_thoughts_of_a_chat_template_are_no_part_of_the_answer(enable_thinking: bool | None) -> None:
    prompter = Prompter(tokenizer(QWEN3), "chat", enable_thinking=enable_thinking)
    prompt, before, answer = sides(prompter, "blue")
    assert prompt == (HEAD + EMPTY if enable_thinking is False else HEAD)
    assert (before, answer) == (HEAD + EMPTY, "blue<|im_end|>")
    thoughtful = "<think>\nhm\n</think>\n\nblue"
    _, before, answer = sides(prompter, thoughtful)
    if enable_thinking is False:
        assert (before, answer) == (HEAD + EMPTY, "blue<|im_end|>")
    else:
        assert (before, answer) == (HEAD, f"{thoughtful}<|im_end|>")


def test_thoughts_that_begin_in_the_prompt_are_closed_before_an_answer_without_any() -> None:
    prompt, before, answer = sides(Prompter(tokenizer(R1), "chat"), "blue")
    assert prompt == HEAD + "<think>\n"
    assert (before, answer) == (HEAD + EMPTY, "blue<|im_end|>")


def test_a_chat_answer_ends_with_the_templates_token() -> None:
    """A base model's end token is another than its chat template's, and its generation config knows the former."""
    prompter = Prompter(tokenizer(CHATML), "chat")
    ends = prompter.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert prompter.stop_ids == sorted(ends)
    assert sides(prompter, "blue") == (HEAD, HEAD, "blue<|im_end|>")
    assert Prompter(tokenizer(CHATML.replace("<|im_end|>", "")), "chat").stop_ids == ends[:1]


def test_a_chat_template_that_refuses_is_a_sentence() -> None:
    refusing = "{{ raise_exception('roles must be kings and queens') }}"
    with pytest.raises(ConfigError, match=r"refuses a conversation \(roles must be kings and queens\); set template"):
        Prompter(tokenizer(refusing), "chat")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("blue", "blue"),
        ("<think>\n\n</think>\n\nblue", "blue"),
        ("hm\n</think>\n\nblue", "blue"),
        ("<think>a</think>b<think>c</think> blue", "blue"),
        ("<think>\nit goes on", ""),
    ],
)
def test_an_answer_is_what_follows_the_last_thoughts(text: str, answer: str) -> None:
    assert spoken(text) == answer


@pytest.fixture
def thinking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """Makes the model say given texts."""

    def says(texts: Sequence[str]) -> None:
        monkeypatch.setattr(
            "dataflex.evaluate.generate._batch", lambda m, t, given, *_, seed: list(texts[: len(given)])
        )

    return says


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_thoughts_are_kept_and_are_not_scored(config, tmp_path: Path, thinking, template: str) -> None:
    rows = [{"input": "red ?", "output": "blue dog"}, {"input": "fox ?", "output": "<think>\nx\n</think>\n\nblue dog"}]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    text = "<think>\nred\n</think>\n\nblue dog"
    thinking([text, text])
    data = [{"name": "qa", "path": str(tmp_path / "qa.json")}]
    generation = {"max_new_tokens": 6, "batch_tokens": 1000}
    results = evaluate(
        config(template=template, data=data, generation=generation, metrics=["exact_match", "f1"]), tmp_path
    )
    metrics = {name: entry["models"]["tiny"]["value"] for name, entry in results["data"]["qa"]["metrics"].items()}
    is_chat = template == "chat"
    assert (metrics["exact_match"] == 1.0) == (metrics["f1"] == 1.0) == is_chat
    answers = json.loads((tmp_path / "out" / "answers" / "qa_answers_tiny.json").read_text())
    assert [row["model_generated_answer"] for row in answers] == ["blue dog" if is_chat else text] * 2
    assert (answers[1]["output"] == "blue dog") == is_chat
    kept = (tmp_path / "out" / "parts" / "tiny" / "qa.answers.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["value"] for line in kept] == [text] * 2


def test_what_a_template_is_told_of_thinking_makes_other_pieces(config, tmp_path: Path) -> None:
    evaluate(config(template="chat", metrics=["loss"]), tmp_path)
    part = tmp_path / "out" / "parts" / "tiny" / "qa.losses.json"
    before = json.loads(part.read_text())["identity"]
    results = evaluate(config(template="chat", metrics=["loss"], enable_thinking=False), tmp_path)
    assert results["enable_thinking"] is False
    assert json.loads(part.read_text())["identity"] != before
