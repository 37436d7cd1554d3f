"""What DataFlow's QA evaluation reads: answers beside questions and references, and configurations for its commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.evaluate.generate import Generation
from dataflex.evaluate.judge import Judge
from dataflex.evaluate.questions import Question
from dataflex.ledger.files import write_atomic

KEYS = ("input", "output", "model_generated_answer")


def write_answers(path: Path, questions: Sequence[Question], answers: Sequence[str]) -> None:
    """A JSON list of ``input``, ``output`` and ``model_generated_answer``, in the order of the file.

    The input of a row with earlier turns is all of them as a text.
    """
    rows = [
        dict(zip(KEYS, (question.conversation, question.answer, answer), strict=True))
        for question, answer in zip(questions, answers, strict=True)
    ]
    write_atomic(path, json.dumps(rows, ensure_ascii=False, indent=1).encode())


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """The questions and references alone, for the commands that generate anew."""
    rows = [{"input": question.conversation, "output": question.answer} for question in questions]
    write_atomic(path, json.dumps(rows, ensure_ascii=False, indent=1).encode())


def write_configs(
    folder: Path, models: Mapping[str, str], data: Sequence[str], how: Generation, asked: Judge | None = None
) -> None:
    """``eval_local.py`` and ``eval_api.py``, for ``dataflow eval local`` and ``dataflow eval api`` in ``folder``.

    Both take DataFlow's own program and put the models and files of this evaluation into it. DataFlow generates by
    itself, with vLLM on a GPU; ``check_answers.py`` compares the answers that are there, without one.

    Args:
        models: names and folders of whole models; DataFlow loads no adapters.
        data: names of the data sets, whose files lie in ``folder``.
        how: so that DataFlow writes answers as they were written here.
        asked: the judge of this evaluation, which the program with a judge behind an address asks as well.
    """
    targets = [
        {
            "name": name,
            "path": path,
            "vllm_tensor_parallel_size": 1,
            "vllm_temperature": how.temperature,
            "vllm_top_p": how.top_p,
            "vllm_max_tokens": how.max_new_tokens,
            "vllm_seed": how.seed,
            "answer_prompt": "",  # before the question; DataFlow's own speaks of academic literature
        }
        for name, path in models.items()
    ]
    benches = [
        {
            "name": name,
            "input_file": f"{name}.json",
            "question_key": "input",
            "reference_answer_key": "output",
            "output_dir": f"eval_results/{name}",
        }
        for name in data
    ]
    service = {"api_url": "SET_ME"}
    if asked is not None:
        address = f"{asked.address.rstrip('/')}/chat/completions"
        service = {"api_url": address, "model_name": asked.model, "api_key_env": asked.key_env}
    for kind, judge in (("local", {"model_path": "SET_ME"}), ("api", service)):
        write_atomic(folder / f"eval_{kind}.py", _config(kind, judge, targets, benches).encode())
    write_atomic(folder / "check_answers.py", _CHECK.encode())


def _config(kind: str, judge: dict[str, str], targets: list[dict[str, Any]], benches: list[dict[str, Any]]) -> str:
    return f'''"""Run by `dataflow eval {kind}` in this folder; written by dataflex-cli evaluate."""

from dataflow.cli_funcs.eval_pipeline import eval_{kind} as program
from dataflow.core.prompt import DIYPromptABC

# Release 1.0.13 refuses the prompt of its own file, as its class is not one of these.
if not issubclass(program.FairAnswerJudgePrompt, DIYPromptABC):
    program.FairAnswerJudgePrompt = type("JudgePrompt", (program.FairAnswerJudgePrompt, DIYPromptABC), {{}})
# The judge: replace what is SET_ME, and change what else stands under JUDGE_MODEL_CONFIG in DataFlow's own file.
program.JUDGE_MODEL_CONFIG.update({_literal(judge)})
# Without a judge, answers compared as mathematics: take the # from these two lines.
# program.EVAL_CONFIG["compare_method"] = "match"
# program.create_judge_serving = lambda: None
program.TARGET_MODELS = {_literal(targets)}
program.BENCH_CONFIG = {_literal(benches)}

get_evaluator_config = program.get_evaluator_config
'''


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=4).replace(": null", ": None")


_CHECK = '''"""Compare answers that are there with the references, by DataFlow's evaluator; needs no GPU and no judge.

python check_answers.py ANSWERS.json
"""

import sys
from pathlib import Path

from dataflow.operators.core_text import BenchDatasetEvaluatorQuestion
from dataflow.prompts.model_evaluation.general import AnswerJudgePromptQuestion
from dataflow.utils.storage import FileStorage

answers = str(Path(sys.argv[1]).resolve())
storage = FileStorage(first_entry_file_name=answers, cache_path=".cache", file_name_prefix="checked", cache_type="json")
# A prompt must be given although nobody is asked: release 1.0.13 refuses its own default.
evaluator = BenchDatasetEvaluatorQuestion(
    compare_method="match", prompt_template=AnswerJudgePromptQuestion(), eval_result_path=answers + ".result.json"
)
evaluator.run(
    storage=storage.step(),
    input_test_answer_key="model_generated_answer",
    input_gt_answer_key="output",
    input_question_key="input",
)
print(open(answers + ".result.json").read())
'''
