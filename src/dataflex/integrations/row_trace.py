"""Which raw row each tokenised sample came from: LLaMA-Factory drops columns and bad rows while it converts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.core.errors import ConfigError

ORIGIN, EXCERPT = "dataflex_origin", "dataflex_excerpt"
EXCERPT_CHARS = 500
EXCERPT_TOKENS = 200  # of a block
OWN_COLUMNS = ("row", "dataset", "source_row", "num_tokens", "num_label_tokens", "excerpt")
_SOURCE_STRIDE = 1 << 40  # an origin is source number * stride + position in that source


@dataclass
class Source:
    """One raw data set as it was loaded, after ``num_samples`` and ``max_samples``."""

    name: str
    raw: Any  # datasets.Dataset
    used_columns: frozenset[str]
    attr: Any = None  # LLaMA-Factory's DatasetAttr

    def source_rows(self) -> np.ndarray:
        """Row numbers in the file or hub data set, shape (len(raw),)."""
        # select() keeps the original positions in this table; pinned by a contract test.
        picked = self.raw._indices
        return np.arange(len(self.raw)) if picked is None else picked.column(0).to_numpy()


class RowTrace:
    """Wraps three of LLaMA-Factory's data functions, so that every sample carries its origin until it is tokenised."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._source_N = self._position_N = np.zeros(0, dtype=np.int64)

    def align(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Around ``align_dataset`` (one raw row to one conversation): note the source, number the rows."""

        def align_dataset(dataset: Any, dataset_attr: Any, data_args: Any, training_args: Any) -> Any:
            names = [*(data_args.dataset or []), *(data_args.eval_dataset or [])]
            number = len(self._sources)
            name = names[number] if number < len(names) else str(dataset_attr)
            if len(dataset) == 0:
                raise ConfigError(f"the data set {name!r} is empty; check its file and max_samples")
            used = frozenset(v for v in vars(dataset_attr).values() if isinstance(v, str))
            aligned = original(dataset, dataset_attr, data_args, training_args)
            self._sources.append(Source(name, dataset, used, dataset_attr))
            return aligned.add_column(ORIGIN, number * _SOURCE_STRIDE + np.arange(len(aligned), dtype=np.int64))

        return align_dataset

    def processor(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Around ``_get_dataset_processor`` (conversations to tokens): see which rows survive."""

        def _get_dataset_processor(*args: Any, **kwargs: Any) -> Any:
            processor = original(*args, **kwargs)
            processor.preprocess_dataset = Survivors(processor.preprocess_dataset)
            return processor

        return _get_dataset_processor

    def columns(self, train_dataset: Any) -> tuple[Any, dict[str, Any]]:
        """Take the trace off a tokenised data set: (the data set as LLaMA-Factory made it, columns of rows.parquet)."""
        table = train_dataset.with_format("arrow", columns=[ORIGIN, EXCERPT])[:]
        source_N, position_N = np.divmod(table[ORIGIN].to_numpy(), _SOURCE_STRIDE)
        self._source_N, self._position_N = source_N, position_N
        names = np.array([source.name for source in self._sources], dtype=object)
        source_rows_N = np.empty(len(source_N), dtype=np.int64)
        kept: dict[str, list[Any]] = {}
        for number, source in enumerate(self._sources):
            of_source = np.flatnonzero(source_N == number)
            if len(of_source) == 0:
                continue
            positions = position_N[of_source]
            source_rows_N[of_source] = source.source_rows()[positions]
            for column in _scalar_columns(source):
                name = column if column not in OWN_COLUMNS else f"raw_{column}"
                values = kept.setdefault(name, [None] * len(source_N))
                read = source.raw.select(positions).with_format("arrow", columns=[column])[:][column].to_pylist()
                for row, value in zip(of_source.tolist(), read, strict=True):
                    values[row] = value[:EXCERPT_CHARS] if isinstance(value, str) else value
        columns = {
            "dataset": names[source_N],
            "source_row": source_rows_N,
            "excerpt": table[EXCERPT].combine_chunks(),
            **{name: _as_array(values) for name, values in kept.items()},
        }
        return self.strip(train_dataset), columns

    def origins(self) -> list[tuple[Source, np.ndarray, np.ndarray]]:
        """Each source of the training set with its pool rows and their positions in its raw data."""
        of_source = [(s, np.flatnonzero(self._source_N == number)) for number, s in enumerate(self._sources)]
        return [(source, rows, self._position_N[rows]) for source, rows in of_source if len(rows)]

    @staticmethod
    def strip(dataset: Any) -> Any:
        """The data set without our columns."""
        return dataset.remove_columns([name for name in (ORIGIN, EXCERPT) if name in dataset.column_names])


class Survivors:
    """A processor's batch function, called row by row: the rows it drops are known, the others get an excerpt.

    The processors loop over rows themselves, so this costs nothing. A class, since ``datasets`` sends the function to
    worker processes and hashes it for its cache.
    """

    def __init__(self, preprocess: Callable[[dict[str, list[Any]]], dict[str, list[Any]]]) -> None:
        self._preprocess = preprocess

    def __call__(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        processor: Any = getattr(self._preprocess, "__self__", None)
        if "Pretrain" in type(processor).__name__ and processor.data_args.packing:
            return self._blocks(processor, examples)
        if "Feedback" in type(processor).__name__:
            return self._paired_with_others(examples)
        outputs: dict[str, list[Any]] = defaultdict(list)
        for i, origin in enumerate(examples[ORIGIN]):
            result = self._preprocess({name: [values[i]] for name, values in examples.items() if name != ORIGIN})
            if not result or not next(iter(result.values())):
                continue
            for name, values in result.items():
                outputs[name] += values
            outputs[ORIGIN].append(origin)
            outputs[EXCERPT].append(excerpt(examples["_prompt"][i], examples["_response"][i]))
        return outputs

    def _blocks(self, processor: Any, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Texts joined and cut into blocks: a block's origin is the row that it begins in."""
        tokenizer = processor.tokenizer
        processor.tokenizer = _Counting(tokenizer)
        try:
            outputs = dict(self._preprocess({n: values for n, values in examples.items() if n != ORIGIN}))
            ends = np.cumsum(processor.tokenizer.lengths)
        finally:
            processor.tokenizer = tokenizer
        blocks = outputs["input_ids"]
        begins = np.arange(len(blocks)) * processor.data_args.cutoff_len
        rows = np.searchsorted(ends, begins, side="right")
        outputs[ORIGIN] = [examples[ORIGIN][row] for row in rows]
        heads = tokenizer.batch_decode([block[:EXCERPT_TOKENS] for block in blocks]) if blocks else []
        outputs[EXCERPT] = [head[:EXCERPT_CHARS] for head in heads]
        return outputs

    def _paired_with_others(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """KTO pairs each prompt with the answer of the row before it: the rows must be given all at once."""
        columns = {name: values for name, values in examples.items() if name != ORIGIN}
        outputs = dict(self._preprocess(columns))
        survivors = list(range(len(examples[ORIGIN])))
        if len(outputs.get("input_ids", [])) != len(survivors):
            survivors = [i for i in survivors if self._preprocess({n: [v[i]] for n, v in columns.items()})["input_ids"]]
        outputs[ORIGIN] = [examples[ORIGIN][i] for i in survivors]
        outputs[EXCERPT] = [excerpt(examples["_prompt"][i], examples["_response"][i]) for i in survivors]
        return outputs


class _Counting:
    """A tokenizer that remembers how many tokens each text of its last call had."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.lengths: list[int] = []

    def __call__(self, texts: list[str], **options: Any) -> Any:
        result = self._tokenizer(texts, **options)
        self.lengths = [len(ids) for ids in result["input_ids"]]
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def excerpt(prompt: list[dict[str, str]], response: list[dict[str, str]]) -> str:
    """Beginning of the conversation and of the answer, at most 500 characters together."""
    asked = "\n".join(turn["content"] or "" for turn in prompt).strip()
    answered = "\n".join(turn["content"] or "" for turn in response).strip()
    room = EXCERPT_CHARS - len(" → ")
    asked_chars = max(room // 2, room - len(answered))
    asked = asked if len(asked) <= asked_chars else asked[: asked_chars - 1] + "…"
    answered_chars = room - len(asked)
    answered = answered if len(answered) <= answered_chars else answered[: answered_chars - 1] + "…"
    return f"{asked} → {answered}" if answered else asked


def _scalar_columns(source: Source) -> list[str]:
    """Columns that LLaMA-Factory does not use and that hold plain values, such as task or source."""
    features = source.raw.features
    return [
        name
        for name in source.raw.column_names
        if name not in source.used_columns
        and getattr(features[name], "dtype", "").startswith(("string", "large_string", "int", "uint", "float", "bool"))
    ]


def _as_array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # the same name with another type in another data set
        return pa.array([None if value is None else str(value) for value in values])
