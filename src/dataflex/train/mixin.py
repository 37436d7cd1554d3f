"""DynamicDataMixin: put it left of any Trainer class, and its samples are chosen while it trains."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dataflex.algorithms.base import Mixer, Order, Selector, Weigher
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.order import Geometry, micro_batches_per_pass
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.ledger.files import out_of_space
from dataflex.ledger.ledger import Ledger
from dataflex.signals.cache import weights_digest
from dataflex.train.callback import AfterStep, EpochCounter
from dataflex.train.chain import SegmentChain, draw_like_a_stock_loader, host_order
from dataflex.train.checkpoint import newest_complete_checkpoint
from dataflex.train.curator import Curator
from dataflex.train.indexed import SAMPLE_IDS, IndexedCollator, IndexedDataset
from dataflex.train.loggers import log_off_console
from dataflex.train.make_budget import make_budget
from dataflex.train.measure import Measurer
from dataflex.train.opening import first_lines
from dataflex.train.pool import Pool, read_pool
from dataflex.train.progress import say
from dataflex.train.python_api import (
    Components,
    Options,
    bare_collator,
    beside_evaluation,
    history_table,
    settings_of,
)
from dataflex.train.ranks import Ranks, load_cpu_checkpoints_by_index
from dataflex.train.refuse import refuse_model, refuse_stream, refuse_trainer, refuse_unsupported
from dataflex.train.settings import (
    Settings,
    check_quotas,
    domains_of_run,
    geometry_of,
    make_fingerprint,
    make_plan,
    versions,
)
from dataflex.train.source_loss import SourceLoss
from dataflex.train.sources import find_sources, require_sources
from dataflex.train.target import check_target
from dataflex.train.watching import measure_domains, row_factor, watch_training


class DynamicDataMixin:
    """Left of a Trainer class: the train dataloader becomes a chain of segments, each decided when its turn comes.

    Nothing of the training loop is copied. Overridden are ``get_train_dataloader`` (the chain), ``train`` and
    ``_run_epoch`` (resume), ``save_model`` (our state in every checkpoint), ``training_step`` (sample ids leave the
    batch) and ``log`` (the loss of each source).
    """

    def __init__(
        self,
        *args: Any,
        selector: Selector | None = None,
        mixer: Mixer | None = None,
        weigher: Weigher | Sequence[Weigher] | None = None,
        order: Order | Sequence[Order] | None = None,
        schedule: Schedule | None = None,
        options: Options | None = None,
        target: Any = None,
        dataflex: Settings | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            selector: what chooses the samples, a value such as ``DeltaLoss(window_size=0.2)``.
            mixer: what says how many come from each domain, such as ``Temperature(temperature=3.0)``.
            weigher: what says how much each counts in the loss, one or several.
            order: what arranges them.
            schedule: when decisions are made.
            options: what else may be said of a run; ``overwrite_output_dir`` among it.
            target: rows that steer the selection and are not trained, in the form of ``train_dataset``; for ``Less``.
            dataflex: all of it as an integration made it, instead of those above.
            args, kwargs: handed to the host's trainer.
        """
        refuse_trainer(type(self))
        components = Components(selector=selector, mixer=mixer, weigher=weigher, order=order)
        if dataflex is None and (not components or schedule is None):
            raise ConfigError(
                "a selector (or mixer, weigher, order) and a schedule are needed, such as "
                "selector=DeltaLoss(window_size=0.2), schedule=Schedule(warmup_step=10, update_step=10, update_times=2)"
            )
        with beside_evaluation(self, target, kwargs) as prepared:
            super().__init__(*args, **kwargs)
        trainer_args = self.args  # type: ignore[attr-defined]
        refuse_unsupported(trainer_args)
        refuse_model(self.model)  # type: ignore[attr-defined]
        refuse_stream(self.train_dataset)  # type: ignore[attr-defined]
        if dataflex is None:
            given = kwargs.get("train_dataset")
            targets = (target, prepared.dataset) if target is not None else None
            dataflex = settings_of(self, given, components, schedule, options or Options(), targets)
        self._dataflex = dataflex
        pool = dataflex.pool or read_pool(self.train_dataset, bare_collator(self))  # type: ignore[attr-defined]
        geometry = geometry_of(trainer_args)
        if self.get_total_train_batch_size(trainer_args) != geometry.global_batch:  # type: ignore[attr-defined]
            raise DataFlexError("tensor, context and sequence parallelism are not supported yet; use data parallelism")
        plan = make_plan(dataflex, trainer_args, len(pool), geometry)
        check_target(dataflex.method, is_given=dataflex.target is not None, plan=plan)
        self._check_quotas(plan, pool, geometry)
        ranks = Ranks(self.accelerator)  # type: ignore[attr-defined]
        ledger = self._ledger = Ledger(trainer_args.output_dir)
        ranks.require_equal(pool.digest, "the training data")
        domains = domains_of_run(dataflex, pool, dataflex.rows)
        self.measurer = Measurer(
            self,
            selector=dataflex.method.selector,
            pool=pool,
            ranks=ranks,
            ledger=ledger,
            batch_tokens=dataflex.score_batch_tokens,
            fresh=dataflex.fresh,
            say=say,
            columns=dataflex.rows,
            target=dataflex.target,
            keeps_losses=dataflex.method.score_budget is not None,
        )
        sources = find_sources(dataflex.rows)
        self._source_loss = SourceLoss(require_sources(sources)) if dataflex.log_source_loss else None
        method = dataflex.method
        self._trained_loss = watch_training(
            self,
            method,
            num_steps=plan.num_steps,
            geometry=geometry,
            pool=pool,
            ranks=ranks,
            domains=domains,
            columns=dataflex.rows,
            listener=self._source_loss.take if self._source_loss else None,
            target=dataflex.target,
            factor=lambda rows_B: row_factor(self.curator, self.state.global_step, rows_B),  # type: ignore[attr-defined]
        )
        seed = trainer_args.data_seed if trainer_args.data_seed is not None else trainer_args.seed
        budget = make_budget(
            self,
            method,
            plan=plan,
            geometry=geometry,
            pool=pool,
            seed=seed,
            sources=sources,
            cache=self.measurer.cache,
            collate=bare_collator(self),
        )
        self.curator = Curator(
            method=dataflex.method,
            plan=plan,
            geometry=geometry,
            pool=pool,
            seed=seed,
            ledger=ledger,
            ranks=ranks,
            measure=self.measurer,
            spot_check=self.measurer.spot_check,
            host_order=self._host_order,
            say=say,
            log=lambda numbers: log_off_console(self, numbers),
            versions=versions(),
            sources=sources,
            domains=domains,
            measure_domains=functools.partial(measure_domains, method, domains),
            training=self._trained_loss if self._trained_loss and self._trained_loss.keeps else None,
            budget=budget,
            cached_losses=self.measurer.cached_losses,
        )
        self._fingerprint = make_fingerprint(dataflex, pool, geometry, ledger)
        if not dataflex.method.follows_host or dataflex.schedule.train_step:
            trainer_args.max_steps = plan.num_steps
        self.add_callback(EpochCounter(plan.steps_per_epoch, self._micro_batches()))  # type: ignore[attr-defined]
        self.add_callback(AfterStep(self.curator.after_step))  # type: ignore[attr-defined]

    def _check_quotas(self, plan: SegmentPlan, pool: Pool, geometry: Geometry) -> None:
        check_quotas(self._dataflex, plan, pool, geometry)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One flat dict for each decision so far, in order: ``pandas.DataFrame(trainer.history)``."""
        return history_table(self._ledger)

    # the train dataloader

    def get_train_dataloader(self) -> SegmentChain:
        dataset, collate = self.train_dataset, self.data_collator  # type: ignore[has-type]
        # The host builds its loader as ever, over features that know their row.
        self.train_dataset, self.data_collator = IndexedDataset(dataset), IndexedCollator(collate)
        try:
            loader = super().get_train_dataloader()  # type: ignore[misc]
        finally:
            self.train_dataset, self.data_collator = dataset, collate
        self._host_sampler = loader.get_sampler()
        return SegmentChain(
            loader,
            deals=lambda: self.curator.rest_of_epoch(self.state.global_step),  # type: ignore[attr-defined]
            num_micro_batches=self._micro_batches(),
            geometry=self.curator.geometry,
            rank=self.args.process_index,  # type: ignore[attr-defined]
            before_epoch=self._before_epoch,
        )

    def _micro_batches(self) -> int:
        """Micro-batches of one rank in one epoch."""
        curator, args = self.curator, self.args  # type: ignore[attr-defined]
        if not curator.method.follows_host:
            return curator.plan.steps_per_epoch * curator.geometry.accumulation
        return micro_batches_per_pass(len(curator.pool), curator.geometry, drop_last=args.dataloader_drop_last)

    def _before_epoch(self) -> None:
        step, args = self.state.global_step, self.args  # type: ignore[attr-defined]
        # Persistent workers keep one iterator, whose seed is drawn once. Otherwise once an epoch, at its beginning: a
        # resume in mid-epoch restores a stream from which the draw was already taken.
        persistent = args.dataloader_persistent_workers and args.dataloader_num_workers > 0
        draws_now = step == 0 if persistent else step % self.curator.plan.steps_per_epoch == 0
        if self.curator.method.follows_host and draws_now:
            draw_like_a_stock_loader()

    def _host_order(self, epoch: int) -> np.ndarray:
        drop_last = self.args.dataloader_drop_last  # type: ignore[attr-defined]
        return host_order(self._host_sampler, epoch, self.curator.geometry, drop_last=drop_last)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if self._signature_columns is not None and SAMPLE_IDS not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, SAMPLE_IDS]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows_B, step = inputs.pop(SAMPLE_IDS), self.state.global_step  # type: ignore[attr-defined]
        watching = self._trained_loss.watching(model, inputs, rows_B, step) if self._trained_loss else nullcontext()
        with watching:
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
        if self._source_loss and "loss" in logs:  # the host's own training loss, on every rank
            log_off_console(self, self._source_loss.means(self.curator.ranks.gather))

    # beginning, saving, resuming

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        trainer_args = self.args  # type: ignore[attr-defined]
        checkpoint = self.curator.ranks.from_main(lambda: self._checkpoint(resume_from_checkpoint))
        self.curator.ranks.require_on_all(
            checkpoint is None or os.path.isdir(checkpoint), f"{checkpoint} is not visible on every machine"
        )
        curator = self.curator
        if checkpoint and self._micro_batches() % curator.geometry.accumulation and not hasattr(Trainer, "_run_epoch"):
            raise DataFlexError(
                "this version of transformers cannot resume an epoch whose last step is short of micro-batches; "
                "install transformers>=5.3, or set dataloader_drop_last: true"
            )
        if trainer_args.process_index == 0:
            for line in first_lines(self._dataflex, curator.plan, curator.geometry, curator.pool, self):
                say(line)
        # The chain positions itself; the Trainer's own skipping would rebuild the loader and train nothing.
        ignore_data_skip, trainer_args.ignore_data_skip = trainer_args.ignore_data_skip, True
        try:
            curator.begin(
                self._run_record(), self._row_columns(), overwrite=self._dataflex.overwrite, checkpoint=checkpoint
            )
            if checkpoint and curator.ranks.device == torch.device("cpu", 0):
                load_cpu_checkpoints_by_index()
            result = super().train(checkpoint, *args, **kwargs)  # type: ignore[misc]
            curator.end(self.state.global_step, self.state.best_model_checkpoint)  # type: ignore[attr-defined]
        except (OSError, RuntimeError, SafetensorError) as error:  # what the host meets while it writes a checkpoint
            folder = trainer_args.output_dir
            if not out_of_space(error, Path(folder)):
                raise
            raise DataFlexError(
                f"the disk of {folder} is full ({' '.join(str(error).split())[:200]}); free some space there, then "
                "give the same command again with overwrite_output_dir: false: it goes on from the last complete "
                "checkpoint, and nothing that was recorded is lost"
            ) from error
        finally:
            trainer_args.ignore_data_skip = ignore_data_skip
            self._ledger.unlock()
        if curator.num_decisions == 0 and checkpoint is None:
            raise DataFlexError(
                "the trainer never asked for a segment: it builds its own data loader and cannot be served"
            )
        return result

    def _checkpoint(self, asked_for: str | bool | None) -> str | None:
        """The checkpoint to resume from, or None (rank 0)."""
        output_dir, settings = self.args.output_dir, self._dataflex  # type: ignore[attr-defined]
        if settings.overwrite and asked_for is None:
            return None
        if isinstance(asked_for, str) and not settings.newest_checkpoint:
            return asked_for
        newest = newest_complete_checkpoint(output_dir, self.curator.why_not, say)
        if newest is None and asked_for is True:
            raise DataFlexError(
                f"{output_dir} holds no checkpoint of this run to resume; remove resume_from_checkpoint"
            )
        if newest is not None and not asked_for and self._ledger.run().get("fingerprint") == self._fingerprint:
            raise DataFlexError(
                f"{output_dir} holds {os.path.basename(newest)} of this very run; pass resume_from_checkpoint=True, or "
                "choose another output_dir"
            )
        return newest if asked_for else None

    def _run_epoch(self, *, steps_in_epoch: int, num_update_steps_per_epoch: int, **kwargs: Any) -> None:
        # The Trainer counts a resumed epoch from zero, but the chain yields only its rest. With the rest's own counts
        # the last step of a pass is taken even where it is short of micro-batches.
        done = self.state.global_step % self.curator.plan.steps_per_epoch  # type: ignore[attr-defined]
        super()._run_epoch(  # type: ignore[misc]
            steps_in_epoch=steps_in_epoch - done * self.curator.geometry.accumulation,
            num_update_steps_per_epoch=num_update_steps_per_epoch - done,
            **kwargs,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        name = os.path.basename(os.path.normpath(output_dir)) if output_dir else ""
        is_checkpoint = _internal_call and name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
        if is_checkpoint:  # of the same step, from an earlier run or branch
            self.curator.clear(Path(output_dir or ""))
        super().save_model(output_dir, _internal_call=_internal_call)  # type: ignore[misc]
        # Checkpoints only: before trainer_state.json is written and older ones are removed, so that a checkpoint the
        # Trainer takes for complete has our state.
        if is_checkpoint:
            self.curator.save(Path(output_dir or ""), self.state.global_step, self._fingerprint)  # type: ignore[attr-defined]

    def _run_record(self) -> dict[str, Any]:
        plan, geometry = self.curator.plan, self.curator.geometry
        beside = self._trained_loss.reference_weights if self._trained_loss else 0
        return {
            "fingerprint": self._fingerprint,
            "config": dict(self._dataflex.config),
            "method": self.curator.method.name,
            "params": self.curator.method.params,
            **({"parts": self.curator.method.parts} if self.curator.method.parts else {}),
            **({"domains": self.curator.domains.record()} if self.curator.domains else {}),
            **({"target": self._dataflex.target.record()} if self._dataflex.target else {}),
            "schedule": dict(vars(self._dataflex.schedule)),
            "plan": {"num_steps": plan.num_steps, "steps_per_epoch": plan.steps_per_epoch},
            "geometry": dict(vars(geometry)),
            "seed": self.curator.seed,
            "versions": versions(),
            "base_weights": self._base_weights(),
            **({"reference_weights": beside} if beside else {}),
        }

    def _base_weights(self) -> str | None:
        """Hash of the weights that are not trained, which no checkpoint holds; None when ranks hold parts of them.

        Sharded models still lie in the host's memory here, where hashing 70B would take the better part of an hour.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            return None
        model = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        frozen = any(not parameter.requires_grad for parameter in model.parameters())
        return weights_digest(model, "frozen") if frozen and self.curator.ranks.is_main else None

    def _row_columns(self) -> dict[str, Any]:
        info = self.curator.pool.info
        return {
            "row": np.arange(len(info)),
            "num_tokens": info.num_tokens_N,
            "num_label_tokens": info.num_label_tokens_N,
            **self._dataflex.rows,
        }


def dynamic(trainer_class: type) -> type:
    """Return ``trainer_class``, any subclass of ``transformers.Trainer``, with its samples chosen while it trains.

    ``dynamic(SFTTrainer)(model=..., args=..., train_dataset=..., selector=DeltaLoss(...), schedule=Schedule(...))``

    Raises:
        ConfigError: no Trainer, or one that makes its samples itself.
    """
    refuse_trainer(trainer_class)
    return type(f"Dynamic{trainer_class.__name__}", (DynamicDataMixin, trainer_class), {})
