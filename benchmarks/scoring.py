"""How fast the scoring pass is, against the plain ways and against the machine's limit.

python -m benchmarks.scoring --device cpu|cuda [--model llama-1b|llama-8b|smollm2|PATH] --out FILE.json

Four ways over the same rows, in turn after every batch, so that a drift of the machine's speed meets all alike:
plain     batch 1, the model's own loss
padded    random batches of 8, padded, the model's own logits
dataflex  one pass of the sweep as it runs in training: with its calibration and the check of its fast path
limit     as many tokens in one dense, equally long batch shape at its best size: body, and head at the labels only
"""

from __future__ import annotations

import argparse
import ctypes
import json
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
from dataflex.signals.loss import LossSignal, rows_to_check
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
    """The four ways over one set of rows. Each works off its rows piece by piece and keeps its own clock."""

    def __init__(self, model: nn.Module, rows: list[dict[str, list[int]]], device: torch.device) -> None:
        self.model, self.rows, self.device = model, rows, device
        self.lengths = np.array([len(row["input_ids"]) for row in rows])
        self.num_labels = sum(label != -100 for row in rows for label in row["labels"][1:])
        self.label_share = self.num_labels / int(self.lengths.sum())
        self.batch_tokens: int | None = None
        self.limit_shape = (1, max(8, round(float(self.lengths.mean()))))
        self.tokens = dict.fromkeys(WAYS, 0)
        self.seconds = dict.fromkeys(WAYS, 0.0)
        self._left = {name: np.random.default_rng(1).permutation(len(rows)) for name in ("plain", "padded")}

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def plain(self, rows: np.ndarray) -> None:
        for row in rows:
            batch = self.to_device(collate([self.rows[row]]))
            batch.pop("attention_mask")
            self.model(**batch, use_cache=False).loss.item()

    def padded(self, rows: np.ndarray) -> None:
        for start in range(0, len(rows), 8):
            batch = self.to_device(collate([self.rows[row] for row in rows[start : start + 8]]))
            labels = batch.pop("labels")
            logits = self.model(**batch, use_cache=False).logits[:, :-1].float()
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
            losses.view(len(labels), -1).sum(1).tolist()

    def limit(self, num_batches: int) -> None:
        for _ in range(num_batches):
            self.dense(*self.limit_shape)

    def dense(self, batch: int, width: int) -> None:
        ids = torch.randint(3, 1000, (batch, width), device=self.device)
        labels = torch.full_like(ids, -100)
        labels[:, -max(1, round(self.label_share * width)) :] = 5
        head = LabelHead(self.model)
        with head.engaged():
            head.losses(lambda: self.model(input_ids=ids, use_cache=False), labels)

    def find_limit_shape(self) -> None:
        """The fastest of some dense shapes of the rows' mean length, each timed three times."""
        width, best_rate = self.limit_shape[1], 0.0
        for batch in (4, 8, 16, 32, 64, 128, 256, 512):
            if batch * width > (4096 if self.device.type == "cpu" else 131072):
                break
            self.dense(batch, width)
            seconds = min(timed(lambda b=batch: self.dense(b, width), self.device) for _ in range(3))
            if batch * width / seconds > best_rate:
                self.limit_shape, best_rate = (batch, width), batch * width / seconds

    def dataflex(self, rows: np.ndarray, advance: Callable[[int], None]) -> None:
        signal = LossSignal(
            model=self.model,
            features=lambda rows_B: [dict(self.rows[row]) for row in rows_B],
            collate=collate,
            to_device=self.to_device,
            autocast=nullcontext,
        )
        with signal.engaged(rows_to_check(self.lengths, rows)) as why_not:
            assert why_not is None, why_not
            ranks = Collective(device=self.device)
            self.batch_tokens = sweep(signal, self.lengths, rows, ranks=ranks, advance=advance).batch_tokens

    def measure(self) -> None:
        """One pass of ours; after each of its batches the other ways catch up with the share of tokens done."""
        done, num_tokens = 0, int(self.lengths.sum())
        paused = 0.0

        def others(new_tokens: int) -> None:
            nonlocal done, paused
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            began = time.perf_counter()
            done += new_tokens
            self._catch_up(done / num_tokens)
            paused += time.perf_counter() - began

        whole = timed(lambda: self.dataflex(np.arange(len(self.rows)), others), self.device)
        self.tokens["dataflex"], self.seconds["dataflex"] = num_tokens, whole - paused

    def _catch_up(self, share: float) -> None:
        """Let every other way do its part up to this share of all rows."""
        for name in ("plain", "padded"):
            ahead = len(self._left[name]) - round((1 - share) * len(self.rows))
            ahead = ahead if share == 1 else ahead // 8 * 8
            part, self._left[name] = self._left[name][:ahead], self._left[name][ahead:]
            self._clock(name, int(self.lengths[part].sum()), lambda n=name, p=part: getattr(self, n)(p))
        batch = self.limit_shape[0] * self.limit_shape[1]
        num_batches = max(0, round((share * int(self.lengths.sum()) - self.tokens["limit"]) / batch))
        self._clock("limit", num_batches * batch, lambda: self.limit(num_batches))

    def _clock(self, name: str, tokens: int, work: Callable[[], None]) -> None:
        self.tokens[name] += tokens
        self.seconds[name] += timed(work, self.device)


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
    """Bytes that a call needs beyond what is held already: allocated on a CUDA device, resident on a CPU (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is no use of this call
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Resident bytes of this process: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


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
    longest = np.argsort(-ways.lengths)[:16]
    with undisturbed(model):
        ways.plain(longest[:2])
        ways.find_limit_shape()
        ways.measure()
        work = {
            "plain": lambda: ways.plain(longest),
            "padded": lambda: ways.padded(longest),
            "dataflex": lambda: ways.dataflex(longest, lambda num_tokens: None),
            "limit": lambda: ways.limit(1),
        }
        peaks = {name: peak_extra(work[name], device) for name in WAYS}
    peak = matmul_peak(device, next(model.parameters()).dtype)
    per_token = flops_per_token(model, ways.label_share)
    results = []
    for name in WAYS:
        rate = ways.tokens[name] / ways.seconds[name]
        results.append(
            {
                "name": name,
                "tokens_per_s": rate,
                "seconds": ways.seconds[name],
                "peak_extra_bytes": peaks[name],
                "share_of_matmul_peak": rate * per_token / peak,
            }
        )
        print(
            f"{name:9} {ways.seconds[name]:8.1f} s  {rate:9.0f} tokens/s  {peaks[name] / 2**20:6.0f} MiB  "
            f"{results[-1]['share_of_matmul_peak']:.2f} of the matmul peak ({peak / 1e12:.2f} TFLOP/s)"
        )
    rates = {result["name"]: result["tokens_per_s"] for result in results}
    print(
        ", ".join(f"dataflex / {name}: {rates['dataflex'] / rates[name]:.3f}" for name in ("plain", "padded", "limit"))
    )
    print(f"batches of {ways.batch_tokens} tokens, dense batches of {ways.limit_shape[0]} x {ways.limit_shape[1]}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    args.out.write_text(json.dumps({"device": name, "model": args.model, "results": results}, indent=1))


if __name__ == "__main__":
    main()
