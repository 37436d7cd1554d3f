"""From a question to tokens: as plain text, by the tokenizer's chat template, or by a template of LLaMA-Factory."""

from __future__ import annotations

from typing import Any

from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.evaluate.questions import Question
from dataflex.signals.head import IGNORE_INDEX

PLAIN, CHAT = "plain", "chat"


class Prompter:
    """Encodes questions for one tokenizer.

    Args:
        template: ``plain``: the question, ``delimiter``, the answer, and nothing else; ``chat``: the tokenizer's own
            chat template; else the name of a template of LLaMA-Factory.
        delimiter: between question and answer, for ``plain``.

    Raises:
        ConfigError: no such template, or a tokenizer without one.
    """

    def __init__(self, tokenizer: Any, template: str, delimiter: str = " ") -> None:
        self.tokenizer, self._template, self._delimiter = tokenizer, template, delimiter
        self._factory: Any = None
        if template == CHAT and not getattr(tokenizer, "chat_template", None):
            raise ConfigError("the tokenizer has no chat template; set template: plain, or a template of LLaMA-Factory")
        if template not in (PLAIN, CHAT):
            self._factory = _factory_template(tokenizer, template)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's own, and what the template says of LLaMA-Factory's."""
        if self._factory is not None:
            return sorted(self._factory.get_stop_token_ids(self.tokenizer))
        return [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []

    def prompt(self, question: Question) -> list[int]:
        """Tokens up to where the answer begins."""
        if self._template == PLAIN:
            return self.tokenizer(self._plain(question)).input_ids
        if self._template == CHAT:
            return _ids(
                self.tokenizer.apply_chat_template(_messages(question), add_generation_prompt=True, tokenize=True)
            )
        return self._encoded(question, "")[0]

    def row(self, question: Question, answer: str) -> dict[str, list[int]]:
        """Tokens of question and answer; only the answer carries labels."""
        if self._template == PLAIN:
            before = self._plain(question)
            # Spaces at the question's end belong to the answer's first token, as tokenizers cut them.
            stripped = before.rstrip()
            continuation = before[len(stripped) :] + self._delimiter + answer
            whole = self.tokenizer(stripped + continuation).input_ids
            prompt = self.tokenizer(stripped).input_ids
            answered = whole[len(prompt) :]
        elif self._template == CHAT:
            prompt = self.prompt(question)
            said = [*_messages(question), {"role": "assistant", "content": answer}]
            whole = _ids(self.tokenizer.apply_chat_template(said, tokenize=True))
            answered = whole[len(prompt) :]
            if whole[: len(prompt)] != prompt:
                answered = [*self.tokenizer(answer, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        else:
            prompt, answered = self._encoded(question, answer)
        return {"input_ids": [*prompt, *answered], "labels": [IGNORE_INDEX] * len(prompt) + list(answered)}

    def _plain(self, question: Question) -> str:
        return "\n".join([*(text for _, text in question.turns), question.text])

    def _encoded(self, question: Question, answer: str) -> tuple[list[int], list[int]]:
        messages = [{"role": role, "content": text} for role, text in question.turns if role != "system"]
        messages += [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer}]
        system = next((text for role, text in question.turns if role == "system"), None)
        prompt, answered = self._factory.encode_oneturn(self.tokenizer, messages, system)
        return list(prompt), list(answered)


def _messages(question: Question) -> list[dict[str, str]]:
    return [
        *({"role": role, "content": text} for role, text in question.turns),
        {"role": "user", "content": question.text},
    ]


def _ids(encoded: Any) -> list[int]:
    """Newer transformers give a mapping where older ones give the tokens."""
    return list(encoded["input_ids"] if hasattr(encoded, "keys") else encoded)


def _factory_template(tokenizer: Any, name: str) -> Any:
    try:
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.data.template import TEMPLATES
        from llamafactory.hparams import DataArguments
    except ImportError as error:
        raise ConfigError(
            f"template is {shown(name)}, and LLaMA-Factory, which has it, is not installed; set template: chat or plain"
        ) from error
    if name not in TEMPLATES:
        known = [PLAIN, CHAT, *TEMPLATES]
        raise ConfigError(
            f"template is {shown(name)}{did_you_mean(name, known)}; write plain, chat, or one of LLaMA-Factory"
        )
    return get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
