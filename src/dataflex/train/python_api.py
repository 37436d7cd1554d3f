"""The Python API: from a selector and a schedule beside a Trainer's own arguments to the settings of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dataflex.algorithms.base import Mixer, Order, Selector, Weigher
from dataflex.algorithms.catalog import COMPONENTS
from dataflex.algorithms.combine import Part
from dataflex.algorithms.select.static import Static
from dataflex.core.plan import Schedule
from dataflex.ledger.ledger import Ledger
from dataflex.train.method import Method
from dataflex.train.pool import read_pool
from dataflex.train.score_budget import read_share, with_budget
from dataflex.train.settings import Settings
from dataflex.train.target import Target, read_target

EXCERPT_CHARS, EXCERPT_TOKENS = 500, 200
OWN_COLUMNS = ("row", "num_tokens", "num_label_tokens", "excerpt")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What else may be said of a run in Python; the same names as in YAML and on the command line."""

    overwrite_output_dir: bool = False  # move an old record in output_dir aside
    score_batch_tokens: int | None = None  # padded tokens of a scoring batch; None: calibrated
    log_source_loss: bool = False  # the training loss of each source by itself
    score_budget: float | Literal["full"] = "full"  # share of the training's FLOPs that scoring may cost
    fresh: bool = False  # no array of another run is served from the cache
    other_versions: bool = False  # resume although packages have other versions than before
    domain_column: str | None = None  # which column of the data says the domain of a row; None: ``dataset``
    select_every: int = 1  # the selector decides at each such decision; its distribution is kept in between
    mix_every: int = 1  # the same of the mixer
    mode: Literal["mix_then_select", "select_then_mix"] = "mix_then_select"  # how selection and mixture meet
    keep: float = 1.0  # select_then_mix: the quota is this share of the selector's proposals
    normalize: Literal["none", "mean_one"] = "none"  # divide the product of all weights by its mean
    target_groups: str | None = None  # which column of the target says the group of a row; None: one group
    allow_overlap: bool = False  # rows of the target may be in the pool as well


@dataclass(frozen=True, kw_only=True)
class Components:
    """What decides in a run, as values; several weighers and orders as a sequence."""

    selector: Selector | None = None
    mixer: Mixer | None = None
    weigher: Weigher | Sequence[Weigher] | None = None
    order: Order | Sequence[Order] | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())


def method_of(given: Components, schedule: Schedule, options: Options) -> Method:
    """The components under the names that a components file would call them by."""
    selector = given.selector if given.selector is not None else Static()
    weighers = _named("weighters", given.weigher)
    method = Method(
        name=_name("selectors", selector),
        selector=selector,
        every=options.select_every,
        mixer=None if given.mixer is None else _named("mixers", given.mixer, every=options.mix_every)[0],
        weighers=weighers,
        orders=_named("orders", given.order),
        mode=options.mode,
        keep=options.keep,
        normalize=options.normalize,
        weigh_warmup=schedule.warmup_step if weighers else 0,
    )
    return with_budget(method, read_share(options.score_budget))


def _named(kind: str, given: Any, *, every: int = 1) -> tuple[Part, ...]:
    """Components of one kind with their names."""
    values = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    return tuple(Part(name=_name(kind, value), method=value, every=every) for value in values)


def _name(kind: str, value: Any) -> str:
    cls = type(value)
    ours = COMPONENTS[kind].items()
    return next((name for name, known in ours if known is cls), f"{cls.__module__}:{cls.__qualname__}")


@dataclass
class Prepared:
    """A data set as the trainer made it ready."""

    dataset: Any = None


TARGET = "dataflex_target"


@contextmanager
def beside_evaluation(trainer: Any, target: Any, kwargs: dict[str, Any]) -> Iterator[Prepared]:
    """Have the trainer that is built inside make the target ready as it does data sets for evaluation.

    Afterwards its evaluation is of what the user gave alone.
    """
    prepared = Prepared()
    if target is None:
        yield prepared
        return
    given = kwargs.get("eval_dataset")
    several = isinstance(given, dict)
    kwargs["eval_dataset"] = {**(given if several else {"": given} if given is not None else {}), TARGET: target}
    yield prepared
    ready = dict(trainer.eval_dataset)
    prepared.dataset = ready.pop(TARGET)
    trainer.eval_dataset = ready if several else ready.get("")


def _target_of(trainer: Any, given: Any, prepared: Any, options: Options) -> Target:
    """The target, with the columns of the data set as given where its rows are still those."""
    aligned = hasattr(given, "column_names") and len(given) == len(prepared)
    source = given if aligned else prepared
    name = options.target_groups
    names = getattr(source, "column_names", None) or []
    columns: dict[str, Any] = dict.fromkeys(known for known in names if known != "dataset")
    if name is not None and name in names:
        columns[name] = source[name]
    return read_target(
        prepared,
        columns,
        train_dataset=trainer.train_dataset,
        column=name,
        allow_overlap=options.allow_overlap,
        collate=bare_collator(trainer),
    )


def settings_of(
    trainer: Any,
    given: Any,
    components: Components,
    schedule: Schedule | None,
    options: Options,
    target: tuple[Any, Any] | None = None,
) -> Settings:
    """Settings of a run that begins in Python.

    Args:
        trainer: the host's trainer, built.
        given: the data set as the user gave it; the trainer may have tokenised it.
        target: the target as the user gave it, and as the trainer made it ready.
    """
    assert schedule is not None
    args = trainer.args
    pool = read_pool(trainer.train_dataset, bare_collator(trainer))
    return Settings(
        method=method_of(components, schedule, options),
        schedule=schedule,
        # Tokens of hubs are masked by the arguments themselves.
        config={**json.loads(json.dumps(args.to_dict(), default=str)), **_model_facts(trainer)},
        score_batch_tokens=options.score_batch_tokens,
        log_source_loss=options.log_source_loss,
        overwrite=options.overwrite_output_dir,
        fresh=options.fresh,
        other_versions=options.other_versions,
        domain_column=options.domain_column,
        pool=pool,
        target=_target_of(trainer, *target, options) if target is not None else None,
        rows=row_columns(trainer, given, len(pool)),
    )


def bare_collator(trainer: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """The trainer's collator on the columns that it keeps."""
    return trainer._get_collator_with_removed_columns(trainer.data_collator)


def row_columns(trainer: Any, given: Any, num_rows: int) -> dict[str, Any]:
    """Columns of rows.parquet: plain columns of the data set as given, and the beginning of each row's text.

    Rows that the trainer packed or dropped are not those that were given; then its own data set is all there is.
    """
    own = trainer.train_dataset
    aligned = given is not None and hasattr(given, "column_names") and len(given) == num_rows
    source: Any = given if aligned else own
    packed = "seq_lengths" in (getattr(own, "column_names", None) or [])
    columns: dict[str, Any] = {}
    if hasattr(source, "features") and hasattr(source, "column_names") and not packed:
        for name in source.column_names:
            kind = str(getattr(source.features[name], "dtype", ""))
            if name in OWN_COLUMNS or not kind.startswith(("string", "large_string", "int", "float", "bool")):
                continue
            if name not in _texts(trainer):
                columns[name] = _short(source[name])
    excerpts = _excerpts(trainer, own, num_rows)
    return {**columns, **({"excerpt": excerpts} if excerpts is not None else {})}


def history_table(ledger: Ledger) -> list[dict[str, Any]]:
    """One flat dict of plain values for each decision: segment, steps, decision, counts, window, seconds."""
    rows = []
    for _, line in sorted(ledger.segments().items()):
        row: dict[str, Any] = {}
        for key, value in line.items():
            if isinstance(value, dict):
                row |= {f"{key}.{name}": part for name, part in value.items() if not isinstance(part, (dict, list))}
            elif not isinstance(value, list):
                row[key] = value
        rows.append(row)
    return rows


def _model_facts(trainer: Any) -> dict[str, Any]:
    """What tells one model's run from another's, beyond the arguments."""
    trained = [parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad]
    peft = getattr(trainer.model, "peft_config", None)
    return {
        "model_class": type(trainer.model).__name__,
        "trained_parameters": int(sum(trained)),
        **({"peft": {name: str(sorted(vars(c).items(), key=str)) for name, c in peft.items()}} if peft else {}),
    }


def _texts(trainer: Any) -> set[str]:
    """Columns that hold the rows' text itself: the excerpt tells enough of it."""
    return {"text", "prompt", "completion", "chosen", "rejected", getattr(trainer.args, "dataset_text_field", "text")}


def _short(values: Any) -> list[Any]:
    return [value[:EXCERPT_CHARS] if isinstance(value, str) else value for value in values]


def _excerpts(trainer: Any, dataset: Any, num_rows: int) -> list[str] | None:
    """Beginnings of the rows as the tokenizer reads them back; None without a tokenizer or tokens."""
    decode = getattr(trainer.processing_class, "batch_decode", None)
    names = getattr(dataset, "column_names", None) or list(dataset[0])
    wanted = ("input_ids", "prompt_input_ids", "prompt_ids", "chosen_input_ids", "chosen_ids")
    name = next((name for name in wanted if name in names), None)
    if decode is None or name is None:
        return None
    beginnings = [np.asarray(dataset[i][name][:EXCERPT_TOKENS]).tolist() for i in range(num_rows)]
    return [text[:EXCERPT_CHARS] for text in decode(beginnings, skip_special_tokens=True)]
