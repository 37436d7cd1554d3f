"""The table and the words, from runs with known numbers."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from scipy import stats

from dataflex.evaluate.compare import page, results


def run(loss, *, exact=0.25, steps=10, choosing=0.0):
    values = {"loss": loss, "exact_match": exact}
    return {
        **{"num_steps": steps, **values, "curve": {"5": {**values, "loss": loss + 1}, str(steps): values}},
        **{"choosing_flops": choosing, "training_flops": 100.0, "choosing_s": 1.0, "training_s": 2.0},
    }


LOSSES = {
    "static": [1.00, 1.10, 1.20],
    "random": [1.01, 1.09, 1.21],
    "length": [1.51, 1.60, 1.709],
    "delta_loss": [1.00, 1.30, 1.10],
}


@pytest.fixture
def runs():
    return {method: dict(enumerate(map(run, losses))) for method, losses in LOSSES.items()}


def content(section, seeds=(0, 1, 2), aim=None):
    start = {"loss": 2.0, "exact_match": 0.0, "num_rows": 9}
    budgets = {"steps": {"aim": aim or {"num_steps": 10}, **section}}
    return {
        "metric": "loss",
        "seeds": list(seeds),
        "start": start,
        "forwards_per_trained_token": 3.0,
        "budgets": budgets,
    }


def test_differences_are_those_of_the_paired_t_test(runs):
    found = {(d["method"], d["baseline"]): d for d in results.section(runs, "loss")["differences"]}
    pairs = [(m, b) for b in ("random", "static") for m in LOSSES if m != b and (m, b) != ("random", "static")]
    assert list(found) == pairs
    for (method, baseline), difference in found.items():
        theirs = stats.ttest_rel(LOSSES[method], LOSSES[baseline])
        low, high = theirs.confidence_interval(0.95)
        assert difference["mean"] == pytest.approx((low + high) / 2)
        assert difference["half_width"] == pytest.approx((high - low) / 2)
        assert difference["p"] == pytest.approx(theirs.pvalue)
        assert difference["p_holm"] >= difference["p"]


def test_the_sentence_says_what_the_interval_says(runs):
    found = {(d["method"], d["baseline"]): d for d in results.section(runs, "loss")["differences"]}
    worse, noise = found["length", "random"], found["delta_loss", "random"]
    assert "worse, distinguishable from noise" in worse["sentence"]
    assert "0.5030 higher" in worse["sentence"]
    assert "not distinguishable from noise" in noise["sentence"]
    assert f"more than about {noise['half_width']:.4f}" in noise["sentence"]


def test_higher_is_better_for_exact_match_and_worse_for_loss():
    interval = results.t_interval([0.100, 0.101, 0.102])
    assert "; worse, dist" in results.sentence("a", "random", interval, 0.001, 7, "loss")
    assert "; better, dist" in results.sentence("a", "random", interval, 0.001, 7, "exact_match")
    lone = results.sentence("a", "random", interval, 0.2, 7, "exact_match")
    assert "better if it were the only comparison" in lone
    assert "the 7 that are made (p 0.2 by Holm)" in lone


def test_a_failed_run_is_told_and_its_seed_is_paired_with_nothing(runs):
    runs["delta_loss"][2] = {"problem": "delta_loss, seed 2 failed (exit code 2): no | <b>disk</b>; the whole log: x"}
    runs["length"] = {seed: {"problem": "broken"} for seed in range(3)}
    section = results.section(runs, "loss")
    found = {(d["method"], d["baseline"]): d["num"] for d in section["differences"]}
    assert found == {("static", "random"): 3, ("delta_loss", "random"): 2, ("delta_loss", "static"): 2}
    text = page.markdown(content(section))
    assert "| delta_loss (1 failed) |" in text
    assert "| length | failed |" in text
    assert "no | <b>disk</b>" in text
    assert "<b>disk</b>" not in page.html(content(section))


def test_one_row_more_in_every_seed_is_not_told_from_noise(runs):
    exact = {"static": [0.1, 0.2, 0.3], "random": [0.1, 0.2, 0.3], "length": [0.1025, 0.2025, 0.3025]}
    found = results.section(
        {m: {i: run(1.0, exact=v) for i, v in enumerate(x)} for m, x in exact.items()}, "exact_match"
    )
    said = {(d["method"], d["baseline"]): d["sentence"] for d in found["differences"]}
    assert said["length", "random"] == (
        "length against random: exact match 0.0025 higher in each of 3 seeds; they show no spread, hence nothing "
        "can be said of noise."
    )
    assert said["static", "random"].startswith("static against random: the same exact match in each of 3 seeds;")
    assert all(d["p_holm"] is None for d in found["differences"])
    assert "nothing can be told from noise" in page.markdown(content(found))
    json.dumps(found, allow_nan=False)


def test_one_seed_is_said_to_show_nothing(runs):
    one = {method: {0: seeds[0]} for method, seeds in runs.items()}
    section = results.section(one, "loss")
    text = page.markdown(content(section, seeds=[0]))
    assert "With 1 seed nothing can be told from noise" in text
    assert "±" not in text.split("|", 1)[1]
    json.dumps(section, allow_nan=False)


def test_the_caution_states_the_smallest_difference_that_would_have_been_seen(runs):
    section = results.section(runs, "loss")
    widths = [d["half_width"] for d in section["differences"]]
    text = page.markdown(content(section))
    assert "3 seeds see only large effects: the smallest difference" in text
    assert f"between {min(widths):.4f} and {max(widths):.4f}" in text
    assert "5 comparisons are made" in text


def test_the_table_holds_means_and_half_widths(runs):
    section = results.section(runs, "loss")
    half = section["methods"]["length"]["loss"]["half_width"]
    expected = stats.t.ppf(0.975, 2) * stats.sem(LOSSES["length"])
    assert half == pytest.approx(expected)
    assert f"| length | 10 | {sum(LOSSES['length']) / 3:.4f} ± {half:.4f} | 0.2500 |" in page.markdown(content(section))


def test_the_spend_stands_beside_the_aim(runs):
    runs["delta_loss"] = {seed: run(1.0, choosing=75.0) for seed in range(3)}
    section = results.section(runs, "loss")
    text = page.markdown(content(section, aim={"flops": 200.0, "num_steps": dict.fromkeys(LOSSES, 10)}))
    assert re.search(r"\| delta_loss .* 87.5% of the aim \|", text)
    assert re.search(r"\| random .* 50.0% of the aim \|", text)


def test_the_curves_begin_at_the_common_start_and_have_means_of_the_seeds(runs):
    found = page.curves(content(results.section(runs, "loss")), results.section(runs, "loss"))["data"]["values"]
    at = {(v["method"], v["step"]): v["value"] for v in found}
    assert at["random", 0] == at["length", 0] == 2.0
    assert at["length", 10] == pytest.approx(sum(LOSSES["length"]) / 3)
    assert at["length", 5] == pytest.approx(1 + sum(LOSSES["length"]) / 3)
    assert not any(math.isnan(v["low"]) for v in found)


def test_bars_at_the_same_step_do_not_hide_each_other(runs):
    section = results.section(runs, "loss")
    values = page.curves(content(section), section)["data"]["values"]
    for step in (5, 10):
        places = [v["at"] for v in values if v["step"] == step]
        assert len(set(places)) == len(LOSSES)
        assert all(abs(place - step) < 0.2 for place in places)


def test_a_problem_is_told_once(runs):
    problem = "length, seed 0 failed (exit code 2): the disk is full; the whole log: x"
    runs["length"][0] = {"problem": problem}
    text = page.markdown(content(results.section(runs, "loss")))
    assert text.count("length, seed 0") == 1
    assert f"- {problem}." in text


def test_a_comparison_in_which_everything_failed_is_written_all_the_same(runs):
    section = results.section({m: {s: {"problem": f"{m} failed"} for s in range(3)} for m in runs}, "loss")
    assert "| length | failed |" in page.markdown(content(section))
    assert "length failed." in page.html(content(section))


def test_the_page_runs_nothing_and_asks_nobody(runs):
    text = page.html(content(results.section(runs, "loss")))

    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attrs):
            self.found.append((tag, dict(attrs)))

    tags = Tags()
    tags.feed(text)
    names = {tag for tag, _ in tags.found}
    assert {"svg", "table"} <= names
    assert not names & {"script", "link", "iframe", "img", "image", "object"}
    assert not any(k in ("src", "href", "xlink:href") or k.startswith("on") for _, attrs in tags.found for k in attrs)
    assert "length − random" in text


def test_a_run_that_diverged_is_no_result(runs):
    from dataflex.core.errors import DataFlexError
    from dataflex.evaluate.compare.costs import Cost

    cost = Cost(num_steps=8, trained_tokens=9, scored_tokens=0, num_passes=0, choosing_s=0.0, training_s=1.0)
    values = {"loss": 1.0, "exact_match": 0.5, "num_weights": 10}
    curve = {4: {**values, "loss": math.nan}, 8: values}
    record = results.run_record(num_steps=8, curve=curve, cost=cost, forwards=3.0)
    assert list(record["curve"]) == ["8"]  # the step before, where it was nothing, is not drawn
    for bad in (math.nan, math.inf):
        with pytest.raises(DataFlexError, match="the run diverged, its held-out loss is"):
            results.run_record(num_steps=8, curve={8: {**values, "loss": bad}}, cost=cost, forwards=3.0)


def test_the_caution_counts_the_seeds_that_pairs_have(runs):
    for method in runs:
        runs[method][2] = {"problem": f"{method} failed"}
    text = page.markdown(content(results.section(runs, "loss")))
    assert "2 seeds see only large effects" in text


def test_what_is_known_of_the_held_out_rows_is_said(runs):
    whole = content(results.section(runs, "loss"))
    assert "rows of the pool" not in page.markdown(whole)
    whole["start"] |= {"num_trained": 4, "num_cut": 0}
    assert "4 of the held-out rows are rows of the pool as well." in page.markdown(whole)
    assert "cutoff_len" not in page.markdown(whole)
