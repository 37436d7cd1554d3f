"""The audit finds every planted damage and names its place; a record in order gives no finding."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from audited_runs import (
    begin_run,
    damages,
    edit_texts,
    everything_found,
    finished,
    forge,
    forge_array,
    interrupted,
    line_of,
    make_run,
    rewrite_array,
    save,
)

from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.length import Length
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.replay import Replay
from dataflex.algorithms.select.static import Static
from dataflex.ledger.audit import audit
from dataflex.ledger.ledger import Ledger
from dataflex.ledger.run_file import write_run
from dataflex.ledger.summary import summary

# Segments of the base record, a finished run of delta_loss: 0 warm-up, 1 first, 2 guided, 3 warm-up, 4 and 5 guided.


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undamaged records by name; tests copy them."""
    folder = tmp_path_factory.mktemp("records")
    finished(folder / "whole", DeltaLoss())
    finished(folder / "other", DeltaLoss(), seed=8)
    finished(folder / "random", Random())
    finished(folder / "host", Static())
    _, checkpoint = interrupted(folder / "crashed", DeltaLoss(), at=9, saved_at=4)
    shutil.copytree(folder / "crashed", folder / "resumed")
    resumed = make_run(folder / "resumed", DeltaLoss(), begin=False)
    begin_run(resumed, folder / "resumed" / checkpoint.name)
    resumed.train(4)
    resumed.curator.end(14, None)
    assert "rollback" in [line["kind"] for line in resumed.ledger.lines()]
    return folder


# damage: (name of the record, what is done to it, where it is found, what is said)


def root(run: Path) -> Path:
    return run / "dataflex"


def flip(path: Path, column: int) -> None:
    """Flip a bit in the middle of a column's values."""
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    data = bytearray(path.read_bytes())
    data[chunk.dictionary_page_offset + chunk.total_compressed_size // 2] ^= 0x10
    path.write_bytes(bytes(data))


def reseal(run: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change run.yaml with a new seal."""
    content = yaml.safe_load((root(run) / "run.yaml").read_text())
    seal = content.pop("seal")
    edit(content)
    write_run(root(run) / "run.yaml", content, seal["rows"])


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def segments(k: int) -> str:
    return f"segments/{k:06d}.parquet"


def signals(k: int) -> str:
    return f"signals/{k:06d}.parquet"


def swap(run: Path, which: str, a: int, b: int) -> None:
    paths = [root(run) / which / f"{k:06d}.parquet" for k in (a, b)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)


def put(index: int, value: Any) -> Callable[[dict[str, np.ndarray]], None]:
    """Set one entry of the column that is not row, position or times_trained."""

    def edit(columns: dict[str, np.ndarray]) -> None:
        next(v for name, v in columns.items() if name not in ("row", "position", "times_trained"))[index] = value

    return edit


def set_row(index: int, row: int) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda columns: columns["row"].__setitem__(index, row)


def other_rows(run: Path, segment: int, scored_only: bool = True) -> None:
    """Replace a choice by valid other rows, each once, with all counts, hashes and the chain in order."""
    losses_N = pq.read_table(root(run) / signals(segment))["loss"].to_numpy()
    in_window_N = pq.read_table(root(run) / signals(segment))["in_window"].to_numpy()
    chosen = pq.read_table(root(run) / segments(segment))["row"].to_numpy()
    # From inside or outside the window as before, so that the line's counts stay true.
    spare = [r for r in np.flatnonzero(np.isfinite(losses_N)) if r not in chosen and not in_window_N[r]]
    place = next(i for i, r in enumerate(chosen) if not in_window_N[r])
    forge_array(run, "segments", segment, set_row(place, int(spare[0])))


def times_trained(run: Path, segment: int, count: int) -> None:
    forge_array(run, "signals", segment, lambda c: c["times_trained"].__setitem__(7, count))


def without_position(run: Path) -> None:
    path = root(run) / segments(2)
    pq.write_table(pq.read_table(path).select(["row"]), path)


def line_edit(segment: int, **fields: Any) -> Callable[[Path], None]:
    return lambda run: forge(run, lambda lines: line_of(lines, segment).update(fields))


def note_edit(segment: int, **notes: Any) -> Callable[[Path], None]:
    return lambda run: forge(run, lambda lines: line_of(lines, segment)["notes"].update(notes))


LINE = r"ledger.jsonl line"
DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    # lines, without a new checksum
    "a number edited": (
        "whole",
        lambda r: edit_texts(r, lambda t: [*t[:2], t[2].replace(b'"num_rows": 8', b'"num_rows": 9'), *t[3:]]),
        f"{LINE} 3",
        "checksum does not match",
    ),
    "the last line edited": (
        "whole",
        lambda r: edit_texts(r, lambda t: [*t[:-1], t[-1].replace(b'"step": 14', b'"step": 13')]),
        f"{LINE} 7",
        "checksum does not match",
    ),
    "a line cut short": (
        "whole",
        lambda r: edit_texts(r, lambda t: [*t[:3], t[3][:200], *t[4:]]),
        f"{LINE} 4",
        "no JSON",
    ),
    "two lines swapped": (
        "whole",
        lambda r: edit_texts(r, lambda t: [t[1], t[0], *t[2:]]),
        f"{LINE} 1",
        "not the first",
    ),
    "a line twice": (
        "whole",
        lambda r: edit_texts(r, lambda t: [*t[:2], *t[1:]]),
        f"{LINE} 3",
        "does not follow line 2",
    ),
    "a line taken out": ("whole", lambda r: edit_texts(r, lambda t: [*t[:2], *t[3:]]), f"{LINE} 3", "does not follow"),
    "the last segments' lines taken out": (
        "whole",
        lambda r: edit_texts(r, lambda t: t[:3]),
        segments(4),
        "no line records",
    ),
    "the ledger of another run": (
        "whole",
        lambda r: shutil.copy(r.parent.parent / "records-other.jsonl", root(r) / "ledger.jsonl"),
        f"{LINE} 1",
        "belong to another run",
    ),
    "no ledger": ("whole", lambda r: (root(r) / "ledger.jsonl").unlink(), segments(1), "no line records it"),
    "a checksum taken out": (
        "whole",
        lambda r: edit_texts(r, lambda t: [t[0][:-81] + b"}", *t[1:]]),
        f"{LINE} 1",
        "checksum is missing",
    ),
    "no UTF-8": ("whole", lambda r: edit_texts(r, lambda t: [t[0], b"\xff\xfe", *t[1:]]), f"{LINE} 2", "no JSON"),
    # lines, with new checksums and a new chain
    "a segment recorded twice": (
        "whole",
        lambda r: forge(r, lambda t: [*t[:3], t[2], *t[3:]]),
        f"{LINE} 4",
        "segment 2 is recorded a second time",
    ),
    "a segment left out": (
        "whole",
        lambda r: forge(r, lambda t: [*t[:2], *t[3:]]),
        f"{LINE} 3",
        "segments are missing",
    ),
    "a gap in the steps": ("whole", line_edit(2, start=6), f"{LINE} 3", "leaves a gap"),
    "an overlap of steps": ("whole", line_edit(2, start=4), f"{LINE} 3", "overlaps"),
    "a segment that ends before it starts": ("whole", line_edit(2, stop=5), f"{LINE} 3", "not after its start"),
    "another place in the schedule": (
        "whole",
        line_edit(2, update=0),
        f"{LINE} 3",
        "the schedule of run.yaml has there",
    ),
    "the rollback taken out": (
        "resumed",
        lambda r: forge(r, lambda t: [line for line in t if line["kind"] != "rollback"]),
        LINE,
        "is recorded a second time",
    ),
    "a rollback of nothing": (
        "whole",
        lambda r: forge(r, lambda t: [*t, {"kind": "rollback", "from_segment": 9, "reason": ""}]),
        f"{LINE} 8",
        "which was not recorded",
    ),
    "a resume beyond the record": (
        "resumed",
        lambda r: forge(r, lambda t: next(line for line in t if line["kind"] == "resume").update(step=13)),
        LINE,
        "goes on after step 13",
    ),
    "the method edited": (
        "whole",
        line_edit(4, method="loss"),
        f"{LINE} 5",
        "chosen by loss, run.yaml names delta_loss",
    ),
    "the parameters of a line edited": (
        "whole",
        line_edit(4, params={"window_size": 0.3}),
        f"{LINE} 5",
        "other parameters",
    ),
    "the seed edited": ("whole", line_edit(4, seed=1), f"{LINE} 5", "with seed 1, run.yaml has 7"),
    "a field of another type": ("whole", line_edit(4, num_rows="8"), f"{LINE} 5", "'num_rows' is '8'"),
    "a field taken out": (
        "whole",
        lambda r: forge(r, lambda t: line_of(t, 4).pop("notes") and None),
        f"{LINE} 5",
        "'notes' is missing",
    ),
    "an unknown kind": ("whole", lambda r: forge(r, lambda t: [*t, {"kind": "other"}]), f"{LINE} 8", "unknown"),
    "an end that contradicts": (
        "whole",
        lambda r: forge(r, lambda t: t[-1].update(step=20)),
        f"{LINE} 7",
        "stopped at step 20",
    ),
    "a cost that contradicts": (
        "whole",
        lambda r: forge(r, lambda t: t[-1]["choosing"].update(num_tokens=99)),
        f"{LINE} 7",
        "counts 99 for num_tokens",
    ),
    "num_rows edited": ("whole", line_edit(4, num_rows=7), segments(4), "has num_rows 8, its ledger line says 7"),
    "num_distinct_rows edited": ("whole", line_edit(4, num_distinct_rows=3), segments(4), "num_distinct_rows"),
    "num_scored edited": ("whole", note_edit(4, num_scored=12), signals(4), "says num_scored 12, its columns give 38"),
    "num_improved edited": ("whole", note_edit(4, num_improved=1), signals(4), "says num_improved 1"),
    "num_from_window edited": ("whole", note_edit(4, num_from_window=0), signals(4), "says num_from_window 0"),
    "tau edited": ("whole", note_edit(4, tau=0.123), "segment 4", "notes do not follow"),
    "the window edited": (
        "whole",
        lambda r: forge(r, lambda t: line_of(t, 4)["window"].update(end=5, end_share=5 / 38)),
        signals(4),
        "does not mark the ranks of the window 0 to 5",
    ),
    "a share of the window edited": (
        "whole",
        lambda r: forge(r, lambda t: line_of(t, 4)["window"].update(end_share=0.9)),
        signals(4),
        "says end_share 0.9",
    ),
    "a quantile edited": (
        "whole",
        lambda r: forge(r, lambda t: line_of(t, 4)["quantiles"]["loss"].update({"0.5": 9.9})),
        signals(4),
        "quantiles of 'loss'",
    ),
    "the decision edited": ("whole", line_edit(4, decision="first"), "segment 4", "records the decision 'first'"),
    # arrays
    "arrays of two segments swapped": (
        "whole",
        lambda r: swap(r, "segments", 2, 4),
        segments(2),
        "sha256 does not match",
    ),
    "signals of two segments swapped": (
        "whole",
        lambda r: swap(r, "signals", 2, 4),
        signals(4),
        "sha256 does not match",
    ),
    "a flipped byte": ("whole", lambda r: flip(root(r) / signals(4), 2), signals(4), "damaged|sha256|cannot be read"),
    "a truncated array": (
        "whole",
        lambda r: (root(r) / segments(3)).write_bytes((root(r) / segments(3)).read_bytes()[:-100]),
        segments(3),
        "damaged|cannot be read",
    ),
    "an empty array": (
        "whole",
        lambda r: (root(r) / signals(5)).write_bytes(b""),
        signals(5),
        "damaged|cannot be read",
    ),
    "a missing array": (
        "whole",
        lambda r: (root(r) / segments(3)).unlink(),
        segments(3),
        "missing, but line 4 records it",
    ),
    "missing signals": (
        "whole",
        lambda r: (root(r) / signals(2)).unlink(),
        signals(2),
        "missing, but line 3 records it",
    ),
    "an array that nobody recorded": (
        "whole",
        lambda r: shutil.copy(root(r) / segments(3), root(r) / segments(9)),
        segments(9),
        "no line records it",
    ),
    "a strange file": (
        "whole",
        lambda r: (root(r) / "signals/notes.txt").write_text(""),
        "signals/notes.txt",
        "no line",
    ),
    "a row edited": (
        "whole",
        lambda r: rewrite_array(root(r) / segments(4), set_row(0, 39)),
        segments(4),
        "sha256 does not match",
    ),
    "a column shortened": (
        "whole",
        lambda r: forge_array(r, "signals", 4, lambda c: {name: v[:-1] for name, v in c.items()}),
        signals(4),
        "have 39 entries, the pool has 40 rows",
    ),
    "a column of another type": (
        "whole",
        lambda r: forge_array(r, "signals", 4, lambda c: {**c, "rank": c["rank"].astype(np.float64)}),
        signals(4),
        "'rank' holds float64",
    ),
    "a column of words": (
        "whole",
        lambda r: rewrite_array(root(r) / signals(4), lambda c: {**c, "loss": np.array(["x"] * 40)}),
        signals(4),
        "damaged|sha256",
    ),
    "a planted NaN": (
        "whole",
        lambda r: forge_array(r, "signals", 4, put(3, np.nan)),
        signals(4),
        "num_scored|quantiles",
    ),
    "a planted NaN, old checksum": (
        "whole",
        lambda r: rewrite_array(root(r) / signals(4), put(3, np.nan)),
        signals(4),
        "sha256 does not match",
    ),
    "no column of positions": ("whole", without_position, segments(2), "no columns 'position' and 'row'"),
    "a row out of the pool": (
        "whole",
        lambda r: forge_array(r, "segments", 4, set_row(0, 40)),
        segments(4),
        "names row 40, but the pool has rows 0 to 39",
    ),
    "a row without a loss": (
        "whole",
        lambda r: forge_array(r, "segments", 4, set_row(0, 17)),
        signals(4),
        "row 17 was drawn, but its weight is 0",
    ),
    "times_trained edited": ("whole", lambda r: times_trained(r, 4, 9), signals(4), "times_trained of row 7 is 9"),
    "fewer rows than the steps need": (
        "whole",
        lambda r: (
            forge_array(r, "segments", 4, lambda c: {n: v[:-1] for n, v in c.items()}),
            forge(r, lambda t: line_of(t, 4).update(num_rows=7, num_distinct_rows=7)),
        ),
        "segment 4",
        "has 7 rows for the steps 10-12, which need 8",
    ),
    "a choice replaced by other valid rows": ("whole", lambda r: other_rows(r, 4), "segment 4", "give other rows"),
    "a choice in another order": (
        "whole",
        lambda r: forge_array(r, "segments", 4, lambda c: {**c, "row": c["row"][::-1].copy()}),
        "segment 4",
        "in another order",
    ),
    "a warm-up replaced": (
        "whole",
        lambda r: forge_array(r, "segments", 0, lambda c: {**c, "row": np.roll(c["row"], 1)}),
        "segment 0",
        "in another order",
    ),
    "a random choice replaced": (
        "random",
        lambda r: forge_array(r, "segments", 1, lambda c: {**c, "row": np.roll(c["row"], 1)}),
        "segment 1",
        "in another order",
    ),
    "an initial loss edited": (
        "whole",
        lambda r: (
            forge_array(r, "signals", 1, put(5, 2.0)),
            forge(r, lambda t: line_of(t, 1).update(quantiles=_quantiles(r, 1))),
        ),
        "segment 2",
        "column 'delta' does not follow",
    ),
    "host order, a short segment in the middle of a pass": (
        "host",
        lambda r: (
            forge_array(r, "segments", 1, lambda c: {n: v[:-1] for n, v in c.items()}),
            forge(r, lambda t: line_of(t, 1).update(num_rows=7, num_distinct_rows=7)),
        ),
        "segment 1",
        "which need 8",
    ),
    # run.yaml and rows.parquet
    "no run.yaml": ("whole", lambda r: (root(r) / "run.yaml").unlink(), "run.yaml", "it is missing"),
    "run.yaml cut short": (
        "whole",
        lambda r: (root(r) / "run.yaml").write_text((root(r) / "run.yaml").read_text()[:300]),
        "run.yaml",
        "checksum|cannot be read",
    ),
    "run.yaml: fingerprint edited": (
        "whole",
        lambda r: replace_text(root(r) / "run.yaml", "learning_rate: 0.0001", "learning_rate: 0.0002"),
        "run.yaml",
        "checksum does not match",
    ),
    "run.yaml: params edited": (
        "whole",
        lambda r: replace_text(root(r) / "run.yaml", "window_size: 0.2", "window_size: 0.3"),
        "run.yaml",
        "checksum does not match",
    ),
    "run.yaml: fingerprint edited and sealed": (
        "whole",
        lambda r: reseal(r, lambda c: c["fingerprint"].update(learning_rate=2e-4)),
        "run.yaml",
        "learning_rate is one thing in the fingerprint and another in the config",
    ),
    "run.yaml: params edited and sealed": (
        "whole",
        lambda r: reseal(r, lambda c: c["params"].update(window_size=0.3)),
        "run.yaml",
        "params are one thing in the fingerprint",
    ),
    "run.yaml: params edited everywhere and sealed": (
        "whole",
        lambda r: reseal(
            r, lambda c: (c["params"].update(window_size=0.3), c["fingerprint"]["params"].update(window_size=0.3))
        ),
        f"{LINE} 1",
        "other parameters than run.yaml names",
    ),
    "run.yaml: another geometry": (
        "whole",
        lambda r: reseal(r, lambda c: c["geometry"].update(micro_batch=3)),
        "run.yaml",
        "the geometry makes 6 samples a step, the fingerprint has 4",
    ),
    "run.yaml: another schedule": (
        "whole",
        lambda r: reseal(
            r, lambda c: (c["schedule"].update(update_step=1), c["fingerprint"]["schedule"].update(update_step=1))
        ),
        LINE,
        "the schedule of run.yaml has there",
    ),
    "run.yaml: a field taken out": (
        "whole",
        lambda r: reseal(r, lambda c: c.pop("seed")),
        "run.yaml",
        "'seed' is missing",
    ),
    "run.yaml: another id": ("whole", lambda r: reseal(r, lambda c: c.update(run_id="x")), f"{LINE} 1", "another run"),
    "run.yaml: a pool that no memory holds": (
        "whole",
        lambda r: reseal(r, lambda c: c["fingerprint"].update(num_rows=2**50)),
        "rows.parquet",
        "it has 40 rows, the pool of this run has 1125899906842624",
    ),
    "rows.parquet of other data": (
        "whole",
        lambda r: pq.write_table(
            pa.table({"row": range(40), "num_tokens": [9] * 40, "num_label_tokens": [3] * 40}), root(r) / "rows.parquet"
        ),
        "rows.parquet",
        "not the file that this run wrote",
    ),
    "rows.parquet of another size": (
        "whole",
        lambda r: pq.write_table(pq.read_table(root(r) / "rows.parquet").slice(0, 30), root(r) / "rows.parquet"),
        "rows.parquet",
        "it has 30 rows, the pool of this run has 40",
    ),
    "rows.parquet in another order": (
        "whole",
        lambda r: rewrite_array(root(r) / "rows.parquet", lambda c: {n: v[::-1].copy() for n, v in c.items()}),
        "rows.parquet",
        "not numbered 0 to 39",
    ),
    "rows.parquet truncated": (
        "whole",
        lambda r: (root(r) / "rows.parquet").write_bytes((root(r) / "rows.parquet").read_bytes()[:200]),
        "rows.parquet",
        "cannot be read",
    ),
    "no rows.parquet": ("whole", lambda r: (root(r) / "rows.parquet").unlink(), "rows.parquet", "it is missing"),
    # a crashed run
    "a crashed run's line edited": (
        "crashed",
        lambda r: edit_texts(r, lambda t: [*t[:-1], t[-1].replace(b"warm-up", b"wArm-up")]),
        f"{LINE} 4",
        "checksum does not match",
    ),
    "a crashed run's array lost": ("crashed", lambda r: (root(r) / segments(1)).unlink(), segments(1), "is missing"),
}


def _quantiles(run: Path, segment: int) -> dict[str, Any]:
    from dataflex.ledger.quantiles import quantiles

    table = pq.read_table(root(run) / signals(segment))
    return quantiles({name: table[name].to_numpy() for name in table.column_names})


@pytest.mark.parametrize(("record", "plant", "where", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_planted_damage_is_named(records: Path, tmp_path: Path, record: str, plant, where: str, said: str) -> None:
    run = tmp_path / "runs" / record
    shutil.copytree(records / record, run)
    shutil.copy(records / "other" / "dataflex" / "ledger.jsonl", tmp_path / "records-other.jsonl")
    plant(run)
    found = damages(run)
    named = [finding for finding in found if finding.where.startswith(where) and re.search(said, finding.sentence)]
    assert named, f"found only:\n{chr(10).join(map(str, found)) or 'nothing'}"
    for finding in found:
        assert "\n" not in finding.sentence
        assert finding.sentence


def test_there_are_many_kinds_of_damage() -> None:
    assert len(DAMAGES) >= 24


# no damage


def notes(run: Path) -> list[str]:
    found = everything_found(run)
    assert not [finding for finding in found if finding.severity == "damage"]
    return [str(finding) for finding in found]


@pytest.mark.parametrize(
    "selector",
    [
        DeltaLoss(),
        DeltaLoss(baseline="run_start"),
        DeltaLoss(window_size=0.9, normalize="initial", when_empty="uniform", progress="t/T"),
        DeltaLoss(replacement=True, base_weight=0),
        Loss(),
        Loss(focus="low", temperature=0.5, replacement=True),
        Random(),
        Random(replacement=True),
        Length(),
        Length(take="band"),
    ],
    ids=repr,
)
def test_a_whole_record_of_any_method_gives_no_finding(tmp_path: Path, selector: Any) -> None:
    finished(tmp_path, selector)
    assert notes(tmp_path) == []


def test_the_host_order_is_verified_but_not_derived(records: Path) -> None:
    assert len(notes(records / "host")) == 1
    assert "host's own order" in notes(records / "host")[0]


@pytest.mark.parametrize("draw", ["top", "weighted"])
def test_a_choice_by_a_file_is_derived_while_the_file_is_there(tmp_path: Path, draw) -> None:
    scores = tmp_path / "scores.npy"
    np.save(scores, np.random.default_rng(0).random(40))
    finished(tmp_path / "run", Static(path=str(scores), draw=draw))
    assert notes(tmp_path / "run") == []
    np.save(scores, np.random.default_rng(1).random(40))
    assert any("scores.npy may have changed since" in finding.sentence for finding in damages(tmp_path / "run"))
    scores.unlink()
    assert any("is not there any more" in said for said in notes(tmp_path / "run"))


def test_a_replay_is_derived_while_the_former_run_is_there(records: Path, tmp_path: Path) -> None:
    shutil.copytree(records / "whole", tmp_path / "former")
    finished(tmp_path / "run", Replay(path=str(tmp_path / "former")))
    assert notes(tmp_path / "run") == []
    shutil.rmtree(tmp_path / "former")
    assert any("is not there any more" in said for said in notes(tmp_path / "run"))


def test_a_crashed_run_is_said_to_have_no_end(records: Path) -> None:
    said = notes(records / "crashed")
    assert len(said) == 1
    assert "no line 'end' after step 10 of 14" in said[0]


@pytest.mark.parametrize("saved_at", [1, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("selector", [DeltaLoss(), Random(), Static()], ids=repr)
def test_a_resumed_run_gives_no_finding(tmp_path: Path, selector: Any, saved_at: int) -> None:
    _, checkpoint = interrupted(tmp_path, selector, at=8, saved_at=saved_at)
    again = make_run(tmp_path, selector, begin=False)
    begin_run(again, checkpoint)
    again.train(saved_at)
    again.curator.end(again.plan.num_steps, None)
    found = notes(tmp_path)
    assert found == [] or selector == Static()


def test_a_run_that_starts_again_without_a_checkpoint_gives_no_finding(tmp_path: Path) -> None:
    interrupted(tmp_path, DeltaLoss(), at=8, saved_at=8)
    finished(tmp_path, DeltaLoss())
    assert notes(tmp_path) == []


def test_a_run_that_is_killed_again_and_again_gives_no_finding(tmp_path: Path) -> None:
    _, checkpoint = interrupted(tmp_path, DeltaLoss(), at=11, saved_at=4)
    for _ in range(2):
        again = make_run(tmp_path, DeltaLoss(), begin=False)
        begin_run(again, checkpoint)
        rest = again.curator.rest_of_epoch(4)
        next(rest), next(rest)
    assert len(notes(tmp_path)) == 1


def test_early_stopping_is_said(tmp_path: Path) -> None:
    run, _ = interrupted(tmp_path, DeltaLoss(), at=6, saved_at=6)
    run.curator.end(6, None)
    assert notes(tmp_path) == ["note: ledger.jsonl: training ended at step 6 of 14"]
    # And it may go on later from its checkpoint, without a rollback.
    again = make_run(tmp_path, DeltaLoss(), begin=False)
    begin_run(again, save_path(run, 6))
    again.train(6)
    again.curator.end(14, None)
    assert notes(tmp_path) == []


def save_path(run: Any, step: int) -> Path:
    return (
        run.output_dir / f"checkpoint-{step}" if (run.output_dir / f"checkpoint-{step}").exists() else save(run, step)
    )


@pytest.mark.parametrize("tail", [b'{"kind": "segm', b'{"kind": "end", "step": 14}'])
def test_an_unfinished_last_line_is_no_damage(records: Path, tmp_path: Path, tail: bytes) -> None:
    shutil.copytree(records / "crashed", tmp_path / "run")
    with open(tmp_path / "run/dataflex/ledger.jsonl", "ab") as file:
        file.write(tail)
    assert any("its last line is unfinished" in said for said in notes(tmp_path / "run"))


@pytest.mark.parametrize("left", [segments(4), signals(4), "segments/.000004.parquet.tmp"])
def test_what_a_kill_between_arrays_and_line_leaves_is_no_damage(records: Path, tmp_path: Path, left: str) -> None:
    shutil.copytree(records / "crashed", tmp_path / "run")
    shutil.copy(records / "whole/dataflex" / segments(4), tmp_path / "run/dataflex" / left)
    assert any(left in said for said in notes(tmp_path / "run"))


def test_a_run_killed_before_its_first_decision_is_in_order(tmp_path: Path) -> None:
    make_run(tmp_path, DeltaLoss())
    assert len(notes(tmp_path)) == 1


def test_other_versions_in_mid_run_are_said(records: Path, tmp_path: Path) -> None:
    shutil.copytree(records / "whole", tmp_path / "run")
    forge(tmp_path / "run", lambda lines: line_of(lines, 4).update(versions={"numpy": "2"}))
    assert any("other versions were installed: numpy 2" in said for said in notes(tmp_path / "run"))


# the audit never stops and never raises


def test_all_of_many_damages_are_named(records: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records / "whole", run)
    (root(run) / segments(3)).unlink()
    flip(root(run) / signals(4), 2)
    edit_texts(run, lambda t: [*t[:1], t[1].replace(b"first", b"First"), *t[2:]])
    (root(run) / "rows.parquet").write_bytes(b"")
    places = {finding.where for finding in damages(run)}
    assert {segments(3), signals(4), "ledger.jsonl line 2", "rows.parquet"} <= places


@pytest.mark.parametrize("name", ["run.yaml", "rows.parquet", "ledger.jsonl", segments(2), signals(2), signals(4)])
def test_no_flipped_byte_and_no_cut_makes_the_audit_raise(records: Path, tmp_path: Path, name: str) -> None:
    """A flip of a byte that is no content (of a parquet file's own statistics) may be found or not."""
    run = tmp_path / "run"
    shutil.copytree(records / "whole", run)
    path = root(run) / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(whole), size=min(40, len(whole)), replace=False):
        data = bytearray(whole)
        data[position] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        found = everything_found(run)
        if name in ("run.yaml", "ledger.jsonl", "rows.parquet"):
            assert found, f"byte {position}"
        path.write_bytes(whole[:position])
        assert everything_found(run), f"cut at {position}"


JSON_VALUES = [None, True, -1, "x", [1], {"a": []}, 2**70, float("nan")]


def test_no_value_in_a_line_makes_the_audit_raise(records: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records / "whole", run)
    lines = [json.loads(text) for text in Ledger(run).path.read_bytes().split(b"\n")[:-1]]
    for number in (4, 6):
        for key in lines[number]:
            for value in JSON_VALUES:
                changed = json.dumps({**lines[number], key: value}).encode()
                edit_texts(run, lambda t, n=number, c=changed: [*t[:n], c, *t[n + 1 :]])
                found = audit(Ledger(run))
                assert found.findings, f"{key}: {value}"
                summary(found)


def test_no_value_in_run_yaml_makes_the_audit_raise(records: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records / "whole", run)
    content = yaml.safe_load((root(run) / "run.yaml").read_text())
    content.pop("seal")
    places = [(key,) for key in content] + [
        (key, inner) for key, value in content.items() if isinstance(value, dict) for inner in value
    ]
    for place in places:
        for value in (None, -1, "x", {"a": []}, 2**70):
            changed = json.loads(json.dumps(content))
            target = changed if len(place) == 1 else changed[place[0]]
            target[place[-1]] = value
            write_run(root(run) / "run.yaml", changed, None)
            everything_found(run)
            summary(audit(Ledger(run)))
