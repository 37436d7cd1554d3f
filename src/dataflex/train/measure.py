"""Signals on demand: which program measures which signal, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate.utils import send_to_device
from safetensors import SafetensorError

from dataflex.algorithms.base import SIGNALS, Progress
from dataflex.core.errors import ConfigError, LedgerError, did_you_mean, shown
from dataflex.ledger.fingerprint import comparable
from dataflex.ledger.ledger import Ledger
from dataflex.signals.adapter import adds_nothing, without_adapter
from dataflex.signals.base import undisturbed
from dataflex.signals.cache import SignalCache, weights_digest
from dataflex.signals.file import read_neighbours, read_scores
from dataflex.signals.gradient.signal import Source
from dataflex.signals.loss import LossSignal, mean_losses, rows_to_check
from dataflex.signals.own_loss import ONE_ROW, OwnLossSignal
from dataflex.signals.sweep import Collective, Sweep, sweep
from dataflex.train.answers import Answers, tokenizer_of
from dataflex.train.embeddings import Embedded, EmbeddingPass
from dataflex.train.gradients import GradientPass
from dataflex.train.method import Method, named_files
from dataflex.train.pool import Pool, holds_media, row_labels
from dataflex.train.progress import PassProgress
from dataflex.train.ranks import Ranks
from dataflex.train.reference import Reference
from dataflex.train.stage_loss import batch_losses, counters_untouched, scores_own_loss
from dataflex.train.target import Target
from dataflex.train.trajectories import source_codes, trajectories

SPOT_CHECK_TOKENS = 1024  # padded tokens of a batch where none has been found yet
FROM_CACHE = {"source": "cache", "num_rows": 0, "num_tokens": 0, "seconds": 0.0}
SELF_BASE = "self"
OWN_LOSS = "the trainer's own, each row alone"
LOSS_DEFINITION = "mean negative log-likelihood over label tokens, eval mode, fp32 sums, version 1"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A signal's values, one per pool row, and the cost of a model pass (empty where there was none)."""

    values: np.ndarray
    cost: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4  # how far apart two measurements of the same weights may be, relative


class Measurer:
    """Measures a signal for the whole pool (collective).

    Args:
        trainer: the host's trainer; read only when a pass is made, since the model is wrapped in ``train()``.
        selector: the method that asks; its ``path`` and ``cache_dir`` are read where it has them.
        ledger: of this run; keeps the calibrated batch size, and initial losses where the method names no place.
        batch_tokens: padded tokens of a scoring batch, where the user pins it.
        fresh: serve no array from the cache.
        columns: those of rows.parquet, by which an order may rank.
        target: rows that steer the selection, where the method needs them.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        selector: Any,
        pool: Pool,
        ranks: Ranks,
        ledger: Ledger,
        batch_tokens: int | None,
        fresh: bool,
        say: Callable[[str], None],
        columns: Mapping[str, Any] | None = None,
        target: Target | None = None,
    ) -> None:
        self._target = target
        self._trainer, self._selector, self._pool, self._ranks, self._say = trainer, selector, pool, ranks, say
        self._ledger, self._batch_tokens, self._columns = ledger, batch_tokens, columns or {}
        self._fresh = fresh
        self._embedded: dict[str, Embedded] = {}  # made, and not asked for yet
        self._told_why = False
        self._signal: LossSignal | OwnLossSignal | None = None  # one a run: its fast path is checked once
        self._cache = SignalCache(Path(getattr(selector, "cache_dir", None) or ledger.root / "cache"))

    def __call__(self, name: str, progress: Progress, rows: np.ndarray | None = None) -> Measured:
        """Measure one signal.

        Args:
            rows: ``loss`` and ``similarities`` of these alone, NaN for the others; None: of all.

        Raises:
            ConfigError: nothing measures it, or it does not fit the run.
        """
        match name:
            case "loss":
                return self._loss(progress, rows)
            case "file":
                return Measured(values=self._ranks.from_main(self._file))
            case "replay":
                return Measured(values=self._ranks.from_main(lambda: self._replay(progress)))
            case "similarities":
                return self._similarities(rows)
            case "target_sizes" if self._target is not None:
                return Measured(values=self._target.sizes_G)
            case "embeddings" | "target_embeddings":
                return self._embeddings(name)
            case "neighbours_file":
                path = self._selector.indices_path
                return Measured(values=self._ranks.from_main(lambda: read_neighbours(path, len(self._pool))))
            case "reference_loss":
                return self._reference_loss()
            case "answer_losses":
                return self._answer_losses()
            case "trajectories":
                path = self._selector.path
                return Measured(
                    values=self._ranks.from_main(
                        lambda: trajectories(path, len(self._pool), self._pool.digest, self._columns)
                    )
                )
            case "source":
                return Measured(values=source_codes(self._columns, len(self._pool)))
        kind, _, what = name.partition(":")
        if kind == "column":
            return Measured(values=number_column(what, self._columns))
        if kind == "file":
            return Measured(values=self._ranks.from_main(lambda: self._scores(what)))
        raise ConfigError(f"the method needs a signal {name!r}, which nothing measures; known: {', '.join(SIGNALS)}")

    def _loss(self, progress: Progress, rows: np.ndarray | None) -> Measured:
        """Mean loss of rows under the current model; initial losses come from the cache where they are there."""
        # Only the initial losses can serve another run: any later weights are this run's alone.
        cacheable = hasattr(self._selector, "cache_dir") and (progress.step == 0 or progress.is_first_selection)
        # Losses of the base model serve every run that starts from it, whatever its adapter.
        at_base = progress.step == 0 and not self._sharded and adds_nothing(self._trainer.model)
        key = self._ranks.from_main(lambda: self._cache_key(at_base=at_base)) if cacheable else None
        serves = key is not None and not self._fresh
        cached = self._ranks.from_main(lambda: self._load(key or {})) if serves else None
        if cached is not None:
            return Measured(values=cached if rows is None else only(rows, cached), cost=dict(FROM_CACHE))
        with without_adapter(self._trainer.model) if at_base else nullcontext():
            budget = self._known_budget()
            trainable_N = self._pool.info.trainable_N
            asked = np.flatnonzero(trainable_N) if rows is None else rows[trainable_N[rows]]
            measured = self._sweep_losses(asked, budget)
            self._keep_budget(measured.cost["batch_tokens"], budget)
        if key is not None and rows is None and self._ranks.is_main:
            self._cache_or_say(key, measured.values)
        return measured

    def _cache_or_say(self, key: Mapping[str, str], values: np.ndarray) -> None:
        try:
            self._cache.save(key, values)
        except (OSError, SafetensorError) as error:  # a cache is a convenience
            reason = " ".join(str(error).split())
            self._say(f"the losses could not be kept in {self._cache.directory} ({reason}): go on")

    def _similarities(self, rows: np.ndarray | None) -> Measured:
        """Similarity of rows to each group of the target, under the present weights and moments."""
        trainer = self._trainer
        assert self._target is not None, "the settings of a run are checked for a target before it"
        self._refuse_own_loss("gradients are of the loss of tokens")
        if self._sharded:
            raise ConfigError(
                "gradients a sample at a time need the whole weights on every rank, and FSDP and DeepSpeed cut them "
                "apart; train with DDP, or take a method that needs no gradients"
            )
        measure = GradientPass(
            trainer=trainer,
            source_of=self._source,
            target=self._target,
            pool=self._pool,
            directory=self._cache.directory,
            batch_tokens=self._batch_tokens,
            say=self._say,
        )
        found = measure(self._selector, self._collective(sharded=False), rows)
        cost = {
            "source": "measured",
            **found.cost,
            "gradient_tokens": found.cost["num_tokens"],
            "tokens_per_s": found.cost["num_tokens"] / max(found.cost["seconds"], 1e-9),
        }
        return Measured(values=found.similarities_NxG, cost=cost)

    def _embeddings(self, name: str) -> Measured:
        """Embeddings of the pool or of the target, on the first rank; both are made when one is asked for."""
        ranks = self._collective(sharded=False)
        if not self._embedded:
            sources = [(self._trainer.train_dataset, self._pool)]
            if self._target is not None and "target_embeddings" in self._selector.needs:
                sources.append((self._target.dataset, self._target.pool))
            embed = EmbeddingPass(
                trainer=self._trainer,
                fetch=fetch,
                directory=self._cache.directory,
                batch_tokens=self._batch_tokens,
                sharded=self._sharded,
                say=self._say,
            )
            made = embed(self._selector, sources, ranks)
            self._embedded = dict(zip(("embeddings", "target_embeddings"), made, strict=False))
        found = self._embedded.pop(name)
        cost: dict[str, Any] = {
            "source": "measured" if found.cost.num_rows else "cache",
            "num_rows": found.cost.num_rows,
            "num_tokens": found.cost.num_tokens,
            "seconds": found.seconds if found.cost.num_rows else 0.0,
            "tokens_per_s": found.cost.num_tokens / max(found.seconds, 1e-9),
            "files": {name: str(found.path)},
        }
        # Only the first rank decides, and only its host need have the file.
        return Measured(values=found.read() if self._ranks.is_main else np.zeros((0, 0), np.float32), cost=cost)

    def _reference_loss(self) -> Measured:
        """Mean loss of every row under the reference that the method names; kept for other runs."""
        trainer, path = self._trainer, self._selector.reference
        self._refuse_own_loss("a reference's loss is of tokens")
        model = trainer.accelerator.unwrap_model(trainer.model)
        if path == SELF_BASE:
            if not hasattr(model, "disable_adapter"):
                raise ConfigError(
                    "reference: self is the model without its adapter, and this run trains none; name a model"
                )
            with without_adapter(model):
                return self._losses_of(model, "reference_loss", weights_digest(model, "base"))
        reference = Reference(path, model, trainer.accelerator).model
        return self._losses_of(reference, "reference_loss", weights_digest(reference))

    def _answer_losses(self) -> Measured:
        """Losses of the answers after their prompts and without them, shape (N, 2); see ``train.answers``."""
        self._refuse_own_loss("its losses are of tokens")
        trainer, selector = self._trainer, self._selector
        own = trainer.accelerator.unwrap_model(trainer.model)
        if selector.model == SELF_BASE and self._sharded:
            raise ConfigError(
                "model: self needs the whole weights on every rank, and FSDP and DeepSpeed cut them apart; name a "
                "small model to score with"
            )
        answers = Answers(
            dataset=trainer.train_dataset,
            fetch=fetch,
            row_labels=lambda features: row_labels(features, self._source(trainer.train_dataset).collate),
            header=selector.header,
            own=tokenizer_of(trainer),
        )
        model, answers = (
            (own, answers) if selector.model == SELF_BASE else answers.scored_by(selector.model, own, trainer)
        )
        both, digest = [], weights_digest(model)
        for prompted in (True, False):
            source = replace(
                self._source(trainer.train_dataset), model=model, **answers.source_fields(prompted=prompted)
            )
            both.append(
                self._losses_of(model, "answer_loss", digest, source=source, what=answers.told(prompted=prompted))
            )
        values_Nx2 = np.stack([one.values for one in both], axis=1)
        return Measured(values=values_Nx2, cost=added(both[0].cost, both[1].cost))

    def _losses_of(
        self, model: Any, signal: str, digest: str | None, *, source: Source | None = None, what: str = ""
    ) -> Measured:
        """Mean losses of all rows under a model that is whole on every rank, kept in the cache."""
        trainer = self._trainer
        key = {
            "signal": signal,
            "weights": str(digest),
            "data": self._pool.digest,
            "definition": f"{LOSS_DEFINITION}{what}",
            "precision": f"{getattr(model, 'dtype', None)}, autocast {trainer.accelerator.mixed_precision}",
        }
        serves = digest is not None and not self._fresh
        cached = self._ranks.from_main(lambda: self._cache.load(key)) if serves else None
        if cached is not None and len(cached) == len(self._pool):
            return Measured(values=cached, cost=dict(FROM_CACHE))
        source = source or replace(self._source(trainer.train_dataset), model=model)
        measured = self._sweep_losses(
            np.flatnonzero(self._pool.info.trainable_N), self._batch_tokens, LossSignal(**vars(source))
        )
        if digest is not None and self._ranks.is_main:
            self._cache_or_say(key, measured.values)
        return measured

    def _refuse_own_loss(self, why: str) -> None:
        if scores_own_loss(self._trainer):
            raise ConfigError(
                f"{type(self._trainer).__name__} has a loss of its own, and {why}; take a method that needs none"
            )

    def spot_check(self, rows_R: np.ndarray) -> Measured:
        """Mean losses of some rows under the present model, shape (R,)."""
        budget = self._known_budget() or SPOT_CHECK_TOKENS  # too few rows to find one
        measured = self._sweep_losses(rows_R, budget)
        return replace(measured, values=measured.values[rows_R])

    @property
    def _sharded(self) -> bool:
        """True when a rank may hold only a part of the weights, so that forwards are collective."""
        return self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled

    def _known_budget(self) -> int | None:
        """Padded tokens of a scoring batch: pinned, or found by an earlier pass of the run."""
        return self._batch_tokens or self._ranks.from_main(lambda: self._ledger.run().get("score_batch_tokens"))

    def _sweep_losses(self, rows: np.ndarray, budget: int | None, of: LossSignal | None = None) -> Measured:
        """Mean losses of ``rows``, NaN for the others: of the model in training, or ``of`` another signal."""
        pool, sharded = self._pool, self._sharded and of is None
        if of is None:
            self._signal = self._signal or self._loss_signal(sharded)
        signal = of or self._signal
        assert signal is not None
        ranks = self._collective(sharded=sharded)
        to_check = rows_to_check(pool.info.num_tokens_N, rows)
        progress = PassProgress(
            len(rows),
            int(pool.info.num_tokens_N[rows].sum()),
            bar=not self._trainer.args.disable_tqdm,
            shown=self._ranks.is_main,
            say=self._say,
        )
        with progress, undisturbed(signal.model):
            with nullcontext() if sharded else self._ranks.together():
                signal.check(to_check)
            signal.verdict = self._ranks.first_text(signal.verdict or "")  # one way on all ranks
            own = isinstance(signal, OwnLossSignal)
            budget = ONE_ROW if own and signal.verdict else budget
            with signal.engaged(to_check) as why_not:
                result = sweep(
                    signal, pool.info.num_tokens_N, rows, ranks=ranks, batch_tokens=budget, advance=progress.advance
                )
        self._tell(why_not, result)
        losses_N = mean_losses(result.values_NxC)
        lost = len(rows) - int(np.isfinite(losses_N).sum())
        if lost and self._ranks.is_main:
            self._say(f"{lost} of {len(rows)} samples have a loss that is not finite; they are not drawn")
        cost = {
            "source": "measured",
            "num_rows": result.num_rows,
            "num_tokens": result.num_tokens,
            "seconds": result.seconds,
            "tokens_per_s": result.num_tokens / max(result.seconds, 1e-9),
            "batch_tokens": result.batch_tokens,
            "out_of_memory": result.num_out_of_memory,
            "logits": "all positions" if own or why_not is not None else "label positions",
            "loss": OWN_LOSS if own else "negative log-likelihood",
        }
        return Measured(values=losses_N, cost=cost, tolerance=signal.tolerance)

    def _collective(self, *, sharded: bool) -> Collective:
        return Collective(
            device=self._ranks.device,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            gather=self._ranks.gather,
            raise_together=self._ranks.raise_together,
            sharded=sharded,
        )

    def _source(self, dataset: Any) -> Source:
        """Rows of a data set as the host batches them, for the bare model."""
        trainer = self._trainer
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
        kept = trainer._signature_columns if trainer.args.remove_unused_columns else None
        return Source(
            model=trainer.accelerator.unwrap_model(trainer.model),
            features=lambda rows_B: _columns(fetch(dataset, rows_B), kept),
            collate=collate,
            to_device=lambda batch: dict(send_to_device(batch, trainer.accelerator.device)),
            autocast=trainer.compute_loss_context_manager,
            row_labels=lambda features: row_labels(features, collate),
        )

    def _loss_signal(self, sharded: bool) -> LossSignal | OwnLossSignal:
        trainer = self._trainer
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
        model = trainer.model_wrapped if sharded else trainer.model
        if scores_own_loss(trainer):
            return OwnLossSignal(
                model=model,
                features=lambda rows_B: fetch(trainer.train_dataset, rows_B),
                collate=collate,
                to_device=trainer._prepare_inputs,
                compute_loss=trainer.compute_loss,
                batch_losses=batch_losses(trainer),
                autocast=trainer.compute_loss_context_manager,
                untouched=lambda: counters_untouched(trainer),
            )
        return LossSignal(**{**vars(self._source(trainer.train_dataset)), "model": model})

    def _tell(self, why_not: str | None, result: Sweep) -> None:
        """Say what is out of the ordinary, once."""
        if not self._ranks.is_main:
            return
        if why_not is not None and not self._told_why:
            self._told_why = True
            own = isinstance(self._signal, OwnLossSignal)
            how = "one row at a time" if own else "from the model's full logits"
            self._say(f"losses are computed {how}, which is slower: {why_not}")
        if result.num_out_of_memory:
            self._say(f"memory ran out in {result.num_out_of_memory} scoring batches; they were measured in halves")

    def _keep_budget(self, found: int, known: int | None) -> None:
        """Keep the batch size for later passes and resumes."""
        if found != known and self._batch_tokens is None:
            self._ranks.from_main(lambda: self._ledger.update_run({"score_batch_tokens": found}))

    def _cache_key(self, *, at_base: bool) -> dict[str, str] | None:
        """Everything the losses depend on; the tokens and labels stand for tokenizer, template and cutoff."""
        trainer = self._trainer
        if trainer.is_fsdp_enabled or holds_media(
            trainer.train_dataset
        ):  # a part of the weights only; more in a row than its tokens tell
            return None
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        weights = weights_digest(model, "base" if at_base else "all")
        if weights is None:
            return None
        precision = (
            f"{getattr(self._trainer.model, 'dtype', None)}, autocast {self._trainer.accelerator.mixed_precision}"
        )
        return {
            "signal": "loss",
            "weights": weights,
            "data": self._pool.digest,
            "definition": self._definition(),
            "precision": precision,
        }

    def _definition(self) -> str:
        """What the losses are, for the cache."""
        trainer = self._trainer
        if not scores_own_loss(trainer):
            return LOSS_DEFINITION
        # Such a loss has parameters (beta, margins) that only its trainer knows: they are among its arguments.
        finetuning = getattr(trainer, "finetuning_args", None)
        own = {**comparable(trainer.args.to_dict()), **comparable(vars(finetuning) if finetuning else {})}
        reference = getattr(trainer, "ref_model", None)
        compared_to = weights_digest(trainer.accelerator.unwrap_model(reference)) if reference is not None else None
        where = next(cls.__qualname__ for cls in type(trainer).__mro__ if "compute_loss" in vars(cls))
        return f"{OWN_LOSS}, {where}, reference {compared_to}, {sorted((k, str(v)) for k, v in own.items())}"

    def _load(self, key: dict[str, str]) -> np.ndarray | None:
        values = self._cache.load(key)
        if values is not None and len(values) == len(self._pool):
            self._say(f"losses of exactly these weights and data are in {self._cache.directory}: no pass is made")
            return values
        others = self._cache.others(key)
        if others:
            self._say(
                f"{self._cache.directory} holds {others} arrays of other weights or other data: none of them is used"
            )
        return None

    def _file(self) -> np.ndarray:
        return self._scores(self._selector.path)

    def _scores(self, path: str) -> np.ndarray:
        return read_scores(path, len(self._pool), self._pool.digest)

    def _replay(self, progress: Progress) -> np.ndarray:
        ledger = replayed_ledger(self._selector.path, self._pool)
        line = ledger.line_of(progress.segment)
        if line is None:
            raise LedgerError(
                f"{self._selector.path} has no segment {progress.segment}: the recorded run is shorter than this one"
            )
        return ledger.rows_of(line)


def only(rows: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """The values of ``rows``, NaN for the others."""
    kept_N = np.full_like(values_N, np.nan)
    kept_N[rows] = values_N[rows]
    return kept_N


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two passes of a decision cost together; that of a pass which was not made is empty."""
    if not one or not other:
        return dict(one or other)
    total = {**other, **one, "source": "measured" if "measured" in (one["source"], other["source"]) else one["source"]}
    for name in ("num_rows", "num_tokens", "seconds", "gradient_tokens", "out_of_memory"):
        if name in one or name in other:
            total[name] = one.get(name, 0) + other.get(name, 0)
    if total["source"] == "measured":
        total["tokens_per_s"] = total["num_tokens"] / max(total["seconds"], 1e-9)
    files = {**one.get("files", {}), **other.get("files", {})}
    return {**total, "files": files} if files else total


def _columns(features: list[dict[str, Any]], kept: list[str] | None) -> list[dict[str, Any]]:
    """Features without the columns that the host takes off before its collator."""
    if kept is None:
        return features
    return [{name: value for name, value in feature.items() if name in kept} for feature in features]


def number_column(name: str, columns: Mapping[str, Any]) -> np.ndarray:
    """A column of the data as numbers, float64, shape (N,); NaN where a row has none.

    Raises:
        ConfigError: no such column, or one of texts.
    """
    if name not in columns:
        known = [known for known in columns if known not in ("row", "source_row", "excerpt", "dataset")]
        raise ConfigError(
            f"column is {shown(name)}{did_you_mean(name, known)}; columns of the data: {', '.join(known) or 'none'}"
        )
    column = columns[name] if isinstance(columns[name], (pa.Array, pa.ChunkedArray)) else pa.array(columns[name])
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        raise ConfigError(f"the column {name} holds {column.type}; numbers are needed")
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def check_files(method: Method, pool: Pool, columns: Mapping[str, Any], output_dir: str) -> None:
    """Read what a method reads from files and columns once before the run: no surprise in its middle."""
    selector = method.selector
    for part in (*method.orders, *method.weighers):
        name = getattr(part.method, "column", None)
        if name is not None and getattr(part.method, "by", "column") == "column":
            values_N = number_column(name, columns)
            if hasattr(part.method, "check_values"):
                part.method.check_values(values_N)
    for path in named_files(method):
        read_scores(path, len(pool), pool.digest)
    if "file" in selector.needs:
        read_scores(selector.path, len(pool), pool.digest)
    if "replay" in selector.needs:
        if Path(selector.path).resolve() == Path(output_dir).resolve():
            raise ConfigError(
                f"replay would read the record that it writes: choose another output_dir than {output_dir}"
            )
        replayed_ledger(selector.path, pool)


def replayed_ledger(path: str, pool: Pool) -> Ledger:
    """The ledger of a former run on the same data."""
    ledger = Ledger(path)
    if ledger.run().get("fingerprint", {}).get("data") != pool.digest:
        raise LedgerError(
            f"{path} recorded a run on other data; replay needs the same data set, tokenizer, template and cutoff"
        )
    return ledger


def fetch(dataset: Any, rows_B: np.ndarray) -> list[dict[str, Any]]:
    """Features of some rows, in one call where the data set has one."""
    rows = rows_B.tolist()
    fetch_many = getattr(dataset, "__getitems__", None)
    return fetch_many(rows) if fetch_many is not None else [dict(dataset[row]) for row in rows]
