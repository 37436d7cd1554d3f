"""Signals on demand: which program measures which signal, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.algorithms.base import SIGNALS, Progress
from dataflex.core.errors import ConfigError, LedgerError, did_you_mean, shown
from dataflex.ledger.ledger import Ledger
from dataflex.signals.adapter import without_adapter
from dataflex.signals.cache import SignalCache, weights_digest
from dataflex.signals.file import read_neighbours, read_scores
from dataflex.signals.flops import flops_of
from dataflex.train.answers import Answers, tokenizer_of
from dataflex.train.embeddings import Embedded, EmbeddingPass
from dataflex.train.gradients import GradientPass
from dataflex.train.host_rows import HostRows, fetch
from dataflex.train.losses import LossPass
from dataflex.train.measured import Measured, added
from dataflex.train.method import Method, named_files
from dataflex.train.pool import Pool, row_labels
from dataflex.train.ranks import Ranks
from dataflex.train.reference import Reference
from dataflex.train.target import Target
from dataflex.train.trajectories import source_codes, trajectories

SELF_BASE = "self"


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
        keeps_losses: initial losses are looked for in the cache, and kept there, whatever the method.
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
        keeps_losses: bool = False,
    ) -> None:
        self._host = HostRows(trainer, ranks)
        self._selector, self._pool, self._ranks, self._say = selector, pool, ranks, say
        self._target, self._batch_tokens, self._columns = target, batch_tokens, columns or {}
        self._embedded: dict[str, Embedded] = {}  # made, and not asked for yet
        self.cache = SignalCache(Path(getattr(selector, "cache_dir", None) or ledger.root / "cache"))
        self._losses = LossPass(
            self._host,
            pool=pool,
            ranks=ranks,
            ledger=ledger,
            cache=self.cache,
            cacheable=keeps_losses or hasattr(selector, "cache_dir"),
            batch_tokens=batch_tokens,
            fresh=fresh,
            say=say,
        )
        self.spot_check, self.cached_losses = self._losses.spot_check, self._losses.cached

    def __call__(self, name: str, progress: Progress, rows: np.ndarray | None = None) -> Measured:
        """Measure one signal.

        Args:
            rows: ``loss`` and ``similarities`` of these alone, NaN for the others; None: of all.

        Raises:
            ConfigError: nothing measures it, or it does not fit the run.
        """
        match name:
            case "loss":
                return self._losses(progress, rows)
            case "file":
                return Measured(values=self._ranks.from_main(self._file))
            case "replay":
                return Measured(values=self._ranks.from_main(lambda: self._replay(progress)))
            case "similarities":
                return self._similarities(rows)
            case "target_sizes" if self._target is not None:
                return Measured(values=self._target.sizes_G)
            case "learning_rate":
                return Measured(values=np.array([learning_rate(self._host.trainer)]))
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

    def _similarities(self, rows: np.ndarray | None) -> Measured:
        """Similarity of rows to each group of the target, under the present weights and moments."""
        trainer = self._host.trainer
        assert self._target is not None, "the settings of a run are checked for a target before it"
        self._host.refuse_own_loss("gradients are of the loss of tokens")
        if self._host.sharded:
            raise ConfigError(
                "gradients a sample at a time need the whole weights on every rank, and FSDP and DeepSpeed cut them "
                "apart; train with DDP, or take a method that needs no gradients"
            )
        measure = GradientPass(
            trainer=trainer,
            source_of=self._host.source,
            target=self._target,
            pool=self._pool,
            directory=self.cache.directory,
            batch_tokens=self._batch_tokens,
            say=self._say,
        )
        found = measure(self._selector, self._host.collective(sharded=False), rows)
        cost = {
            "source": "measured",
            **found.cost,
            "gradient_tokens": found.cost["num_tokens"],
            "tokens_per_s": found.cost["num_tokens"] / max(found.cost["seconds"], 1e-9),
        }
        return Measured(values=found.similarities_NxG, cost=cost)

    def _embeddings(self, name: str) -> Measured:
        """Embeddings of the pool or of the target, on the first rank; both are made when one is asked for."""
        ranks = self._host.collective(sharded=False)
        if not self._embedded:
            sources = [(self._host.trainer.train_dataset, self._pool)]
            if self._target is not None and "target_embeddings" in self._selector.needs:
                sources.append((self._target.dataset, self._target.pool))
            embed = EmbeddingPass(
                trainer=self._host.trainer,
                fetch=fetch,
                directory=self.cache.directory,
                batch_tokens=self._batch_tokens,
                sharded=self._host.sharded,
                say=self._say,
            )
            made = embed(self._selector, sources, ranks)
            self._embedded = dict(zip(("embeddings", "target_embeddings"), made, strict=False))
        found = self._embedded.pop(name)
        cost: dict[str, Any] = {
            "source": "measured" if found.cost.num_rows else "cache",
            "num_rows": found.cost.num_rows,
            "num_tokens": found.cost.num_tokens,
            "num_tokens_kept": found.cost.num_tokens_kept,
            "seconds": found.seconds if found.cost.num_rows else 0.0,
            "tokens_per_s": found.cost.num_tokens / max(found.seconds, 1e-9),
            "files": {name: str(found.path)},
        }
        if found.encoder is not None:
            cost = _of_another(cost, found.encoder)
        # Only the first rank decides, and only its host need have the file.
        return Measured(values=found.read() if self._ranks.is_main else np.zeros((0, 0), np.float32), cost=cost)

    def _reference_loss(self) -> Measured:
        """Mean loss of every row under the reference that the method names; kept for other runs."""
        trainer, path = self._host.trainer, self._selector.reference
        self._host.refuse_own_loss("a reference's loss is of tokens")
        model = trainer.accelerator.unwrap_model(trainer.model)
        if path == SELF_BASE:
            if not hasattr(model, "disable_adapter"):
                raise ConfigError(
                    "reference: self is the model without its adapter, and this run trains none; name a model"
                )
            with without_adapter(model):
                return self._losses.of_model(model, "reference_loss", weights_digest(model, "base"))
        reference = Reference(path, model, trainer.accelerator).model
        measured = self._losses.of_model(reference, "reference_loss", weights_digest(reference))
        return replace(measured, cost=_of_another(measured.cost, reference))

    def _answer_losses(self) -> Measured:
        """Losses of the answers after their prompts and without them, shape (N, 2); see ``train.answers``."""
        self._host.refuse_own_loss("its losses are of tokens")
        trainer, selector = self._host.trainer, self._selector
        own = trainer.accelerator.unwrap_model(trainer.model)
        if selector.model == SELF_BASE and self._host.sharded:
            raise ConfigError(
                "model: self needs the whole weights on every rank, and FSDP and DeepSpeed cut them apart; name a "
                "small model to score with"
            )
        answers = Answers(
            dataset=trainer.train_dataset,
            fetch=fetch,
            row_labels=lambda features: row_labels(features, self._host.source(trainer.train_dataset).collate),
            header=selector.header,
            own=tokenizer_of(trainer),
        )
        model, answers = (
            (own, answers) if selector.model == SELF_BASE else answers.scored_by(selector.model, own, trainer)
        )
        both, digest = [], weights_digest(model)
        for prompted in (True, False):
            source = replace(
                self._host.source(trainer.train_dataset), model=model, **answers.source_fields(prompted=prompted)
            )
            both.append(
                self._losses.of_model(model, "answer_loss", digest, source=source, what=answers.told(prompted=prompted))
            )
        values_Nx2 = np.stack([one.values for one in both], axis=1)
        cost = added(both[0].cost, both[1].cost)
        return Measured(values=values_Nx2, cost=cost if model is own else _of_another(cost, model))

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


def _of_another(cost: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The cost of a pass that ``model`` made, not the one in training; what was kept of an earlier one included."""
    num_tokens = cost["num_tokens"] + cost.get("num_tokens_kept", 0)
    if not num_tokens:
        return dict(cost)
    return {**cost, "other_tokens": num_tokens, "other_macs": flops_of(model).weights * num_tokens}


def learning_rate(trainer: Any) -> float:
    """Of the step that comes next."""
    scheduler = getattr(trainer, "lr_scheduler", None)
    return float(scheduler.get_last_lr()[0] if scheduler is not None else trainer.args.learning_rate)


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
