"""Peak extra memory of head and loss: the model's own logits against label positions in chunks.

python -m benchmarks.memory [--tokens 8192] --out FILE.json

A Llama of the 1B shape without layers, vocabulary 128k, so that nothing but embedding, head and loss is left; fp32 on
the CPU, on Linux. Each way runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.scoring import VOCABULARY, peak_extra
from dataflex.signals.head import LabelHead

WIDTH = 512  # tokens of a row


def peak_of(way: str, tokens: int) -> int:
    """Bytes that one batch needs beyond the model."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=0,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(3, VOCABULARY, (tokens // WIDTH, WIDTH))
    labels = ids.clone()
    labels[:, : 2 * WIDTH // 3] = -100
    head = LabelHead(model)
    with torch.no_grad():
        model(input_ids=ids[:1, :8], use_cache=False)

        def padded() -> None:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")

        def chunked() -> None:
            with head.engaged():
                head.losses(lambda: model(input_ids=ids, use_cache=False), labels)

        return peak_extra(padded if way == "padded" else chunked, torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=("padded", "dataflex"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(peak_of(args.way, args.tokens))
        return
    peaks = {}
    for way in ("padded", "dataflex"):
        command = [sys.executable, "-m", "benchmarks.memory", "--way", way, "--tokens", str(args.tokens)]
        peaks[way] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"{way:9} {peaks[way] / 2**20:8.0f} MiB")
    print(f"dataflex / padded: {peaks['dataflex'] / peaks['padded']:.3f}")
    if args.out:
        args.out.write_text(json.dumps({"tokens": args.tokens, "peak_extra_bytes": peaks}, indent=1))


if __name__ == "__main__":
    main()
