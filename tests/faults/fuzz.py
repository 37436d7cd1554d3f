"""Damaged configs by number: case ``n`` is always the same input, so that a failing one can be looked at again.

A case is a set of files and a command line. It begins with a config that ``plan`` accepts, an example or a tiny one,
and is damaged in one of the ways of ``KINDS``, which take turns.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = (
    "examples/quickstart/delta_loss.yaml",
    "examples/train_lora/selectors/delta_loss.yaml",
    "examples/train_lora/selectors/loss.yaml",
    "examples/train_lora/selectors/random.yaml",
)
PLANNED = ("optimizer steps of", "train_type is static", "Usage:")  # what a plan says, or help that was asked for
LAUNCH_VARIABLES = ("NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT", "FORCE_TORCHRUN", "RANK")
SECONDS = 20.0  # of the processor: a case that takes longer hangs
WORK = "work"  # the working directory of a case, below its folder; what is written beside it is seen as well

TINY: dict[str, Any] = {
    "model_name_or_path": "model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "toy",
    "dataset_dir": "data",
    "template": "default",
    "output_dir": "saves/run",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "num_train_epochs": 1.0,
    "train_type": "dynamic_select",
    "components_cfg_file": "components.yaml",
    "component_name": "mine",
    "warmup_step": 4,
    "update_step": 5,
    "update_times": 3,
}
COMPONENTS: dict[str, Any] = {
    "selectors": {
        "mine": {"name": "delta_loss", "params": {"window_size": 0.3, "cache_dir": "${output_dir}/cache"}},
        "focus": {"name": "loss", "params": {"focus": "low", "quantiles": [0.2, 0.7]}},
        "host": {"name": "static"},
        "band": {"name": "length", "params": {"take": "band", "band": [0.1, 0.9]}},
        "listed": {"name": "static", "params": {"path": "scores.npy"}},
        "again": {"name": "replay", "params": {"path": "saves/former"}},
        "foreign": {"name": "fuzz_methods:Sound"},
    }
}
# Methods of somebody else: one that works, and the ways in which a class can be none.
METHODS = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from dataflex.algorithms.base import SelectorBase


@dataclass(frozen=True, kw_only=True)
class Sound(SelectorBase):
    source: ClassVar[str] = "a test"
    width: float = 1.0

    def select(self, state, signals, quota, progress, rng):
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Picky(Sound):
    def __post_init__(self):
        raise ValueError("width must be\\nodd")


@dataclass(frozen=True, kw_only=True)
class Unhinted(Sound):
    table: "Nowhere" = None


@dataclass(frozen=True, kw_only=True)
class ArrayField(Sound):
    table: np.ndarray = None


@dataclass(frozen=True, kw_only=True)
class Bare:
    def select(self):
        pass


@dataclass(frozen=True, kw_only=True)
class NoSelect:
    width: float = 1.0


class NoDataclass:
    select = None


def function():
    pass
"""
RAISING = {
    "fuzz_raises": "raise RuntimeError('not today')",
    "fuzz_exits": "import sys\nsys.exit(0)",
    "fuzz_syntax": "def",
    "fuzz_keyerror": "{}['x']",
}
FOREIGN = (
    *(f"fuzz_methods:{name}" for name in ("Sound", "Picky", "Unhinted", "ArrayField", "Bare", "NoSelect")),
    *(f"fuzz_methods:{name}" for name in ("NoDataclass", "function", "np", "missing", "", "Sound.width", "a:b")),
    *(f"{module}:Method" for module in RAISING),
    *("json:dumps", "os:getcwd", "builtins:dict", ":", ":x", "x:", "..:x", ".x:y", "no.such.module:Method", "data:x"),
    *("fuzz_methods.:Sound", "fuzz methods:Sound", "\u00e9:x", "\x00:x", "a\nb:c", "fuzz_methods::Sound"),
)

HUGE = (2**31 - 1, 2**31, 2**53 + 1, 2**63, 10**12, 10**18, 10**30, 10**308, 10**400, 10**4000)
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 40, 41, 1000, -(2**31), -(10**400), *HUGE),
    *(0.0, -0.0, 0.5, 1.5, -2.5, 1e-320, 1e-9, 1e15, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", " ", "\n", "x\ny", "\t", "\x00", "\x07\x1b[31m", "\u2028", "\ufeff", "\u202e", "\ud7ff", "狐 🦊 é", "null"),
    *("a" * 300, "ü" * 5000, "../" * 60, "/", ".", "..", "/dev/null", "~", "C:\\x", "data", "config.yaml", "toy,toy"),
    *("[/bold]", "[bold]", "[red", "[link=x]", "[/]", "\\[", "%s", "{}", "{0}", "$x", "yes", "1e4", "0x10", "1_0"),
    *("dynamic_mix", "static", "dynamic_select", "random", "delta_loss", "mine", "host", "toy", "-1", "nan", "1:30"),
)
INTERPOLATIONS = (
    *("${oc.env:HOME}", "${oc.env:DATAFLEX_NOT_SET}", "${oc.env:DATAFLEX_NOT_SET,7}", "${x}", "${output_dir}", "${"),
    *("${}", "${x", "${${x}}", "${.}", "${..}", "${...a}", "${oc.decode:'[1'}", "${oc.create:{a:1}}", "${oc.nope:1}"),
    *("${eval:1+1}", "${oc.dict.keys:selectors}", "${oc.select:x,1}", "$${x}", "\\${x}", "${learning_rate}", "???"),
    *("${warmup_step}", "${update_step}", "${a.b.c}", "${a[0]}", "${oc.deprecated:x}", "${oc.env:}", "${:}", "${,}"),
    *("${update_step}${update_step}", "${now:%Y}", "${" * 40, "${a:" + "[" * 60, "${a:{" * 20),
)
KEYS = (
    *("warmup_step", "update_step", "update_times", "train_step", "component_name", "components_cfg_file"),
    *("output_dir", "train_type", "dataset", "dataset_dir", "val_size", "max_samples", "max_steps", "learning_rate"),
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "score_batch_tokens", "seed"),
    *("do_train", "stage", "finetuning_type", "packing", "streaming", "dataloader_drop_last", "component", "template"),
)
PARAMS = (
    *("window_size", "steepness", "midpoint", "progress", "base_weight", "normalize", "baseline", "when_empty"),
    *("replacement", "cache_dir", "focus", "focus_weight", "quantiles", "temperature", "by", "take", "band", "reuse"),
    *("path", "draw", "width", "table", "self", "needs", "source", "cls"),
)
TAGS = (
    "!!python/object/apply:os.mkdir ['ran']",
    "!!python/object/apply:builtins.open ['ran', 'w']",
    "!!python/object/new:os.system ['touch ran']",
    "!!python/name:os.system ''",
    "!!python/module:antigravity ''",
    "!!python/object:fuzz_methods.Sound {}",
    "!!python/tuple [1, 2]",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!omap [a: 1, b: 2]",
    "!!timestamp 2020-01-01",
    "!!float 1",
    "!!int '7'",
    "!!str 7",
    "!!null x",
    "!!bool maybe",
    "!mine 3",
    "!<tag:example.org,2020:x> 3",
)
YAML_PIECES = (
    *(
        "&a ",
        "*a",
        "*b",
        "<<: *a",
        "? ",
        "- ",
        ": ",
        "|\n",
        ">-\n",
        "{",
        "}",
        "[",
        "]",
        "#",
        "'",
        '"',
        "---\n",
        "...\n",
    ),
    *("%YAML 9.9\n", "\t", "\x00", "\x85", "\u2029", "\ufeff", "!", "!!", "@", "`", "\\", "${", "}", "? [1]\n: 2\n"),
    *("null: 1\n", "1: 2\n", "true: 3\n", ".nan: 4\n", "? !!binary aGk=\n: 1\n", "2020-01-01: x\n", "a.b: 1\n"),
)


@dataclass
class Case:
    """Files and a command line; what the mutations of one number made of them."""

    number: int
    kind: str
    rng: random.Random
    config: dict[str, Any]
    components: dict[str, Any]
    info: dict[str, Any]
    files: dict[str, bytes | None] = field(default_factory=dict)  # None: a folder of that name
    arguments: list[str] = field(default_factory=lambda: ["config.yaml"])
    refused: bool = False  # True: this one must not pass

    def __str__(self) -> str:
        shown = [f"case {self.number}, {self.kind}: dataflex-cli plan {' '.join(map(repr, self.arguments))}"]
        for name, content in sorted(self.files.items()):
            if name.endswith(".py") or name == "data/toy.jsonl":
                continue
            text = "(a folder)" if content is None else ascii(content)
            shown.append(f"--- {name}\n{text if len(text) < 4000 else text[:4000] + f' ... {len(text)} characters'}")
        return "\n".join(shown)


# --- mutations of values ---


def junk(rng: random.Random, depth: int = 0) -> Any:
    """A value of some wrong kind, or a right one in the wrong place."""
    pick = rng.random()
    if pick < 0.35:
        return rng.choice(NUMBERS)
    if pick < 0.6:
        return rng.choice(TEXTS)
    if pick < 0.72:
        return rng.choice(INTERPOLATIONS)
    if pick < 0.8:
        return rng.choice([True, False, None])
    if depth > 3:
        return []
    if pick < 0.9:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice([*KEYS, *PARAMS, "", "a.b", "name", "params", 1, "狐"]): junk(rng, depth + 1) for _ in range(2)}


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree of mappings and lists."""
    found: list[tuple[Any, Any]] = []
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    for key in keys:
        found += [(tree, key), *places(tree[key])]
    return found


def misspelt(rng: random.Random, word: str) -> str:
    at = rng.randrange(max(1, len(word)))
    return rng.choice(
        [word[:at] + word[at + 1 :], word[:at] + "q" + word[at:], word.upper(), word + "s", word + " ", "-" + word]
    )


def replace_value(case: Case, tree: Any) -> None:
    container, key = case.rng.choice(places(tree) or [(case.config, "seed")])
    container[key] = junk(case.rng)


def restructure(case: Case, tree: Any) -> None:
    """A key lost, misspelt, doubled under another name, or a value in a list or a mapping of its own."""
    rng = case.rng
    container, key = rng.choice(places(tree) or [(case.config, "seed")])
    value = container[key] if isinstance(container, list) else container.get(key)
    how = rng.randrange(5)
    if how == 0 or isinstance(container, list):
        container[key] = [value] if rng.random() < 0.5 else {str(key): value}
    elif how == 1:
        container.pop(key, None)
    elif how == 2:
        container[misspelt(rng, str(key))] = container.pop(key, None)
    elif how == 3:
        container[rng.choice([*KEYS, *PARAMS, 3, 1.5, True])] = value
    else:
        container[key] = {"name": value, "params": {}}


# --- kinds: each gets the case before its files are written (and says so if it must be refused) ---


def as_text(case: Case, tree: Any, *, as_json: bool | None = None) -> bytes:
    rng = case.rng
    if as_json if as_json is not None else rng.random() < 0.3:
        return json.dumps(tree, ensure_ascii=rng.random() < 0.5, default=str).encode("utf-8", "surrogatepass")
    return yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5, sort_keys=False).encode("utf-8", "surrogatepass")


def values(tree_of: str) -> Callable[[Case], None]:
    def mutate(case: Case) -> None:
        for _ in range(case.rng.choice([1, 1, 1, 2, 3])):
            case.rng.choice([replace_value, restructure])(case, getattr(case, tree_of))

    return mutate


def our_numbers(case: Case) -> None:
    """Whole numbers of any size where the schedule, the geometry and the pool are counted."""
    keys = ["warmup_step", "update_step", "update_times", "train_step", "max_steps", "max_samples", "val_size"]
    keys += ["num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "score_batch_tokens"]
    for key in case.rng.sample(keys, case.rng.choice([1, 2, 3])):
        case.config[key] = case.rng.choice(NUMBERS)
    case.config["component_name"] = case.rng.choice(["mine", "focus", "host", "band", "listed", "foreign"])
    if case.config.get("components_cfg_file") != "components.yaml":
        case.config["components_cfg_file"] = "components.yaml"


def misspelt_key(case: Case) -> None:
    key = case.rng.choice(sorted(case.config))
    at = case.rng.randrange(len(key))
    case.config[key[:at] + "q" + key[at:]] = case.config.pop(key)
    case.refused = True


def needed_key(case: Case) -> None:
    del case.config[
        case.rng.choice(["component_name", "update_step", "output_dir", "dataset", "train_type", "do_train"])
    ]
    case.refused = True


def params(case: Case) -> None:
    """Parameters of any method, of any value, in the file or in the config."""
    chosen = {case.rng.choice(PARAMS): junk(case.rng) for _ in range(case.rng.randrange(1, 4))}
    if case.rng.random() < 0.5:
        name = case.rng.choice(["mine", "focus", "host", "band", "listed", "again", "foreign"])
        case.components["selectors"][name].setdefault("params", {}).update(chosen)
        case.config |= {"component_name": name, "components_cfg_file": "components.yaml"}
    else:
        case.config["component"] = {"params": chosen}


def foreign(case: Case) -> None:
    preset = {"name": case.rng.choice(FOREIGN)}
    if case.rng.random() < 0.4:
        preset["params"] = {case.rng.choice(["width", "table", "source"]): junk(case.rng)}
    case.components["selectors"]["mine"] = preset
    case.config |= {"component_name": "mine", "components_cfg_file": "components.yaml"}


def odd_keys(case: Case) -> None:
    tree = case.rng.choice([case.config, case.components, case.components["selectors"]])
    for _ in range(case.rng.randrange(1, 3)):
        tree[case.rng.choice([*TEXTS, *INTERPOLATIONS, 0, -1, 1.5, True, float("inf"), "a.b", "a[0]"])] = junk(case.rng)


def data_sets(case: Case) -> None:
    """``dataset_info.json`` of another shape, or naming files that are none."""
    rng = case.rng
    name = str(case.config.get("dataset"))
    entry = case.info.setdefault(name, {})
    how = rng.randrange(6)
    if how == 0:
        entry["file_name"] = rng.choice([*TEXTS, *INTERPOLATIONS, 5, None, ["toy.jsonl"], "a/" * 200, "x" * 5000])
    elif how == 1:
        entry["num_samples"] = junk(rng)
    elif how == 2:
        case.info[name] = junk(rng)
    elif how == 3:
        values("info")(case)
    elif how == 4:
        case.config["dataset"] = rng.choice([junk(rng), [name, name], [name, 3], f"{name},{name}", f"{name},", ","])
    else:
        case.config["dataset_dir"] = rng.choice([*TEXTS, *INTERPOLATIONS, 7, ["data"], {"a": 1}, "[/x]", "data[/x]"])


def data_files(case: Case) -> None:
    """Rows that are damaged, of another shape or of another format than the file's ending says."""
    rng = case.rng
    good = case.files["data/toy.jsonl"] or b""
    rows = [json.loads(line) for line in good.splitlines()]
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    contents = [
        *(b"", b"\n\n", b"{", b"[", b"[]", b"{}", b"null", b"5", b'"x"', b"[[]]", b"\xff\xfe", b"PAR1", b"PAR1PAR1"),
        *(good, good[: len(good) // 2], json.dumps(rows).encode(), json.dumps(rows).encode()[:-2], b"[" * 100_000),
        *(table.getvalue(), table.getvalue()[:-9], table.getvalue()[9:], b"PAR1" + bytes(200) + b"PAR1"),
        *(json.dumps({"rows": rows}).encode(), "é\u2028\n".encode(), b"NaN\n", b"1" * 6000, b"[" + b"1" * 6000 + b"]"),
        *(good.decode().encode("utf-16"), bytes(rng.randrange(256) for _ in range(300))),
    ]
    name = "data/rows" + rng.choice([".json", ".jsonl", ".parquet", ".csv", ".txt", "", ".arrow"])
    case.files[name] = rng.choice(contents)
    if rng.random() < 0.05:
        case.files[name] = None
    case.info["toy"] = {"file_name": name.removeprefix("data/")}
    case.config |= {"dataset": "toy", "dataset_dir": "data"}
    if rng.random() < 0.3:
        case.config |= {"component_name": "host", "components_cfg_file": "components.yaml"}


def overrides(case: Case) -> None:
    rng = case.rng
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.3:
            prefix = rng.choice(["component.params.", "component.", "component.params.window_size.", "a.b.c.", "--"])
            key = prefix + rng.choice(PARAMS)
        elif rng.random() < 0.5:
            key = rng.choice(KEYS)
        else:
            key = rng.choice(["", ".", "..", "a[", "a]", "[0]", "a[0]", "a[x]", "a..b", ".a", "a.", " ", *TEXTS[:14]])
        kind = rng.random()
        if kind < 0.35:
            value = rng.choice(INTERPOLATIONS)
        elif kind < 0.6:
            value = rng.choice(
                ["", "[1,", "{a:", "'", '"', "{a: 1}", "[1, 2]", "- x", "!!int x", "&a [*a]", "*a", *TAGS]
            )
        else:
            value = str(junk(rng, depth=4))[:2000]
        case.arguments.append(f"{key}={value}".replace("\x00", ""))


def no_override(case: Case) -> None:
    case.arguments.append(
        case.rng.choice(["warmup_step", "=", "=5", "--warmup_step 5", "-x", "--foo", "狐", " ", "a:b"])
    )
    case.refused = True


def text_damage(which: str) -> Callable[[Case], None]:
    """Letters, lines and bytes of a written file moved about."""

    def mutate(case: Case) -> None:
        rng = case.rng
        name, tree = ("config", case.config) if which == "config" else ("components", case.components)
        as_json = rng.random() < 0.3
        raw = as_text(case, tree, as_json=as_json)
        if which == "config" and not as_json and rng.random() < 0.5:
            raw = (ROOT / rng.choice(EXAMPLES)).read_bytes()
        for _ in range(rng.choice([1, 1, 2, 5])):
            raw = damage(rng, raw)
        ending = ".json" if as_json else ".yaml"
        case.files[name + ending] = raw
        if which == "config":
            case.arguments[0] = name + ending
        else:
            case.config["components_cfg_file"] = name + ending

    return mutate


def damage(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw) + 1)
    lines = raw.split(b"\n")
    line = rng.randrange(len(lines))
    how = rng.randrange(12)
    if how == 0:
        return raw[:at]
    if how == 1:
        return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    if how == 2:
        return raw[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + raw[at:]
    if how == 3:
        return b"\n".join(lines[:line] + lines[line + 1 :])
    if how == 4:
        return b"\n".join([*lines[: line + 1], *lines[line:]])
    if how == 5:
        rng.shuffle(lines)
        return b"\n".join(lines)
    if how == 6:
        lines[line] = b" " * rng.randrange(1, 6) + lines[line]
        return b"\n".join(lines)
    if how == 7:
        return raw[:at] + rng.choice(YAML_PIECES).encode() + raw[at:]
    if how == 8:
        key = lines[line].split(b":")[0]
        lines[line] = key + b": " + rng.choice([*TAGS, *INTERPOLATIONS]).encode()
        return b"\n".join(lines)
    if how == 9:
        text = raw.decode("utf-8", "replace")
        return text.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"]))
    if how == 10:
        return raw.replace(b"\n", rng.choice([b"\r\n", b"\r", b"", b"\n\n", b"\x00"]))
    return (
        raw[:at] + rng.choice([b"1e400", b"NaN", b"-Infinity", b"1" * 5000, b"0x" + b"f" * 5000, b"{" * 30]) + raw[at:]
    )


def strange_text(case: Case) -> str:
    """A whole file that is valid or invalid in a way that people rarely see."""
    rng = case.rng
    depth = rng.choice([20, 200, 2000, 60_000])
    return rng.choice(
        [
            *(
                "",
                "\n",
                "# only a comment",
                "---",
                "null",
                "5",
                "text",
                "'",
                "[]",
                "{}",
                "- a",
                "a",
                "--- |\n x",
                "...",
            ),
            *(
                "a: &a [*a]",
                "a: &a {b: *a}",
                "&a a: *a",
                "<<: &a {<<: *a}",
                "a: &a {x: 1}\n<<: [*a, *a]",
                "a: *nowhere",
            ),
            *(
                "a: 1\n---\nb: 2",
                "a: 1\na: 2",
                "? [1, 2]\n: 3",
                "? {a: 1}\n: 3",
                "!!map [1]",
                "!!seq {a: 1}",
                "%TAG ! x\n--- !y",
            ),
            "[" * depth,
            "{" * depth,
            "a: " + "[" * depth + "]" * depth,
            "\n".join("  " * i + "a:" for i in range(min(depth, 2000))),
            "- " * depth,
            '{"a": ' * depth + "1" + "}" * depth,
            bomb("[{}]", ", "),
            bomb("{{{}}}", ", ", keys=True),
            *(f"train_type: {tag}" for tag in TAGS),
            *(tag for tag in TAGS),
            *(f"{piece}{piece}" for piece in YAML_PIECES),
            *(f"a: {text}\nb: ${{a}}" for text in INTERPOLATIONS),
            "a: ${b}\nb: ${a}",
            "a: ${a}",
            "a:\n  b: ${a}",
            "\n".join(f"k{i}: ${{k{i + 1}}}${{k{i + 1}}}" for i in range(12)) + "\nk12: x",
            "update_step: 0x" + "f" * 5000,
            "learning_rate: 0x" + "f" * 5000,
            "dataset: 0x" + "f" * 5000,
        ]
    )


def bomb(brackets: str, comma: str, *, keys: bool = False) -> str:
    """Aliases of aliases: a few lines that stand for a billion values."""
    item = (lambda i, j: f"k{j}: *a{i}") if keys else (lambda i, j: f"*a{i}")
    lines = ["a0: &a0 x"]
    for i in range(9):
        lines.append(f"a{i + 1}: &a{i + 1} " + brackets.format(comma.join(item(i, j) for j in range(9))))
    return "\n".join(lines)


def strange_config(case: Case) -> None:
    case.arguments[0] = "config" + case.rng.choice([".yaml", ".yaml", ".yml", ".json"])
    case.files[case.arguments[0]] = strange_text(case).encode("utf-8", "surrogatepass")


def strange_components(case: Case) -> None:
    name = "components" + case.rng.choice([".yaml", ".yaml", ".yml", ".json"])
    case.files[name] = strange_text(case).encode("utf-8", "surrogatepass")
    case.config["components_cfg_file"] = name


def strange_part(case: Case) -> None:
    """A valid file and a strange piece of YAML after it."""
    which = case.rng.choice(["config", "components"])
    tree = case.config if which == "config" else case.components
    text = as_text(case, tree, as_json=False) + b"\n" + strange_text(case).encode("utf-8", "surrogatepass")
    case.files[f"{which}.yaml"] = text


def python_tags(case: Case) -> None:
    """Tags that would run code in an unsafe loader."""
    tag = case.rng.choice([tag for tag in TAGS if tag.startswith("!!python") and "tuple" not in tag])
    key = f"{case.rng.choice(KEYS)}x" if case.rng.random() < 0.5 else "zz"
    if case.rng.random() < 0.5:
        case.files["config.yaml"] = as_text(case, case.config, as_json=False) + f"{key}: {tag}\n".encode()
    else:
        case.files["components.yaml"] = as_text(case, case.components, as_json=False) + f"{key}: {tag}\n".encode()
        case.config["components_cfg_file"] = "components.yaml"
    case.refused = True


def doubled_keys(case: Case) -> None:
    """The same key twice: one of the values would be lost in silence."""
    which = case.rng.choice(["config", "components"])
    tree = case.config if which == "config" else case.components["selectors"]
    key = case.rng.choice(sorted(tree))
    if case.rng.random() < 0.5:
        name, both = f"{which}.json", as_text(case, tree, as_json=True).decode("utf-8")
        both = both.rstrip()[:-1] + f", {json.dumps(key)}: {json.dumps(tree[key])}}}"
    else:
        name = f"{which}.yaml"
        both = yaml.safe_dump(tree, sort_keys=False) + yaml.safe_dump({key: tree[key]})
    case.files[name] = both.encode()
    if which == "config":
        case.arguments[0] = name
    else:
        case.config |= {"components_cfg_file": name, "component_name": "mine"}
    case.refused = True


def wrong_files(case: Case) -> None:
    """Files that are missing, folders, links to nowhere, or of another ending."""
    rng = case.rng
    how = rng.randrange(5)
    if how == 0:
        case.arguments[0] = rng.choice(
            ["", " ", "config", "config.txt", "config.YAML", "config.yaml ", ".yaml", "config.toml"]
        )
        if case.arguments[0].strip() and case.arguments[0] != ".yaml":
            case.files[case.arguments[0]] = as_text(case, case.config)
        case.refused = case.arguments[0] != "config.yaml "
    elif how == 1:
        case.arguments[0] = rng.choice(
            ["nowhere.yaml", "no/where.json", "x" * 300 + ".yaml", "/.yaml", "../config.yaml"]
        )
        case.refused = True
    elif how == 2:
        case.files[case.arguments[0]] = None
        case.refused = True
    elif how == 3:
        case.config["components_cfg_file"] = rng.choice(
            ["nowhere.yaml", "x" * 300, "data", ".", "", "config.yaml", 7, [1]]
        )
    else:
        case.config["components_cfg_file"] = rng.choice(
            ["components.txt", "components", "data/toy.jsonl", "components.json"]
        )
        if isinstance(case.config["components_cfg_file"], str) and "data" not in case.config["components_cfg_file"]:
            case.files[case.config["components_cfg_file"]] = as_text(case, case.components)


def several(case: Case) -> None:
    for kind in case.rng.sample([params, foreign, our_numbers, data_sets, overrides, values("config"), odd_keys], 2):
        with contextlib.suppress(AttributeError, TypeError, KeyError):  # one mutation may leave no place for the next
            kind(case)


KINDS: dict[str, Callable[[Case], None]] = {
    "values of the config": values("config"),
    "values of the components": values("components"),
    "whole numbers": our_numbers,
    "a misspelt key": misspelt_key,
    "a missing key": needed_key,
    "parameters": params,
    "a foreign class": foreign,
    "odd keys": odd_keys,
    "data sets": data_sets,
    "data files": data_files,
    "overrides": overrides,
    "no override": no_override,
    "a damaged config": text_damage("config"),
    "damaged components": text_damage("components"),
    "a strange config": strange_config,
    "strange components": strange_components,
    "a strange part": strange_part,
    "tags of Python": python_tags,
    "a key twice": doubled_keys,
    "wrong files": wrong_files,
    "several at once": several,
}


def make_case(number: int) -> Case:
    """The input of that number."""
    rng = random.Random(f"dataflex fuzz {number}")
    kind = list(KINDS)[number % len(KINDS)]
    case = valid_case(number, kind, rng)
    KINDS[kind](case)
    return finished(case)


def finished(case: Case) -> Case:
    """The case with its values written as files, where a mutation has not written that file already."""
    for name, tree in (("config.yaml", case.config), ("components.yaml", case.components)):
        if name not in case.files:
            case.files[name] = as_text(case, tree, as_json=case.rng.random() < 0.2)  # JSON is YAML
    for folder in ("data", "examples/quickstart/data"):
        case.files.setdefault(f"{folder}/dataset_info.json", as_text(case, case.info, as_json=True))
    return case


def valid_case(number: int, kind: str, rng: random.Random) -> Case:
    """An undamaged case: the tiny config or an example."""
    if rng.random() < 0.7:
        config = dict(TINY)
    else:
        config = yaml.safe_load((ROOT / rng.choice(EXAMPLES)).read_text(encoding="utf-8"))
    case = Case(number, kind, rng, config, json.loads(json.dumps(COMPONENTS)), {})
    names = ("toy", "alpaca_en_demo", "alpaca_zh_demo", "reasoning_pool")
    case.info = {name: {"file_name": "toy.jsonl"} for name in names}
    rows = "".join(json.dumps({"instruction": f"ask {i}", "output": "said"}) + "\n" for i in range(200))
    case.files = {"fuzz_methods.py": METHODS.encode(), "scores.npy": b"", "data/toy.jsonl": rows.encode()}
    case.files |= {f"{name}.py": text.encode() for name, text in RAISING.items()}
    case.files["examples/quickstart/data/toy.jsonl"] = rows.encode()
    case.files["examples/quickstart/components.yaml"] = (ROOT / "examples/quickstart/components.yaml").read_bytes()
    return case


# --- running ---


class TooSlow(BaseException):
    """Not an Exception: nothing on the way may take it for an error of its own."""


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    changed: list[str]  # files that were left behind or taken away


def write_files(case: Case, work: Path) -> None:
    for name, content in case.files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)


def listing(folder: Path) -> set[tuple[str, int]]:
    """Every path below a folder, with its size; what Python compiles is not the command's doing."""
    return {
        (path, os.lstat(os.path.join(base, path)).st_size if os.path.isfile(os.path.join(base, path)) else 0)
        for base, folders, files in os.walk(folder)
        for path in (os.path.join(os.path.relpath(base, folder), name) for name in (*folders, *files))
        if "__pycache__" not in path
    }


@contextlib.contextmanager
def placed(case: Case, folder: Path) -> Iterator[Path]:
    """The case's files below ``folder``; taken away afterwards."""
    work = folder / WORK
    work.mkdir(parents=True)
    try:
        write_files(case, work)
        yield work
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_here(verb: str, arguments: list[str], folder: Path) -> Outcome:
    """Exit code and output of a verb in this process, in ``folder/work``."""
    from dataflex.cli.main import main

    before, here, argv, path = listing(folder), os.getcwd(), sys.argv, list(sys.path)
    # Strict, as a terminal is: a character that cannot be printed has to be dealt with.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)

    def stop(*_: Any) -> None:
        raise TooSlow(f"longer than {SECONDS:g} seconds")

    handler = signal.signal(signal.SIGPROF, stop)
    os.chdir(folder / WORK)
    sys.argv = ["dataflex-cli", verb, *arguments]
    sys.path.insert(0, str(folder / WORK))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        os.chdir(here)
        sys.argv, sys.path[:] = argv, path
        for name in ("fuzz_methods", *RAISING):
            sys.modules.pop(name, None)
    changed = sorted(path for path, _ in before ^ listing(folder))
    return Outcome(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode(), changed)  # type: ignore[attr-defined]


def complaint(outcome: Outcome, *, refused: bool) -> str | None:
    """What is wrong with how a verb ended; None if nothing is."""
    lines = outcome.err.splitlines()
    if outcome.changed:
        return f"files were left behind or taken away: {outcome.changed}"
    if outcome.code not in (0, 2):
        return f"exit code {outcome.code}"
    if "Traceback" in outcome.err + outcome.out:
        return "a traceback"
    if outcome.code == 0 and outcome.err:
        return "exit code 0, but something on stderr"
    if outcome.code == 0 and not any(word in outcome.out for word in PLANNED):
        return "exit code 0, but nothing was planned"
    if outcome.code == 0 and refused:
        return "accepted, but it must be refused"
    if outcome.code == 2 and (len(lines) != 1 or not lines[0].startswith("dataflex-cli: error: ")):
        return "exit code 2 without exactly one line that begins with 'dataflex-cli: error: '"
    if outcome.code == 2 and len(outcome.err) > 2000:
        return f"an error of {len(outcome.err)} characters"
    return None
