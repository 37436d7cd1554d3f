"""How fast rows are compared with targets by their gradients, against the usual loop and against other libraries.

python -m benchmarks.gradients --device cpu|cuda [--model smollm2|PATH] --out FILE.json

LoRA on all linear layers, Adam moments of three steps, target rows in groups, and for every pool row the mean cosine of
its Adam update with each group's gradients. The ways, in turn over the same part of the rows, each part once:
loop        one row at a time: the model's own loss, backward, Adam, cosines with the group vectors
projected   the same with a dense random projection to 4,096 (signs, made anew for every 16 rows, as it would not fit)
dataflex    ours, exact: its check, its calibration and its files included
ghost       ours without Adam and without materialised gradients
factorised  ours: two-sided projection to 16 x 16 per weight, fp16 on disk
bergson     bergson's collector: hooks, two-sided projection to 16 x 16 per weight, in memory (where it is installed)
dattri      dattri's LoGra: the same by its hooks (where it is installed)
The last four give other numbers than the first three: they apply no Adam to pool rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.scoring import collate, make_model, make_rows, peak_extra, quickstart_rows, timed
from dataflex.signals.collect import Place
from dataflex.signals.gradient.moments import adam_of
from dataflex.signals.gradient.signal import Source
from dataflex.signals.gradient.similarity import factorised_similarities, pass_key, similarities, target_groups
from dataflex.signals.gradient.verify import verify
from dataflex.signals.gradient.weights import trainable_weights
from dataflex.signals.loss import rows_to_check
from dataflex.signals.sweep import Collective

PROJECTION = 4096
PROJECT_EVERY = 16  # rows that share one making of the projection
BLOCK = 1 << 14  # columns of the projection made at a time
OURS = ("dataflex", "ghost", "factorised")


class Ways:
    """All ways over one set of rows, with one clock each."""

    def __init__(self, model: nn.Module, rows: list[dict[str, list[int]]], targets: int, device: torch.device) -> None:
        self.model, self.rows, self.device = model, rows, device
        self.lengths_N = np.array([len(row["input_ids"]) for row in rows])
        chosen = np.random.default_rng(1).permutation(len(rows))[:targets]
        self.targets = [rows[row] for row in chosen]
        self.groups_M = np.arange(targets) % 4
        self.weights = trainable_weights(model)
        self.parameters = [weight.parameter for weight in self.weights.included]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        for row in rows[:3]:
            self.backward(row)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.adam = adam_of(self.optimizer, model, self.weights)
        self.m = torch.cat([self.adam.moments[w.name].m.flatten() for w in self.weights.included])
        self.v = torch.cat([self.adam.moments[w.name].v.flatten() for w in self.weights.included])
        self.pool_similarities = {name: np.full((len(rows), 4), np.nan) for name in ("loop", "dataflex")}
        self.vectors_GxP = torch.zeros(4, len(self.m), device=device)
        self.found: Any = None
        self.verdict: Any = None
        self.folder = Path(tempfile.mkdtemp())
        self.stored: dict[str, int] = {}

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def source(self, rows: list[dict[str, list[int]]]) -> Source:
        return Source(
            model=self.model,
            features=lambda rows_B: [dict(rows[row]) for row in rows_B],
            collate=collate,
            to_device=self.to_device,
            autocast=nullcontext,
        )

    def backward(self, row: dict[str, list[int]]) -> torch.Tensor:
        """The gradient of a row's mean loss, flat."""
        self.optimizer.zero_grad()
        batch = self.to_device(collate([row]))
        batch.pop("attention_mask")
        self.model(**batch, use_cache=False).loss.backward()
        return torch.cat([p.grad.flatten().float() for p in self.parameters if p.grad is not None])

    def update(self, row: int) -> torch.Tensor:
        gradient = self.backward(self.rows[row])
        root = (0.999 * self.v + 0.001 * gradient.square() + 1e-8).sqrt()
        return (0.9 * self.m + 0.1 * gradient) / root

    def loop_targets(self) -> None:
        self.vectors_GxP.zero_()
        for row, group in zip(self.targets, self.groups_M, strict=True):
            gradient = self.backward(row)
            self.vectors_GxP[group] += gradient / norm(gradient) / int((self.groups_M == group).sum())

    def dataflex_targets(self) -> None:
        lengths_M = np.array([len(row["input_ids"]) for row in self.targets])
        self.verdict = verify(
            self.source(self.targets), self.weights, rows_to_check(lengths_M, np.arange(len(lengths_M)))
        )
        self.found = target_groups(
            self.source(self.targets),
            self.weights,
            lengths_M,
            self.groups_M,
            device=self.device,
            verdict=self.verdict,
        )

    def loop(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            update = self.update(row)
            self.pool_similarities["loop"][row] = (self.vectors_GxP @ update / norm(update)).cpu().numpy()

    def projected(self, rows: np.ndarray) -> None:
        for start in range(0, len(rows), PROJECT_EVERY):
            updates = torch.stack([self.update(row) for row in rows[start : start + PROJECT_EVERY].tolist()])
            features = self.project(updates).half().cpu().numpy()
            np.save(self.folder / f"projected{rows[start]}.npy", features)
            self.stored["projected"] = features.nbytes // len(features)

    def project(self, updates_RxP: torch.Tensor) -> torch.Tensor:
        features = torch.zeros(len(updates_RxP), PROJECTION, device=self.device)
        generator = torch.Generator(device=self.device).manual_seed(0)
        for start in range(0, updates_RxP.shape[1], BLOCK):
            part = updates_RxP[:, start : start + BLOCK]
            # 63 signs of one random integer cost less than 63 random numbers.
            words = torch.randint(
                0, 1 << 62, (part.shape[1], PROJECTION // 32), generator=generator, device=self.device
            )
            bits = (words[..., None] >> torch.arange(32, device=self.device)) & 1
            features += part @ bits.flatten(1).float().mul_(2).sub_(1)
        return features / PROJECTION**0.5

    def ours(self, name: str, rows: np.ndarray) -> None:
        adam = self.adam if name == "dataflex" else None
        place = Place(
            directory=self.folder / f"{name}{rows[0]}", key=pass_key(self.model, self.weights, adam, rows=str(rows[0]))
        )
        options: dict[str, Any] = {"ranks": Collective(device=self.device), "place": place, "verdict": self.verdict}
        measure = factorised_similarities if name == "factorised" else similarities
        if name == "ghost":
            options["engine"] = "ghost"
        result = measure(self.source(self.rows), self.weights, self.found, adam, self.lengths_N, rows, **options)
        if name == "dataflex":
            self.pool_similarities[name][rows] = result.similarities_NxG[rows]
            self.batch_tokens = result.cost["batch_tokens"]
        written = sum(p.stat().st_blocks * 512 for p in place.directory.glob("*.npy"))
        self.stored[name] = written // len(rows)

    def bergson(self, rows: np.ndarray) -> None:
        from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector  # type: ignore
        from bergson.data import allocate_batches  # type: ignore
        from datasets import Dataset

        part = [self.rows[row] for row in rows.tolist()]
        lengths = [len(row["input_ids"]) for row in part]
        data = Dataset.from_list([{**row, "length": length} for row, length in zip(part, lengths, strict=True)])
        config = IndexConfig(
            run_path=str(self.folder / "bergson"), projection_dim=16, token_batch_size=self.batch_tokens
        )
        (self.folder / "bergson.part").mkdir(exist_ok=True)
        names = {weight.name.removesuffix(".weight") for weight in self.weights.included}
        prefix = "base_model."
        collector = InMemoryCollector(
            model=self.model.base_model,  # type: ignore[arg-type]
            cfg=config,
            processor=GradientProcessor(projection_dim=16),
            data=data,
            target_modules={name.removeprefix(prefix) for name in names},
        )
        batches = allocate_batches(lengths, self.batch_tokens)
        CollectorComputer(
            model=self.model,
            data=data,
            collector=collector,
            batches=batches,
            cfg=config,  # type: ignore[arg-type]
        ).run_with_collector_hooks(desc="bergson")
        self.stored["bergson"] = sum(g.numel() * g.element_size() for g in collector.gradients.values()) // len(part)

    def dattri(self, rows: np.ndarray) -> None:
        from dattri.algorithm import LoGraAttributor  # type: ignore
        from dattri.task import AttributionTask  # type: ignore

        def loss(model: nn.Module, batch: Any, device: Any) -> torch.Tensor:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            labels = inputs.pop("labels")
            logits = model(**inputs, use_cache=False).logits[:, :-1].float()
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
            counts = (labels[:, 1:] != -100).sum(1).clamp(min=1)
            return (losses.view(len(labels), -1).sum(1) / counts).sum()

        part = [self.rows[row] for row in rows[np.argsort(-self.lengths_N[rows])].tolist()]
        size = max(1, int(self.batch_tokens // self.lengths_N[rows].mean()))
        loader = torch.utils.data.DataLoader(part, batch_size=size, collate_fn=collate)  # type: ignore[arg-type]
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        task = AttributionTask(loss_func=loss, model=self.model, checkpoints=[state])
        attributor = LoGraAttributor(
            task=task,
            layer_names=[weight.name.removesuffix(".weight") for weight in self.weights.included],
            hessian="Identity",
            proj_dim=256,
            device=str(self.device),
        )
        attributor.cache(loader)


def norm(vector: torch.Tensor) -> float:
    """In float64: torch's own of some million float32 is off by 5e-4 on a CPU."""
    return float(torch.dot(vector.double(), vector.double()).sqrt())


def make_lora(name: str, device: torch.device) -> nn.Module:
    """Rank 16 on all linear layers, B away from zero as in the middle of a run."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        make_model(name, device),  # type: ignore[arg-type]
        LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.01)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--targets", type=int, default=100)
    parser.add_argument("--parts", type=int, default=3, help="how often the ways take turns")
    parser.add_argument("--projected-rows", type=int, default=16, help="rows of each part that are projected")
    parser.add_argument("--without", nargs="*", default=[], help="ways to leave out; never loop and dataflex")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.rows < args.targets:
        parser.error(f"--rows is {args.rows}; the {args.targets} --targets are taken of them")
    device = torch.device(args.device)
    logging.disable(logging.INFO)
    model = make_lora(args.model, device)
    if args.model == "smollm2":
        rows = quickstart_rows(str(Path("~/.cache/dataflex/SmolLM2-135M-Instruct").expanduser()))[: args.rows]
    else:
        rows = make_rows(args.rows, model.config.vocab_size, max_length=2048)
    ways = Ways(model, rows, args.targets, device)
    ways.loop(np.arange(2))  # the first call of anything is slow
    seconds_of_targets = {name: timed(getattr(ways, f"{name}_targets"), device) for name in ("loop", "dataflex")}
    work: dict[str, Callable[[np.ndarray], None]] = {
        "loop": ways.loop,
        **{name: (lambda part, n=name: ways.ours(n, part)) for name in OURS},
        "bergson": ways.bergson,
        "dattri": ways.dattri,
        "projected": lambda part: ways.projected(part[: args.projected_rows]),
    }
    work = {name: run for name, run in work.items() if name not in args.without}
    rates: dict[str, list[float]] = {name: [] for name in work}
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for part in np.array_split(np.random.default_rng(2).permutation(len(rows)), args.parts):
        for name, run in work.items():
            if name in failed:
                continue
            try:
                extra, seconds = 0, 0.0

                def both(run: Callable[[np.ndarray], None] = run, part: np.ndarray = part) -> None:
                    nonlocal seconds
                    seconds = timed(lambda: run(part), device)

                extra = peak_extra(both, device)
            except Exception as error:  # another library's failure is a result
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                continue
            rates[name].append((args.projected_rows if name == "projected" else len(part)) / seconds)
            peaks[name] = max(peaks.get(name, 0), extra)
    # A way's whole rate is that of its total time; parts are equally large.
    whole = {name: float(len(r) / np.sum(1 / np.array(r))) for name, r in rates.items() if r}
    for name, rate in whole.items():
        ratio = [a / b for a, b in zip(rates["dataflex"], rates[name], strict=False)]
        print(
            f"{name:10} {rate:7.2f} rows/s  dataflex / it {whole['dataflex'] / rate:6.2f} (parts {min(ratio):.2f} to "
            f"{max(ratio):.2f})  {peaks[name] / 2**20:7.0f} MiB  {ways.stored.get(name, 0):8d} bytes a row"
        )
    for name, why in failed.items():
        print(f"{name:10} not measured: {why}")
    apart = np.nanmax(np.abs(ways.pool_similarities["loop"] - ways.pool_similarities["dataflex"]))
    targets = seconds_of_targets["loop"] / seconds_of_targets["dataflex"]
    print(f"targets: {seconds_of_targets}, ratio {targets:.2f}; similarities apart by {apart:.1e} at most")
    print(f"{ways.weights.size} parameters, batches of {ways.batch_tokens} tokens")
    result = {"rates": rates, "peak_extra_bytes": peaks, "bytes_a_row": ways.stored, "failed": failed}
    args.out.write_text(json.dumps({**result, "targets": seconds_of_targets, "apart": float(apart)}, indent=1))


if __name__ == "__main__":
    main()
