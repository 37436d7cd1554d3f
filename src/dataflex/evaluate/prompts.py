"""From a question to tokens: as plain text, by the tokenizer's chat template, or by a template of LLaMA-Factory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.evaluate.chat import Chat
from dataflex.evaluate.questions import Question
from dataflex.evaluate.thinking import THINK
from dataflex.signals.head import IGNORE_INDEX

PLAIN, CHAT = "plain", "chat"


class Prompter:
    """Encodes questions for one tokenizer.

    Args:
        template: ``plain``: the question, ``delimiter``, the answer, and nothing else; ``chat``: the tokenizer's own
            chat template; else the name of a template of LLaMA-Factory.
        delimiter: between question and answer, for ``plain``.
        enable_thinking: what templates of reasoning models are told.

    Raises:
        ConfigError: no such template, or a tokenizer without one.
    """

    def __init__(
        self, tokenizer: Any, template: str, delimiter: str = " ", *, enable_thinking: bool | None = True
    ) -> None:
        self.tokenizer, self._template, self._delimiter = tokenizer, template, delimiter
        self._chat = Chat(tokenizer, enable_thinking) if template == CHAT else None
        self._factory: Any = None
        if template not in (PLAIN, CHAT):
            # A copy, since LLaMA-Factory's own is shared by all who name it.
            self._factory = replace(_factory_template(tokenizer, template), enable_thinking=enable_thinking)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's own, and what the template says of LLaMA-Factory's."""
        if self._factory is not None:
            return sorted(self._factory.get_stop_token_ids(self.tokenizer))
        own = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        return sorted({*own, *(self._chat.stop_ids if self._chat is not None else [])})

    @property
    def thoughts(self) -> tuple[str, str] | None:
        """How the thoughts before an answer begin and end; None where text is only text."""
        if self._factory is not None:
            opening, closing = self._factory.thought_words
            return opening.strip(), closing.strip()
        return THINK if self._chat is not None else None

    def prompt(self, question: Question) -> list[int]:
        """Tokens up to where the answer begins."""
        if self._template == PLAIN:
            return self.tokenizer(self._plain(question)).input_ids
        if self._chat is not None:
            return self._chat.prompt(_messages(question))
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
        elif self._chat is not None:
            prompt, answered = self._chat.row(_messages(question), answer)
        else:
            prompt, answered = self._encoded(question, answer)
            empty = self._factory.get_thought_word_ids(self.tokenizer)
            # Empty thoughts, which the template of a reasoning model puts before an answer that has none.
            if self._factory.thought_words[1].strip() not in answer and answered[: len(empty)] == empty:
                prompt, answered = prompt + empty, answered[len(empty) :]
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
