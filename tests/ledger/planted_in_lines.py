"""Damage to the lines of a ledger.

Segments of the record "whole": 0 warm-up, 1 first, 2 guided, 3 warm-up, 4 and 5 guided.
"""

from __future__ import annotations

import shutil

from audited_runs import edit_texts, forge, line_of
from planting import LINE, Damage, line_edit, note_edit, root, segments, signals

DAMAGED_LINES: dict[str, Damage] = {
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
}
