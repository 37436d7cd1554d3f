"""The tokenizer's own chat template: a prompt, an answer after it, and the token that ends the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataflex.core.errors import ConfigError
from dataflex.evaluate.thinking import NO_THOUGHTS, THINK, spoken

MARK = "x4711x"  # a text that no template holds


class Chat:
    """Writes conversations as the chat template does.

    Args:
        enable_thinking: what the template is told; None tells it nothing.

    Raises:
        ConfigError: no chat template, or one that refuses a question and its answer.
    """

    def __init__(self, tokenizer: Any, enable_thinking: bool | None) -> None:
        self._tokenizer = tokenizer
        self._options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError("the tokenizer has no chat template; set template: plain, or a template of LLaMA-Factory")
        _, found, after = self._text([_said("user", "?"), _said("assistant", MARK)]).rpartition(MARK)
        self._after = after if found else ""
        self._end = _end(tokenizer, self._after)

    @property
    def stop_ids(self) -> list[int]:
        """The token that ends an answer in the template, where it has one: often another than the tokenizer's."""
        return [self._tokenizer.convert_tokens_to_ids(self._end.lstrip())] if self._end else []

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens up to where the answer begins."""
        return self._ids(self._text(messages, add_generation_prompt=True))

    def row(self, messages: Sequence[dict[str, str]], answer: str) -> tuple[list[int], list[int]]:
        """Tokens before the answer, and those of the answer and of its end.

        Empty thoughts that the template writes are no part of the answer, nor is what follows its end.
        """
        if self._options.get("enable_thinking") is False:
            answer = spoken(answer)
        before = self._text(messages, add_generation_prompt=True)
        whole = self._text([*messages, _said("assistant", answer)])
        thinks = THINK[1] in answer
        if whole.startswith(before):
            after = whole[len(before) :].removesuffix(self._after) + self._end
            empty = None if thinks else NO_THOUGHTS.match(after)
            if empty:
                before, after = before + empty[0], after[empty.end() :]
        else:  # what has been said is written otherwise than what is to be said
            if not thinks and before.rstrip().endswith(THINK[0]):
                before = f"{before.rstrip()}\n\n{THINK[1]}\n\n"
            after = answer + self._end
        ids, prompt = self._ids(before + after), self._ids(before)
        # Where a token lies across the border, both sides are cut on their own: the prompt is what a model is given.
        return prompt, ids[len(prompt) :] if ids[: len(prompt)] == prompt else self._ids(after)

    def _text(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return self._tokenizer.apply_chat_template(list(messages), tokenize=False, **options, **self._options)
        except (TemplateError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"the tokenizer's chat template refuses a conversation ({reason}); set template: plain, or a template "
                "of LLaMA-Factory"
            ) from error

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids  # the template writes those that it wants


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _end(tokenizer: Any, after: str) -> str:
    """What follows an answer up to the first special token; "" where none follows at once."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    text = after.lstrip()
    token = max((t for t in {*added, *tokenizer.all_special_tokens} if text.startswith(t)), key=len, default="")
    return after[: len(after) - len(text)] + token if token else ""
