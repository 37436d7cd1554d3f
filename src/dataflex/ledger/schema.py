"""Fields and types of run.yaml and of each kind of ledger line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Field(NamedTuple):
    """A test that a value must pass, and what it tests in words."""

    fits: Callable[[Any], bool]
    meant: str
    required: bool = True


MOST = 2**63  # what arrays can count to; a longer number is damage


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _holds_numbers(value: Any) -> bool:
    return _is_mapping(value) and all(_is_number(number) for number in value.values())


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_cost(value: Any) -> bool:
    return _is_mapping(value) and all(_is_whole(value.get(name)) for name in ("num_rows", "num_tokens"))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


WHOLE = Field(_is_whole, "a whole number")
WHOLE_OR_NONE = Field(_or_none(_is_whole), "a whole number or null")
SEED = Field(lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number")
SHARE = Field(lambda value: _is_number(value) and value >= 0, "a number")
TEXT = Field(lambda value: isinstance(value, str), "a text")
TEXT_OR_NONE = Field(_or_none(TEXT.fits), "a text or null")
MAPPING = Field(_is_mapping, "a mapping")
COST_OR_NONE = Field(_or_none(_is_cost), "a mapping with num_rows and num_tokens, or null")
NUMBERS = Field(_holds_numbers, "a mapping of numbers")
NUMBERS_OR_NONE = Field(_or_none(_holds_numbers), "a mapping of numbers or null")
HASH = Field(_is_hash, "a sha256")
OPTIONAL_NUMBERS = NUMBERS._replace(required=False)
OPTIONAL_MAPPING = MAPPING._replace(required=False)

OPTIONAL_LIST = Field(lambda value: isinstance(value, list), "a list", required=False)

RUN = {
    "run_id": TEXT,
    "fingerprint": MAPPING,
    "config": MAPPING,
    "method": TEXT,
    "params": MAPPING,
    "schedule": NUMBERS,
    "plan": NUMBERS,
    "geometry": NUMBERS,
    "seed": SEED,
    "versions": MAPPING,
    "parts": OPTIONAL_MAPPING,  # mixer, weighers, orders, and how they meet
    "domains": OPTIONAL_MAPPING,
    "target": OPTIONAL_MAPPING,  # its groups and the hash of its rows
}
SCHEDULE = {"warmup_step": WHOLE, "update_step": WHOLE, "update_times": SEED, "train_step": WHOLE}
PLAN = {"num_steps": WHOLE, "steps_per_epoch": WHOLE}
GEOMETRY = {"world_size": WHOLE, "accumulation": WHOLE, "micro_batch": WHOLE}
FINGERPRINT = {"num_rows": WHOLE, "data": TEXT, "global_batch": WHOLE}

SEGMENT = {
    "segment": WHOLE,
    "start": WHOLE,
    "stop": WHOLE,
    "cycle": WHOLE,
    "update": WHOLE_OR_NONE,
    "decision": TEXT,
    "method": TEXT,
    "params": MAPPING,
    "seed": SEED,
    "num_rows": WHOLE,
    "num_distinct_rows": WHOLE,
    "window": NUMBERS_OR_NONE,
    "notes": MAPPING,
    "warnings": Field(lambda value: isinstance(value, list) and all(map(TEXT.fits, value)), "a list of texts"),
    "quantiles": Field(lambda v: isinstance(v, dict) and all(map(_holds_numbers, v.values())), "mappings of numbers"),
    "scoring": COST_OR_NONE,
    "seconds": NUMBERS,
    "share_of_run": SHARE,
    "versions": MAPPING,
    "trained": HASH,
    "sha256": Field(lambda v: isinstance(v, dict) and "rows" in v and all(map(_is_hash, v.values())), "sha256 values"),
    "previous": HASH,
    "mix": OPTIONAL_MAPPING,
    "weigh": OPTIONAL_LIST,
    "order": OPTIONAL_LIST,
}
# What training showed of a segment: losses and label tokens by domain, and the coefficients of a weigher.
TRAINED = {
    "segment": WHOLE,
    "start": WHOLE,
    "stop": WHOLE,
    "previous": HASH,
    "domain_losses": OPTIONAL_NUMBERS,
    "domain_tokens": OPTIONAL_NUMBERS,
    "weights": OPTIONAL_NUMBERS,
}
ROLLBACK = {"from_segment": WHOLE, "reason": TEXT, "previous": HASH}
END = {
    "step": WHOLE,
    "best_checkpoint": TEXT_OR_NONE,
    "previous": HASH,
    "seconds": OPTIONAL_NUMBERS,
    "choosing": OPTIONAL_MAPPING,
}
RESUME = {"step": WHOLE, "geometry": NUMBERS, "versions": MAPPING, "previous": HASH}
KINDS: dict[str, Mapping[str, Field]] = {
    "segment": SEGMENT,
    "rollback": ROLLBACK,
    "resume": RESUME,
    "end": END,
    "trained": TRAINED,
}


def wrong_fields(content: Mapping[str, Any], fields: Mapping[str, Field]) -> list[str]:
    """One phrase for each field that is missing or holds something else than is meant."""
    wrong = []
    for name, field in fields.items():
        if name not in content:
            if field.required:
                wrong.append(f"'{name}' is missing")
        elif not field.fits(content[name]):
            wrong.append(f"'{name}' is {_short(content[name])}, {field.meant} is meant")
    return wrong


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
