"""A tokenizer, a small Llama with random weights and sums to learn from, all made here: nothing is downloaded."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of a sum."""
    words = [*SPECIAL, *"0123456789+=?.-", "sum", "is"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """Two layers of width 64."""
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def make_sums(num_rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Sums as prompt and completion; the kind says how many digits, and in a tenth of the rows the answer is wrong."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        digits = rng.choice([1, 2, 3])
        one, other = (rng.randrange(10**digits) for _ in range(2))
        wrong = rng.random() < 0.1
        answer = rng.randrange(10 ** (digits + 1)) if wrong else one + other
        kind = "wrong" if wrong else f"{digits} digits"
        rows.append({"prompt": f"{one} + {other} =", "completion": f" {answer} .", "kind": kind})
    return rows
