"""How fast the scoring pass is, against the plain ways and against the machine's limit.

python -m benchmarks.scoring --device cpu|cuda [--model llama-1b|llama-8b|smollm2|PATH] --out FILE.json

Four ways over the same rows, interleaved in blocks so that a drift of the machine's speed meets all alike:
plain     batch 1, the model's own loss
padded    random batches of 8, padded, the model's own logits
dataflex  the sweep as it runs in training
limit     as many tokens in one dense, equally long batch shape at its best size: body, and head at the labels only
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from dataflex.signals.base import undisturbed
from dataflex.signals.head import LabelHead
from dataflex.signals.loss import LossSignal
from dataflex.signals.sweep import Collective, sweep

SHAPES = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
VOCABULARY = 128_256
WAYS = ("plain", "padded", "dataflex", "limit")


def make_model(name: str, device: torch.device) -> nn.Module:
    """Random weights from a configuration, or a model folder; fp32 on a CPU, bf16 elsewhere."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if name in SHAPES:
        heads = SHAPES[name]["hidden_size"] // (64 if name == "llama-1b" else 128)
        config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=heads, num_key_value_heads=8, **SHAPES[name])
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        path = str(Path("~/.cache/dataflex/SmolLM2-135M-Instruct").expanduser()) if name == "smollm2" else name
        AutoConfig.from_pretrained(path)  # a clear error for a wrong path, before weights are read
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.to(device).eval()


def make_rows(count: int, vocabulary: int, max_length: int) -> list[dict[str, list[int]]]:
    """Lengths log-normal with median 120 and 95th percentile 600; two thirds of each row are prompt. Seed 0."""
    rng = np.random.default_rng(0)
    sigma = np.log(600 / 120) / 1.6449  # the normal's 95th percentile
    lengths = np.clip(np.exp(np.log(120) + sigma * rng.standard_normal(count)), 3, max_length).astype(int)
    rows = []
    for length in lengths.tolist():
        ids = rng.integers(3, vocabulary, length).tolist()
        prompt = 2 * length // 3
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def quickstart_rows(model_path: str) -> list[dict[str, list[int]]]:
    """The demo's pool, tokenised as a chat."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    pool = Path(__file__).parents[1] / "examples" / "quickstart" / "data" / "reasoning_pool.json"
    rows = []
    for row in json.loads(pool.read_text(encoding="utf-8")):
        prompt = tokenizer(f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n").input_ids
        answer = tokenizer(f"{row['output']}<|im_end|>\n").input_ids
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad on the right, with a mask, as a host's collator does."""
    width = max(len(feature["input_ids"]) for feature in features)

    def pad(name: str, value: int) -> torch.Tensor:
        return torch.tensor([feature[name] + [value] * (width - len(feature[name])) for feature in features])

    mask = [[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features]
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": torch.tensor(mask)}


class Ways:
    """The four ways over one set of rows; each takes some of the rows and returns seconds."""

    def __init__(self, model: nn.Module, rows: list[dict[str, list[int]]], device: torch.device) -> None:
        self.model, self.rows, self.device = model, rows, device
        self.lengths = np.array([len(row["input_ids"]) for row in rows])
        self.signal = LossSignal(
            model=model,
            features=lambda rows_B: [dict(rows[row]) for row in rows_B],
            collate=collate,
            to_device=self.to_device,
            autocast=nullcontext,
        )
        self.batch_tokens: int | None = None
        self.limit_shape: tuple[int, int] | None = None

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def plain(self, part: np.ndarray) -> None:
        for row in part:
            batch = self.to_device(collate([self.rows[row]]))
            batch.pop("attention_mask")
            self.model(**batch, use_cache=False).loss.item()

    def padded(self, part: np.ndarray) -> None:
        shuffled = np.random.default_rng(1).permutation(part)
        for start in range(0, len(shuffled), 8):
            batch = self.to_device(collate([self.rows[row] for row in shuffled[start : start + 8]]))
            labels = batch.pop("labels")
            logits = self.model(**batch, use_cache=False).logits[:, :-1].float()
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
            losses.view(len(labels), -1).sum(1).tolist()

    def dataflex(self, part: np.ndarray) -> None:
        ranks = Collective(device=self.device)
        order = part[np.argsort(self.lengths[part])]
        sample = order[[len(order) // 4, len(order) // 2, len(order) * 3 // 4]]
        with self.signal.engaged(sample) as why_not:
            assert why_not is None, why_not
            result = sweep(self.signal, self.lengths, part, ranks=ranks, batch_tokens=self.batch_tokens)
        self.batch_tokens = result.batch_tokens

    def limit(self, part: np.ndarray) -> None:
        tokens = int(self.lengths[part].sum())
        share = np.mean([np.mean(np.array(self.rows[row]["labels"]) != -100) for row in part])
        batch, width = self.limit_shape or self.find_limit_shape(part, float(share))
        for _ in range(max(1, round(tokens / (batch * width)))):
            self.dense(batch, width, float(share))

    def dense(self, batch: int, width: int, share: float) -> None:
        ids = torch.randint(3, 1000, (batch, width), device=self.device)
        labels = torch.full_like(ids, -100)
        labels[:, -max(1, round(share * width)) :] = 5
        head = LabelHead(self.model)
        with head.engaged():
            head.losses(lambda: self.model(input_ids=ids, use_cache=False), labels)

    def find_limit_shape(self, part: np.ndarray, share: float) -> tuple[int, int]:
        """The best of some dense shapes of the rows' mean length."""
        width = max(8, round(float(self.lengths[part].mean())))
        best, best_rate = (1, width), 0.0
        for batch in (1, 2, 4, 8, 16, 32, 64, 128):
            tokens = batch * width
            if tokens > (4096 if self.device.type == "cpu" else 131072):
                break
            self.dense(batch, width, share)
            seconds = timed(lambda b=batch: self.dense(b, width, share), self.device)
            if tokens / seconds > best_rate:
                best, best_rate = (batch, width), tokens / seconds
        self.limit_shape = best
        return best


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak_extra(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a call needs on a CUDA device beyond what is held already."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s of a large square product: the machine's own best."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    return max(2 * size**3 / timed(lambda: a @ a, device) for _ in range(5))


def flops_per_token(model: nn.Module, label_share: float) -> float:
    """Forward FLOPs of one token: twice the body's weights, plus the head's at label positions; no attention scores."""
    head = model.get_output_embeddings().weight.numel()
    embedding = model.get_input_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    body = sum(p.numel() for p in model.parameters()) - embedding - (0 if tied else head)
    return 2 * (body + label_share * head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--model", default="smollm2", help="llama-1b, llama-8b, smollm2 or a model folder")
    parser.add_argument("--rows", type=int, default=None, help="number of rows; default 240 on a CPU, 4096 elsewhere")
    parser.add_argument("--pool", choices=("lognormal", "quickstart"), default=None)
    parser.add_argument("--blocks", type=int, default=3, help="the rows are cut into so many blocks, measured in turn")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    model = make_model(args.model, device)
    if (args.pool or ("quickstart" if args.model == "smollm2" else "lognormal")) == "quickstart":
        rows = quickstart_rows(model.config.name_or_path)
    else:
        count = args.rows or (240 if args.device == "cpu" else 4096)
        rows = make_rows(count, model.config.vocab_size, max_length=2048)
    ways = Ways(model, rows, device)
    share = float(np.mean([np.mean(np.array(row["labels"]) != -100) for row in rows]))
    blocks = [np.arange(len(rows))[start :: args.blocks] for start in range(args.blocks)]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    peaks: dict[str, int] = {}
    with undisturbed(model):
        ways.limit(blocks[0][:8])  # finds its shape and warms up
        ways.plain(blocks[0][:2])
        for turn, block in enumerate(blocks):
            for name in WAYS[turn % 4 :] + WAYS[: turn % 4]:
                seconds[name].append(timed(lambda n=name, b=block: getattr(ways, n)(b), device))
        if device.type == "cuda":  # on a CPU: python -m benchmarks.memory, a process a way
            peaks = {name: peak_extra(lambda n=name: getattr(ways, n)(blocks[0]), device) for name in WAYS}
    tokens = [int(ways.lengths[block].sum()) for block in blocks]
    peak = matmul_peak(device, next(model.parameters()).dtype)
    per_token = flops_per_token(model, share)
    results = []
    for name in WAYS:
        rate = sum(tokens) / sum(seconds[name])
        results.append(
            {
                "name": name,
                "tokens_per_s": rate,
                "seconds": sum(seconds[name]),
                "peak_extra_bytes": peaks.get(name),
                "share_of_matmul_peak": rate * per_token / peak,
            }
        )
    by_name = {result["name"]: result for result in results}
    for result in results:
        print(
            f"{result['name']:9} {result['seconds']:8.1f} s  {result['tokens_per_s']:9.0f} tokens/s  "
            f"{result['share_of_matmul_peak']:.2f} of the matmul peak ({peak / 1e12:.2f} TFLOP/s)"
        )
    for one, other in (("dataflex", "plain"), ("dataflex", "padded"), ("dataflex", "limit")):
        ratios = [b / a for a, b in zip(seconds[one], seconds[other], strict=True)]
        print(f"{one} / {other}: {statistics.median(ratios):.2f} (blocks: {', '.join(f'{r:.2f}' for r in ratios)})")
    total = by_name["dataflex"]["tokens_per_s"] / by_name["limit"]["tokens_per_s"]
    print(
        f"over all blocks, dataflex / limit: {total:.3f}; batch of {ways.batch_tokens} tokens, limit {ways.limit_shape}"
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    args.out.write_text(json.dumps({"device": name, "model": args.model, "results": results}, indent=1))


if __name__ == "__main__":
    main()
