"""Mean losses of pool rows: of the model in training or of another one, by a pass or from the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors import SafetensorError

from dataflex.algorithms.base import Progress
from dataflex.ledger.fingerprint import comparable
from dataflex.ledger.ledger import Ledger
from dataflex.signals.adapter import adds_nothing, without_adapter
from dataflex.signals.base import undisturbed
from dataflex.signals.cache import SignalCache, weights_digest
from dataflex.signals.gradient.signal import Source
from dataflex.signals.loss import LossSignal, mean_losses, rows_to_check
from dataflex.signals.own_loss import ONE_ROW, OwnLossSignal
from dataflex.signals.sweep import Sweep, sweep
from dataflex.train.host_rows import HostRows, fetch
from dataflex.train.measured import FROM_CACHE, Measured, only
from dataflex.train.pool import Pool, holds_media
from dataflex.train.progress import PassProgress
from dataflex.train.ranks import Ranks
from dataflex.train.stage_loss import batch_losses, counters_untouched, scores_own_loss

SPOT_CHECK_TOKENS = 1024  # padded tokens of a batch where none has been found yet
OWN_LOSS = "the trainer's own, each row alone"
LOSS_DEFINITION = "mean negative log-likelihood over label tokens, eval mode, fp32 sums, version 1"


class LossPass:
    """Measures losses of the whole pool, or of some rows (collective).

    Args:
        cacheable: keep the losses of the first weights for other runs.
        ledger: of this run; keeps the batch size that was found.
        batch_tokens: padded tokens of a scoring batch, where the user pins it.
        fresh: serve no array from the cache.
    """

    def __init__(
        self,
        host: HostRows,
        *,
        pool: Pool,
        ranks: Ranks,
        ledger: Ledger,
        cache: SignalCache,
        cacheable: bool,
        batch_tokens: int | None,
        fresh: bool,
        say: Callable[[str], None],
    ) -> None:
        self._host, self._pool, self._ranks, self._ledger, self._say = host, pool, ranks, ledger, say
        self._cache, self._cacheable, self._fresh, self._batch_tokens = cache, cacheable, fresh, batch_tokens
        self._told_why = False
        self._signal: LossSignal | OwnLossSignal | None = None  # one a run: its fast path is checked once

    def cached(self, progress: Progress) -> np.ndarray | None:
        """Losses of all rows under the present weights, where the cache holds them (collective)."""
        key, _ = self._key_at(progress)
        return self._ranks.from_main(lambda: self._load(key)) if key is not None and not self._fresh else None

    def _key_at(self, progress: Progress) -> tuple[dict[str, str] | None, bool]:
        """(key of losses now, None where no other run can use them; whether they are those of the base model)."""
        # Only the initial losses can serve another run: any later weights are this run's alone.
        cacheable = self._cacheable and (progress.step == 0 or progress.is_first_selection)
        # Losses of the base model serve every run that starts from it, whatever its adapter.
        at_base = progress.step == 0 and not self._host.sharded and adds_nothing(self._host.trainer.model)
        key = self._ranks.from_main(lambda: self._cache_key(at_base=at_base)) if cacheable else None
        return key, at_base

    def __call__(self, progress: Progress, rows: np.ndarray | None) -> Measured:
        """Mean loss of rows under the current model; initial losses come from the cache where they are there."""
        key, at_base = self._key_at(progress)
        serves = key is not None and not self._fresh
        cached = self._ranks.from_main(lambda: self._load(key or {})) if serves else None
        if cached is not None:
            return Measured(values=cached if rows is None else only(rows, cached), cost=dict(FROM_CACHE))
        with without_adapter(self._host.trainer.model) if at_base else nullcontext():
            budget = self._known_budget()
            trainable_N = self._pool.info.trainable_N
            asked = np.flatnonzero(trainable_N) if rows is None else rows[trainable_N[rows]]
            measured = self._sweep_losses(asked, budget)
            self._keep_budget(measured.cost["batch_tokens"], budget)
        if key is not None and rows is None and self._ranks.is_main:
            self._keep(key, measured.values, "initial losses")
        return measured

    def of_model(
        self, model: Any, signal: str, digest: str | None, *, source: Source | None = None, what: str = ""
    ) -> Measured:
        """Mean losses of all rows under a model that is whole on every rank, kept in the cache."""
        trainer = self._host.trainer
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
        source = source or replace(self._host.source(trainer.train_dataset), model=model)
        measured = self._sweep_losses(
            np.flatnonzero(self._pool.info.trainable_N), self._batch_tokens, LossSignal(**vars(source))
        )
        if digest is not None and self._ranks.is_main:
            self._keep(key, measured.values, signal.replace("_", " "))
        return measured

    def spot_check(self, rows_R: np.ndarray) -> Measured:
        """Mean losses of some rows under the present model, shape (R,)."""
        budget = self._known_budget() or SPOT_CHECK_TOKENS  # too few rows to find one
        measured = self._sweep_losses(rows_R, budget)
        return replace(measured, values=measured.values[rows_R])

    def _known_budget(self) -> int | None:
        """Padded tokens of a scoring batch: pinned, or found by an earlier pass of the run."""
        return self._batch_tokens or self._ranks.from_main(lambda: self._ledger.run().get("score_batch_tokens"))

    def _keep_budget(self, found: int, known: int | None) -> None:
        """Keep the batch size for later passes and resumes."""
        if found != known and self._batch_tokens is None:
            self._ranks.from_main(lambda: self._ledger.update_run({"score_batch_tokens": found}))

    def _sweep_losses(self, rows: np.ndarray, budget: int | None, of: LossSignal | None = None) -> Measured:
        """Mean losses of ``rows``, NaN for the others: of the model in training, or ``of`` another signal."""
        pool, sharded = self._pool, self._host.sharded and of is None
        if of is None:
            self._signal = self._signal or self._loss_signal(sharded)
        signal = of or self._signal
        assert signal is not None
        ranks = self._host.collective(sharded=sharded)
        to_check = rows_to_check(pool.info.num_tokens_N, rows)
        progress = PassProgress(
            len(rows),
            int(pool.info.num_tokens_N[rows].sum()),
            bar=not self._host.trainer.args.disable_tqdm,
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

    def _loss_signal(self, sharded: bool) -> LossSignal | OwnLossSignal:
        trainer = self._host.trainer
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
        return LossSignal(**{**vars(self._host.source(trainer.train_dataset)), "model": model})

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

    def _keep(self, key: Mapping[str, str], values: np.ndarray, what: str) -> None:
        try:
            self._cache.save(key, values)
        except (OSError, SafetensorError) as error:  # a cache is a convenience
            reason = " ".join(str(error).split())
            self._say(f"the {what} could not be kept in {self._cache.directory} ({reason}): go on")

    def _cache_key(self, *, at_base: bool) -> dict[str, str] | None:
        """Everything the losses depend on; the tokens and labels stand for tokenizer, template and cutoff."""
        trainer = self._host.trainer
        # A part of the weights only; more in a row than its tokens tell.
        if trainer.is_fsdp_enabled or holds_media(trainer.train_dataset):
            return None
        model = trainer.accelerator.unwrap_model(trainer.model)
        weights = weights_digest(model, "base" if at_base else "all")
        if weights is None:
            return None
        precision = f"{getattr(trainer.model, 'dtype', None)}, autocast {trainer.accelerator.mixed_precision}"
        return {
            "signal": "loss",
            "weights": weights,
            "data": self._pool.digest,
            "definition": self._definition(),
            "precision": precision,
        }

    def _definition(self) -> str:
        """What the losses are, for the cache."""
        trainer = self._host.trainer
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
