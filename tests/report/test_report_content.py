"""What the page holds is what the ledger says: brute-force counts, edge cases of runs, losses of the trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ledgers import BATCH, TASKS, Run
from page_reader import Page, unpack
from safetensors.numpy import save_file

from dataflex.core.errors import LedgerError
from dataflex.report.content import Reader, extremes, table_rows
from dataflex.report.pack import Packer
from dataflex.report.page import write_report
from dataflex.report.tally import Tally


def content(*run_dirs: Path) -> list[dict]:
    return unpack(Reader(run_dirs).read()[2])["runs"]


def one(run: Run) -> dict:
    return content(run.output_dir)[0]


@given(
    arrays(np.float64, st.integers(0, 40), elements=st.floats(-1e4, 1e4) | st.just(np.nan) | st.just(np.inf)),
    st.integers(0, 5),
)
def test_packed_numbers_come_back_rounded_and_missing_ones_missing(values, decimals) -> None:
    packer = Packer()
    other = packer.numbers(np.arange(5))  # arrays do not overlap
    back = unpack(packer.block({"a": packer.numbers(values, decimals), "b": other}))
    finite = np.isfinite(values)
    np.testing.assert_allclose(back["a"][finite], values[finite], atol=0.5000001 / 10**decimals)
    assert np.isnan(back["a"][~finite]).all()
    np.testing.assert_array_equal(back["b"], np.arange(5))


def test_numbers_too_large_for_four_bytes_lose_decimals_not_size() -> None:
    packer = Packer()
    back = unpack(packer.block(packer.numbers(np.array([-3e6, 3e6, 0.12345]), 5)))
    np.testing.assert_allclose(back, [-3e6, 3e6, 0.12], atol=0.01)


def test_every_decision_is_in_with_its_window_and_the_exact_values_at_its_ends(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(7).end()
    page = one(run)
    lines = run.ledger.segments()
    assert [decision["segment"] for decision in page["decisions"]] == [1, 2, 3, 4, 5, 6]
    assert [line["segment"] for line in page["lines"] if line["kind"] == "segment"] == list(lines)
    for decision in page["decisions"][1:]:
        line = lines[decision["segment"]]
        columns = run.ledger.signals_of(line)
        ranked = np.sort(columns["delta"])[::-1]
        at = decision["at"].astype(int)
        np.testing.assert_allclose(decision["value"], ranked[at], atol=1e-5)
        for edge in (line["window"]["start"], line["window"]["end"] - 1, line["notes"]["num_improved"]):
            assert edge in at
        inside = columns["in_window"][run.ledger.rows_of(line)].sum()
        assert inside == next(x for x in page["lines"] if x.get("segment") == line["segment"])["num_from_window"]


def test_mixture_weights_and_order_are_in_and_a_run_without_them_has_none(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", domains=["wiki", "c4"]).decide(7).end()
    page = one(run)
    parts = page["parts"]
    assert [(part["decides"], part["method"]) for part in parts["components"]] == [
        ("mix", "the mix"),
        ("weigh", "the weigh"),
        ("order", "the order"),
    ]
    assert page["method"] == "delta_loss, mix the mix, weigh the weigh, order the order"
    lines = run.ledger.segments()
    assert [entry["counts"] for entry in parts["mix"]] == [list(lines[k]["mix"]["counts"].values()) for k in lines]
    assert [entry["segment"] for entry in parts["trained"]] == [0, 1, 2, 3, 4, 5]
    assert parts["trained"][0]["losses"] == pytest.approx([2.9, 3.1])
    assert parts["trained"][0]["weights"]["max"] == 1.5
    assert all(line["kind"] != "trained" for line in page["lines"]), "these are pictures, no lines of the table"
    assert one(Run(tmp_path / "other").decide(2))["parts"] is None


def test_of_many_domains_those_with_the_most_rows_are_drawn(tmp_path: Path) -> None:
    names = [f"domain {number}" for number in range(40)]
    run = Run(tmp_path / "run", domains=names).decide(3)
    parts = one(run)["parts"]
    assert parts["num_domains"] == 40
    assert len(parts["domains"]) == 30
    drawn = {name for name, count in run.ledger.segments()[0]["mix"]["counts"].items() if count}
    assert 10 < len(drawn) < 30
    assert drawn < set(parts["domains"])
    assert parts["domains"] == [name for name in names if name in set(parts["domains"])], "in the run's order"
    assert all(len(entry["proportions"]) == 30 for entry in parts["mix"])


def test_draws_by_part_of_the_ranking_agree_with_a_count_row_by_row(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", num_rows=117).decide(3)
    decision = one(run)["decisions"][-1]
    line = run.ledger.segments()[decision["segment"]]
    ranks = run.ledger.signals_of(line)["rank"]
    expected = [0] * 40
    for row in run.ledger.rows_of(line):
        expected[int(ranks[row]) * 40 // 117] += 1
    assert decision["drawn"].astype(int).tolist() == expected
    assert decision["in_part"].sum() == 117


def test_the_density_counts_every_row_once_and_puts_improved_rows_below_the_diagonal(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(7)
    density = one(run)["decisions"][-1]["density"]
    cells = density["counts"].reshape(32, 32)  # current loss, first loss
    assert cells.sum() == 120
    assert np.tril(cells, -1).sum() > 0  # odd rows got worse
    assert np.triu(cells, 1).sum() > 0  # even rows improved


def test_how_often_rows_were_trained_and_draws_by_group_add_up(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(7).end()
    page = one(run)
    counts = np.zeros(120, dtype=int)
    guided = np.zeros(120, dtype=int)
    for line in run.ledger.segments().values():
        for row in run.ledger.rows_of(line):
            counts[row] += 1
            guided[row] += line["decision"] == "guided"
    np.testing.assert_array_equal(page["times"], counts)
    assert page["times_counts"] == np.bincount(counts).tolist()
    # Column "task"; "dataset" has one value only and sorts nothing.
    assert len(page["draws"]) == 1
    tasks = np.arange(120) % len(TASKS)
    np.testing.assert_array_equal(np.sum(page["draws"][0], axis=0), np.bincount(tasks, weights=counts))
    np.testing.assert_array_equal(page["guided_draws"][0], np.bincount(tasks, weights=guided))


def test_rows_are_given_with_first_and_last_loss_and_the_extreme_ones_with_their_text(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", num_rows=900).decide(7)
    page = one(run)
    lines = run.ledger.segments()
    first, last = (run.ledger.signals_of(lines[k])["loss"].astype(float) for k in (1, 6))
    np.testing.assert_allclose(page["first"], first, atol=6e-5)
    np.testing.assert_allclose(page["last"], last, atol=6e-5)
    for row in (np.argmax(first - last), np.argmin(first - last), np.argmax(page["times"])):
        assert page["texts"][str(row)] == f"question {row} → answer {row}"


def test_a_run_under_way_a_warm_up_alone_and_one_without_a_segment_have_a_page(tmp_path: Path) -> None:
    for number, decisions in enumerate((0, 1, 3)):
        run = Run(tmp_path / str(number)).decide(decisions)
        page = Page.read(write_report([run.output_dir], None)).runs[0]
        assert page["end_step"] is None
        assert page["summary"]["num_segments"] == decisions
        assert page["summary"]["recorded_steps"] == 5 * decisions


def test_a_line_cut_short_by_a_kill_does_not_count(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(3)
    with run.ledger.path.open("ab") as file:
        file.write(b'{"kind": "segm')
    assert one(run)["summary"]["num_segments"] == 3


def test_rolled_back_segments_stay_visible_and_are_not_counted(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(4)
    run.ledger.rollback(2, "resumed from step 10")
    page = one(run)
    kinds = [(line["kind"], line.get("in_force")) for line in page["lines"]]
    assert kinds == [("segment", True), ("segment", True), ("segment", False), ("segment", False), ("rollback", None)]
    assert page["summary"]["num_trained"] == 2 * 5 * BATCH
    assert [decision["segment"] for decision in page["decisions"]] == [1]


def test_a_run_that_ended_early_counts_only_what_it_trained(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(3).end(step=12)
    page = one(run)
    assert page["end_step"] == 12
    assert page["summary"]["num_trained"] == 12 * BATCH


@pytest.mark.parametrize("method", ["random", "loss"])
def test_methods_without_a_window_have_a_page(tmp_path: Path, method: str) -> None:
    page = one(Run(tmp_path / "run", method=method).decide(5).end())
    assert [d["ranking"] for d in page["decisions"]] == ([] if method == "random" else ["loss"] * 4)
    assert (page["first"] is None) == (method == "random")


def test_damaged_signals_are_told_on_the_page(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(4)
    run.ledger.array_path("signals", 2).write_bytes(b"not parquet")
    page = one(run)
    assert [decision["segment"] for decision in page["decisions"]] == [1, 3]
    assert any("000002.parquet" in problem for problem in page["problems"])


def test_a_missing_pool_file_is_told_on_the_page(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(2)
    (run.ledger.root / "rows.parquet").unlink()
    page = one(run)
    assert any("rows.parquet" in problem for problem in page["problems"])
    assert page["summary"]["num_rows"] == 120


def test_a_directory_without_a_record_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="holds no record of a run"):
        content(tmp_path)


def test_the_dataflex_folder_itself_may_be_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(2)
    assert content(run.ledger.root)[0]["path"] == str(run.output_dir)


def test_several_runs_are_told_apart_and_share_the_texts_of_their_pool(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name / "out", method=m).decide(3) for name, m in (("a", "delta_loss"), ("b", "random"))]
    page = Page.read(write_report([run.output_dir for run in runs], tmp_path / "both.html"))
    assert [run["name"] for run in page.runs] == ["a/out", "b/out"]
    assert [run["pool"] for run in page.runs] == [0, 0]
    assert len(page.pools) == 1


def test_groups_are_columns_of_few_values_and_an_empty_value_is_one(tmp_path: Path) -> None:
    columns = {
        "number": [float(row) for row in range(120)],
        "unique": [f"u{row}" for row in range(120)],
        "level": [row % 3 for row in range(120)],
        "source": [None if row % 2 else "web" for row in range(120)],
        "same": ["x"] * 120,
        "checked": [row % 4 == 0 for row in range(120)],
    }
    run = Run(tmp_path / "run", columns=columns).decide(1)
    page = Page.read(write_report([run.output_dir], None))
    groups = {groups["column"]: groups["labels"] for groups in page.pools[0]["groups"]}
    assert list(groups) == ["source", "level", "checked"]
    assert set(groups["source"]) == {"", "web"}
    assert groups["checked"] == ["false", "true"]


def test_a_pool_too_large_for_the_table_keeps_both_ends_of_every_order() -> None:
    rng = np.random.default_rng(0)
    total = Tally(rng.integers(0, 5, 1000), np.zeros(1000, dtype=np.int64))
    total.first_N, total.last_N = rng.random(1000), rng.random(1000)
    orders = extremes(total)
    rows = table_rows(total, orders, 100)
    assert len(rows) <= 100
    for order in orders:
        assert set(order[:25]) <= set(rows)
    np.testing.assert_array_equal(table_rows(total, orders, 1000), np.arange(1000))


def test_access_tokens_in_the_config_are_not_passed_on(tmp_path: Path) -> None:
    config = {"hub_token": "hf_secret", "nested": {"api_key": "s3cret"}, "score_batch_tokens": 512}
    text = one(Run(tmp_path / "run", config=config).decide(1))["config"]
    assert "hf_secret" not in text
    assert "s3cret" not in text
    assert "score_batch_tokens: 512" in text


# the trainer's losses


def mark(run: Run, folder: str, run_id: str) -> None:
    path = run.output_dir / folder / "dataflex_state.safetensors"
    save_file({"x": np.zeros(1)}, path, metadata={"dataflex": json.dumps({"run_id": run_id})})


def test_losses_come_from_the_trainer_and_the_later_entry_of_a_step_wins(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(7).end()
    run.log({5: 3.0, 10: 2.0}).log({10: 1.5, 15: float("nan")}).log({10: 2.5}, name="eval_loss")
    assert one(run)["losses"] == {"eval_loss": [[10, 2.5]], "loss": [[5, 3.0], [10, 1.5]]}


def test_a_run_under_way_shows_its_newest_own_checkpoint_and_what_was_logged_since(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(3)
    for folder, run_id, loss in (("checkpoint-10", "id of run", 2.0), ("checkpoint-90", "another", 9.0)):
        run.log({10: loss}, folder=folder)
        mark(run, folder, run_id)
    shutil.copytree(run.output_dir / "checkpoint-10", run.output_dir / "checkpoint-9")
    lines = [{"current_steps": 10, "loss": 7.0}, {"current_steps": 15, "loss": 1.25}]
    (run.output_dir / "trainer_log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"current_st')
    assert one(run)["losses"] == {"loss": [[10, 2.0], [15, 1.25]]}


def test_the_cost_is_that_of_the_whole_run_once_it_has_ended(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").decide(3)
    before = one(run)["summary"]
    assert (before["share_of_run"], before["choosing_seconds"]) == (0.4, 7.5), "as of the last decision"
    run.ledger.note({"kind": "end", "step": 15, "choosing": {"share_of_run": 0.25, "seconds": 8.5}})
    after = one(run)["summary"]
    assert (after["share_of_run"], after["choosing_seconds"]) == (0.25, 8.5)
