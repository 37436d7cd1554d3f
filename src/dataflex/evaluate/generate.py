"""Answers in batches, kept as they come: a run that was cut short goes on with the batches that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.core.errors import DataFlexError
from dataflex.evaluate import part_lines


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How answers are written.

    Args:
        max_new_tokens: of one answer.
        until: texts at which an answer ends, beside the end-of-text token; they are no part of it.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        top_p: of the drawn ones.
        seed: of the draws.
        batch_tokens: tokens of one batch, prompts padded to the longest and room for the answers included.
    """

    max_new_tokens: int = 256
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_tokens: int = 8192


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    how: Generation,
    part: Path,
    identity: str,
    *,
    advance: Callable[[int], object] = lambda num_rows: None,
) -> list[str]:
    """An answer for each prompt, in their order.

    Prompts of similar length go together, padded on the left. Greedy answers do not depend on their batch mates but for
    the order of summation. Every finished batch is appended to ``part``; what is there already is not written again.

    Args:
        prompts: tokens of each.
        stop_ids: tokens that end an answer, beside those that the model's own generation config names.
        part: a .jsonl file.
        identity: of everything that the answers depend on; a part of another identity is begun anew.
        advance: told the number of rows of each batch, also of those that were there.

    Raises:
        DataFlexError: a batch does not fit in the device's memory.
    """
    found = part_lines.begin(part, identity)
    for rows_B in batches(np.array([len(prompt) for prompt in prompts]), how):
        if not all(int(row) in found for row in rows_B):
            given, seed = [prompts[row] for row in rows_B], how.seed + int(rows_B[0])
            try:
                texts = _batch(model, tokenizer, given, stop_ids, how, seed=seed)
            except torch.OutOfMemoryError as error:
                raise DataFlexError(
                    f"{len(rows_B)} answers at a time do not fit in the device's memory; lower batch_tokens of "
                    f"generation, which is {how.batch_tokens}"
                ) from error
            written = dict(zip(rows_B.tolist(), texts, strict=True))
            part_lines.append(part, written)
            found |= written
        advance(len(rows_B))
    return [found[row] for row in range(len(prompts))]


def batches(lengths_N: np.ndarray, how: Generation) -> Iterator[np.ndarray]:
    """Rows of each batch, the longest prompts first: what does not fit in memory fails at once.

    >>> [rows.tolist() for rows in batches(np.array([2, 9, 8, 1]), Generation(max_new_tokens=1, batch_tokens=20))]
    [[1, 2], [0, 3]]
    """
    order = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order):
        widest = int(lengths_N[order[start]]) + how.max_new_tokens
        size = max(1, how.batch_tokens // widest)
        yield order[start : start + size]
        start += size


def _batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    how: Generation,
    *,
    seed: int,
) -> list[str]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    own = model.generation_config.eos_token_id
    stops = {*stop_ids, *(own if isinstance(own, list) else [] if own is None else [own])}
    draws = how.temperature > 0
    # Each of a model's own defaults is named, so that none of them sneaks in.
    options: dict[str, Any] = {
        "do_sample": draws,
        "temperature": how.temperature if draws else None,
        "top_p": how.top_p if draws else None,
        "top_k": 0 if draws else None,
        "num_beams": 1,
        "use_cache": True,
        "repetition_penalty": 1.0,
        "max_new_tokens": how.max_new_tokens,
        "eos_token_id": sorted(stops) or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if how.until:
        options["stopping_criteria"] = [_Ended(tokenizer, how.until, width)]
    if draws:
        torch.manual_seed(seed)
    with torch.inference_mode():
        written = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), **options)
    texts = tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
    return [_cut(text, how.until) for text in texts]


class _Ended:
    """Stops rows in whose answer an end has been written; ends may lie across tokens."""

    def __init__(self, tokenizer: Any, until: Sequence[str], width: int) -> None:
        self._tokenizer, self._until, self._width = tokenizer, until, width
        self._tail = 2 * max(map(len, until)) + 16  # tokens: more than an end can be made of

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        written = input_ids[:, max(self._width, input_ids.shape[1] - self._tail) :]
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        ended = [any(end in text for end in self._until) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def _cut(text: str, until: Sequence[str]) -> str:
    """The text up to the first of the ends."""
    for end in until:
        text = text.split(end)[0]
    return text
