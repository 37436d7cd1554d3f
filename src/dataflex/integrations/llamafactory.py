"""LLaMA-Factory: called as a library, its workflow's trainer and data functions rebound while it runs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.integrations.remedy import REMEDY
from dataflex.integrations.row_trace import RowTrace
from dataflex.integrations.trainer_log import full_log
from dataflex.ledger.ledger import Ledger
from dataflex.train.measure import check_files
from dataflex.train.method import Method
from dataflex.train.mixin import dynamic
from dataflex.train.pool import read_pool
from dataflex.train.progress import say
from dataflex.train.reference import check_reference
from dataflex.train.refuse import refuse_unsupported
from dataflex.train.settings import (
    Settings,
    check_quotas,
    check_weighers,
    domains_of_run,
    geometry_of,
    make_fingerprint,
    make_plan,
)
from dataflex.train.sources import find_sources, require_sources
from dataflex.train.target import Target, check_target, read_target

# For each stage the module of its workflow, and where that looks up the class of its trainer.
SERVED_STAGES = {
    "sft": ("llamafactory.train.sft.workflow", "llamafactory.train.sft.workflow", "CustomSeq2SeqTrainer"),
    "pt": ("llamafactory.train.pt.workflow", "llamafactory.train.pt.workflow", "CustomTrainer"),
    "rm": ("llamafactory.train.rm.workflow", "llamafactory.train.rm.workflow", "PairwiseTrainer"),
    # Imported inside its workflow's function, from the module that defines it.
    "dpo": ("llamafactory.train.dpo.workflow", "llamafactory.train.dpo.trainer", "CustomDPOTrainer"),
    "kto": ("llamafactory.train.kto.workflow", "llamafactory.train.kto.workflow", "CustomKTOTrainer"),
}
OTHER_LOSSES = ("use_dft_loss", "use_eaft_loss", "use_asft_loss", "label_smoothing_factor")
LOADER = "llamafactory.data.loader"
TUNER = "llamafactory.train.tuner"


def run_static(config: Mapping[str, Any]) -> None:
    """Train with LLaMA-Factory alone; nothing of ours is engaged."""
    import_module(TUNER).run_exp(dict(config))


def export_model(config: Mapping[str, Any]) -> None:
    """Merge and save with LLaMA-Factory alone.

    Raises:
        DataFlexError: what it refuses, in one sentence.
    """
    tuner = import_module(TUNER)
    try:
        tuner.export_model(dict(config))
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        if os.environ.get("DATAFLEX_TRACEBACK"):
            raise
        raise DataFlexError(f"the model cannot be exported: {_one_sentence(error)}") from error


def run_dynamic(config: Mapping[str, Any], settings: Settings) -> Any:
    """Train with LLaMA-Factory while a method chooses the samples.

    Args:
        config: LLaMA-Factory's own keys, ours taken out.
        settings: method, schedule and the resolved config.

    Returns:
        The trainer, trained.

    Raises:
        DataFlexError: anything that the user can mend, in one sentence.
    """
    refuse_config(config)
    if settings.log_source_loss and config.get("stage", "sft") not in ("sft", "pt"):
        raise ConfigError(
            f"log_source_loss reads the losses of tokens, which stage {config.get('stage')} has none of; remove it"
        )
    if settings.log_source_loss and config.get("enable_liger_kernel"):
        raise ConfigError(
            "log_source_loss reads the logits of the training's forward, which enable_liger_kernel fuses into the "
            "loss; remove one of them"
        )
    method = settings.method
    check_target(method, is_given=bool(settings.target_names))
    if settings.target_names and config.get("stage", "sft") not in ("sft", "pt"):
        raise ConfigError(
            f"{method.name} needs gradients of the loss of tokens, which stage {config['stage']} replaces by its own; "
            "use stage sft or pt, or a method that needs no target"
        )
    if method.watches_training:
        _refuse_unwatchable(config, method)
    session = Session(
        settings,
        stage=config.get("stage", "sft"),
        explicit_checkpoint=bool(config.get("resume_from_checkpoint")),
    )
    session.run(config)
    if session.trainer is None:
        raise DataFlexError("LLaMA-Factory built another trainer than the one that can be served; nothing was chosen")
    return session.trainer


def _refuse_unwatchable(config: Mapping[str, Any], method: Method) -> None:
    """Raise where the losses of the training's own forwards cannot be read, or weighed, before a model is loaded."""
    stage = config.get("stage", "sft")
    if stage not in ("sft", "pt"):
        raise ConfigError(
            f"{method.title} needs the losses of tokens, which stage {stage} has none of; use stage sft or pt, or a "
            "selector"
        )
    if config.get("enable_liger_kernel"):
        raise ConfigError(
            f"{method.title} needs the loss of each row, which enable_liger_kernel fuses away; remove one of them"
        )
    other = next((key for key in OTHER_LOSSES if config.get(key)), None)
    if other is not None and (method.weighers or (method.mixer and method.mixer.method.step_needs)):
        raise ConfigError(f"{method.title} weighs the plain loss, and {other} replaces it; leave one out")
    reference = getattr(method.mixer.method, "reference", None) if method.mixer is not None else None
    if reference is not None:
        check_reference(reference)


def refuse_config(config: Mapping[str, Any]) -> None:
    """Raise for what cannot be served, before LLaMA-Factory reads anything."""
    stage = config.get("stage", "sft")
    if stage not in SERVED_STAGES:
        raise ConfigError(
            f"stage {stage!r} is not served yet with a dynamic train_type; served: {', '.join(SERVED_STAGES)}"
        )
    if not config.get("do_train", False):
        raise ConfigError("do_train is not true; dataflex-cli train with a dynamic train_type needs do_train: true")
    if config.get("streaming"):
        raise ConfigError(
            "streaming: true gives no random access to the samples; set streaming: false to choose among them"
        )
    if stage != "pt" and (config.get("packing") or config.get("neat_packing")):
        raise ConfigError(
            "packing joins several rows into one sample, which cannot be chosen one by one; set packing: false"
        )
    for variable in ("USE_RAY", "USE_MCA", "USE_KT", "USE_V1"):
        if os.environ.get(variable, "0").lower() in ("1", "true", "y"):
            raise ConfigError(f"{variable} is set; this launcher of LLaMA-Factory is not served yet, unset it")


class Session:
    """One run: what is caught on the way from the raw data to the trainer."""

    def __init__(
        self,
        settings: Settings,
        *,
        explicit_checkpoint: bool,
        stage: str = "sft",
        serve: Callable[[type], type] = dynamic,
    ) -> None:
        """
        Args:
            stage: of LLaMA-Factory, one of ``SERVED_STAGES``.
            serve: makes of the host's trainer class the one that is built instead.
        """
        self._settings = replace(settings, newest_checkpoint=not explicit_checkpoint)
        self._serve, self._stage = serve, stage
        self.trace = self._tracing = RowTrace()
        self.trainer: Any = None

    def run(self, config: Mapping[str, Any]) -> None:
        """Have LLaMA-Factory train with what is rebound."""
        tuner = import_module(TUNER)
        try:
            with self.engaged():
                tuner.run_exp(dict(config))
        except DataFlexError:
            raise
        except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
            # Before the trainer exists, what fails in these ways is a key, a file or a package of the user's.
            if self.trainer is not None or os.environ.get("DATAFLEX_TRACEBACK"):
                raise
            raise DataFlexError(_one_sentence(error)) from error

    @contextmanager
    def engaged(self) -> Iterator[None]:
        """Rebind, for the duration of the run, the names that LLaMA-Factory looks up in its own modules."""
        workflow_name, trainer_module, trainer_name = SERVED_STAGES[self._stage]
        workflow, loader = import_module(workflow_name), import_module(LOADER)
        with ExitStack() as stack:
            stack.enter_context(rebound(import_module(TUNER), "LogCallback", full_log))
            stack.enter_context(rebound(import_module(trainer_module), trainer_name, self._make_trainer))
            stack.enter_context(rebound(workflow, "get_dataset", self._get_dataset))
            stack.enter_context(rebound(loader, "align_dataset", self._align))
            stack.enter_context(rebound(loader, "_get_dataset_processor", self.trace.processor))
            yield

    def _align(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The target's rows are traced by themselves."""
        return lambda *args: self._tracing.align(original)(*args)

    def _make_trainer(self, original: type) -> Any:
        served_class = self._serve(original)

        def make(*args: Any, **kwargs: Any) -> Any:
            trainer = served_class(*args, dataflex=self._settings, **kwargs)
            self.trainer = trainer
            return trainer

        return make

    def _get_dataset(self, original: Any) -> Any:
        @functools.wraps(original)
        def get_dataset(template: Any, model_args: Any, data_args: Any, training_args: Any, **kwargs: Any) -> Any:
            if data_args.tokenized_path is not None:
                # Rows would be stored with our columns, or come without them.
                raise ConfigError("tokenized_path is not served yet with a dynamic train_type; remove it")
            refuse_unsupported(training_args)
            try:
                module = original(template, model_args, data_args, training_args, **kwargs)
            except (ValueError, OSError, KeyError, TypeError, RuntimeError) as error:
                names = ", ".join([*(data_args.dataset or []), *(data_args.eval_dataset or [])])
                raise DataFlexError(f"the data ({names}) cannot be prepared: {_one_sentence(error)}") from error
            module["train_dataset"], rows = self.trace.columns(module["train_dataset"])
            evaluated = module.get("eval_dataset")
            if isinstance(evaluated, dict):
                module["eval_dataset"] = {name: RowTrace.strip(data) for name, data in evaluated.items()}
            elif evaluated is not None:
                module["eval_dataset"] = RowTrace.strip(evaluated)
            if self._settings.target_names:
                load = functools.partial(original, template, model_args, training_args=training_args, **kwargs)
                target = self._target(load, data_args, module["train_dataset"])
                self._settings = replace(self._settings, target=target)
            self.check(module["train_dataset"], rows, training_args)
            return module

        return get_dataset

    def _target(self, load: Callable[..., Any], data_args: Any, train_dataset: Any) -> Target:
        """The target's rows, read as data sets of the training are."""
        of_target, settings = copy.copy(data_args), self._settings
        of_target.dataset, of_target.eval_dataset, of_target.val_size = list(settings.target_names), None, 0.0
        of_target.mix_strategy = "concat"
        self._tracing = trace = RowTrace()
        try:
            dataset, columns = trace.columns(load(data_args=of_target)["train_dataset"])
        except (ValueError, OSError, KeyError, TypeError, RuntimeError) as error:
            names = ", ".join(settings.target_names)
            raise DataFlexError(f"the target ({names}) cannot be prepared: {_one_sentence(error)}") from error
        finally:
            self._tracing = self.trace
        return read_target(
            dataset,
            columns,
            train_dataset=train_dataset,
            column=settings.target_groups,
            allow_overlap=settings.allow_overlap,
        )

    def check(self, train_dataset: Any, rows: Mapping[str, Any], args: Any) -> None:
        """All that can be refused is refused here: before the model is loaded and before anything is written."""
        pool = read_pool(train_dataset)
        geometry = geometry_of(args)
        overwrite = bool(getattr(args, "overwrite_output_dir", False))
        self._settings = replace(self._settings, pool=pool, rows=rows, overwrite=overwrite)
        plan = make_plan(self._settings, args, len(pool), geometry)
        check_quotas(self._settings, plan, pool, geometry)
        check_target(self._settings.method, is_given=self._settings.target is not None, plan=plan)
        if self._settings.log_source_loss:
            require_sources(find_sources(rows))
        domains_of_run(self._settings, pool, rows)
        check_weighers(self._settings.method, geometry)
        if args.process_index == 0:  # the others may not see these files
            check_files(self._settings.method, pool, rows, args.output_dir)
            ledger = Ledger(args.output_dir)
            ledger.claim(make_fingerprint(self._settings, pool, geometry, ledger), overwrite=overwrite)


@contextmanager
def rebound(module: Any, name: str, wrap: Any) -> Iterator[None]:
    """Bind ``module.name`` to ``wrap(original)`` and put the original back afterwards."""
    original = getattr(module, name, None)
    if original is None:
        raise ConfigError(f"this LLaMA-Factory has no {module.__name__}.{name}; install llamafactory==0.9.5")
    setattr(module, name, wrap(original))
    try:
        yield
    finally:
        setattr(module, name, original)


@functools.cache
def known_keys() -> dict[str, Any]:
    """All keys of a LLaMA-Factory training config with their types."""
    parser = import_module("llamafactory.hparams.parser")
    ray = import_module("llamafactory.hparams.training_args").RayArguments
    keys: dict[str, Any] = {}
    for cls in (*parser._TRAIN_ARGS, ray):
        hints = typing.get_type_hints(cls)
        keys |= {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}
    return keys


def num_devices() -> int:
    """Accelerators visible to this process; 1 on a CPU."""
    return max(1, import_module("llamafactory.extras.misc").get_device_count())


def import_module(name: str) -> Any:
    """Import one of LLaMA-Factory's modules, or say in one sentence why it cannot be."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == "llamafactory":
            raise ConfigError(f"LLaMA-Factory is not installed; run {REMEDY}") from error
        raise ConfigError(f"LLaMA-Factory cannot be imported: {error}; run {REMEDY}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"LLaMA-Factory cannot be imported, its packages do not fit together ({_one_sentence(error)}); run {REMEDY}"
        ) from error


def _one_sentence(error: BaseException) -> str:
    """The message of a foreign error, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"the key {text} is missing in the data or the config"
    if "corresponds to no data" in text:  # how the datasets library says it
        text = "a data set is empty"
    if error.__cause__ is not None:
        text = f"{text} ({_one_sentence(error.__cause__)})"
    return text if len(text) <= 400 else f"{text[:400]}…"


__all__ = ["import_module", "known_keys", "num_devices", "refuse_config", "run_dynamic", "run_static", "say"]
