"""Selection by embeddings in a plain Trainer: vectors as loops make them, kept, resumed, audited; limited passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_plain_trainer import NUM_ROWS, make_model, make_rows
from test_targets import SCHEDULE, lora, make_trainer, target_rows, train_until

from dataflex import ClusterLess, Near, Tsds
from dataflex.core.errors import ConfigError
from dataflex.ledger.audit import audit
from dataflex.ledger.ledger import Ledger
from dataflex.train.mixin import Options
from dataflex.train.rederive import rederive


def by_loop(model: Any, rows: list[dict[str, Any]], pooling: str) -> np.ndarray:
    """A row at a time, no padding, a token at a time."""
    model.eval()
    found = []
    for row in rows:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True)
        states = output.hidden_states[-1][0].double().numpy()
        if pooling == "last":
            vector = states[-1]
        else:
            vector = sum((t + 1 if pooling == "position" else 1) * state for t, state in enumerate(states))
        found.append(vector / np.linalg.norm(vector))
    return np.array(found)


def embeddings_of(folder: Path, line: dict[str, Any]) -> np.ndarray:
    return np.load(line["scoring"]["files"]["embeddings"])


@pytest.mark.parametrize("pooling", ["position", "mean", "last"])
@pytest.mark.parametrize("adapted", [True, False], ids=["lora", "full"])
def test_vectors_are_those_of_a_loop_over_rows_of_the_model_without_adapter(
    tmp_path: Path, pooling: Any, adapted: bool
) -> None:
    model = lora() if adapted else make_model()
    schedule = SCHEDULE if adapted else type(SCHEDULE)(update_step=2, update_times=2)
    trainer = make_trainer(tmp_path, Near(pooling=pooling), target=target_rows(), model=model, schedule=schedule)
    base = make_model()  # as it is before any step: what an adapter leaves as it is
    trainer.train()
    ledger = Ledger(tmp_path)
    line = next(line for _, line in sorted(ledger.segments().items()) if line["decision"] == "guided")
    files = line["scoring"]["files"]
    np.testing.assert_allclose(np.load(files["embeddings"]), by_loop(base, make_rows(), pooling), atol=1e-5)
    wanted = by_loop(base, list(target_rows()), pooling)
    np.testing.assert_allclose(np.load(files["target_embeddings"]), wanted, atol=1e-5)
    assert line["scoring"]["num_rows"] == NUM_ROWS + len(wanted)


@pytest.mark.parametrize(
    "selector",
    [Near(), Near(walk="round_robin"), Tsds(max_K=9), Tsds(draw="multinomial"), ClusterLess(cluster_size=4)],
    ids=repr,
)
def test_a_run_resumes_bitwise_without_embedding_again_and_audits(
    tmp_path: Path, selector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, **more: Any) -> Any:
        return make_trainer(
            tmp_path / folder, selector, target=target_rows(), save_strategy="steps", save_steps=1, **more
        )

    whole = run("whole")
    whole.train()

    train_until(run("killed"), 5)
    resumed = run("killed")
    embeds: list[int] = []
    from dataflex.signals.embedding import HiddenStates

    measure = HiddenStates.measure
    monkeypatch.setattr(HiddenStates, "measure", lambda *a: embeds.append(1) or measure(*a))
    resumed.train(resume_from_checkpoint=True)
    assert not embeds
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    for index, line in Ledger(tmp_path / "whole").segments().items():
        assert line["sha256"] == Ledger(tmp_path / "killed").segments()[index]["sha256"], index
    assert rederive(audit(Ledger(tmp_path / "killed")), resumed._dataflex.method) == []


def test_a_pass_that_is_killed_goes_on_after_its_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflex.signals.embedding import HiddenStates

    monkeypatch.setattr("dataflex.signals.collect.BLOCK_ROWS", 5)
    measured: list[int] = []
    measure = HiddenStates.measure

    def counted(self: Any, batch: Any) -> torch.Tensor:
        if len(measured) >= 12 and die:
            raise KeyboardInterrupt
        measured.extend([1] * len(batch[0]))
        return measure(self, batch)

    monkeypatch.setattr(HiddenStates, "measure", counted)

    def run(folder: str, cache: str) -> Any:
        selector = Near(cache_dir=str(tmp_path / cache))
        return make_trainer(tmp_path / folder, selector, target=target_rows(), options=Options(score_batch_tokens=64))

    die = True
    with pytest.raises(KeyboardInterrupt):
        run("killed", "cache").train()
    before = len(measured)
    die = False
    run("again", "cache").train()
    assert len(measured) <= NUM_ROWS + 7 + 5, (
        "nothing that was finished is measured again, but for the block in progress"
    )
    assert len(measured) > before
    measured.clear()
    run("third", "cache").train()
    assert not measured, "other runs of the same model and data are served"
    run("apart", "elsewhere").train()
    (one,), (other,) = (
        [path for path in (tmp_path / name).rglob("embeddings.npy") if len(np.load(path)) == NUM_ROWS]
        for name in ("cache", "elsewhere")
    )
    assert np.array_equal(np.load(one), np.load(other))


def test_representatives_alone_have_gradients_and_decide(tmp_path: Path) -> None:
    selector = ClusterLess(cluster_size=5, representatives=1)
    make_trainer(tmp_path, selector, target=target_rows()).train()
    ledger = Ledger(tmp_path)
    guided = [line for _, line in sorted(ledger.segments().items()) if line["decision"] == "guided"]
    for number, line in enumerate(guided):
        columns = ledger.signals_of(line)
        num_clusters = len(np.unique(columns["cluster"]))
        assert np.isfinite(columns["similarity_0"]).sum() <= num_clusters
        embedded = NUM_ROWS * (number == 0)
        assert line["scoring"]["num_rows"] == np.isfinite(columns["similarity_0"]).sum() + embedded
        # The best cluster's rows are all taken before any of another.
        means = {
            c: np.nanmean(columns["score"][columns["cluster"] == c])
            for c in np.unique(columns["cluster"])
            if np.isfinite(columns["score"][columns["cluster"] == c]).any()
        }
        chosen = columns["cluster"][ledger.rows_of(line)]
        best = max(means, key=lambda c: means[c])
        assert (chosen == best).sum() == min(line["num_rows"], ((columns["cluster"] == best) & _trainable()).sum())


def _trainable() -> np.ndarray:
    return np.array([any(label != -100 for label in row["labels"][1:]) for row in make_rows()])


def test_all_rows_as_representatives_of_clusters_of_one_is_less(tmp_path: Path) -> None:
    from dataflex import Less

    chosen = []
    for name, selector in (("less", Less()), ("clusters", ClusterLess(cluster_size=1))):
        make_trainer(tmp_path / name, selector, target=target_rows()).train()
        ledger = Ledger(tmp_path / name)
        chosen.append([sorted(ledger.rows_of(line).tolist()) for _, line in sorted(ledger.segments().items())])
    assert chosen[0] == chosen[1]


def test_near_needs_a_target_and_neighbours_from_a_file_need_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="near chooses what serves a target, and none is named"):
        make_trainer(tmp_path / "a", Near())
    np.save(tmp_path / "indices.npy", np.array([[3, 4, 5, 6], [7, 8, 10, 11]]))
    make_trainer(tmp_path / "b", Near(indices_path=str(tmp_path / "indices.npy"))).train()
    ledger = Ledger(tmp_path / "b")
    line = ledger.segments()[1]
    assert sorted(ledger.rows_of(line).tolist()) == [3, 4, 5, 6, 7, 8, 10, 11]
    np.save(tmp_path / "indices.npy", np.array([[3, 400]]))
    with pytest.raises(ConfigError, match="names row 400, but the training set has rows 0 to 30"):
        make_trainer(tmp_path / "c", Near(indices_path=str(tmp_path / "indices.npy"))).train()


def test_a_sentence_encoder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    trainer = make_trainer(tmp_path, Near(encoder=str(tmp_path / "nothing")), target=target_rows())
    with pytest.raises(ConfigError, match=r"encoder .* cannot be loaded"):
        trainer.train()


def test_without_sentence_transformers_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    trainer = make_trainer(tmp_path, Near(encoder="some/encoder"), target=target_rows())
    with pytest.raises(ConfigError, match=r"needs sentence-transformers.*dataflex\[embed\].*encoder: self"):
        trainer.train()


def test_a_sentence_encoder_reads_the_rows_as_texts(tmp_path: Path) -> None:
    """A tiny BERT under sentence-transformers; whatever it pools, the vectors are those of its own ``encode``."""
    library: Any = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "encoder"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)

    class Words:
        def batch_decode(self, ids: list[list[int]], skip_special_tokens: bool) -> list[str]:
            assert skip_special_tokens
            return [" ".join(f"w{i}" for i in row) for row in ids]

    trainer = make_trainer(tmp_path / "run", Near(encoder=str(folder)), target=target_rows())
    trainer.processing_class = Words()
    trainer.train()
    ledger = Ledger(tmp_path / "run")
    line = next(line for _, line in sorted(ledger.segments().items()) if line["decision"] == "guided")
    found = np.load(line["scoring"]["files"]["embeddings"])
    per_layer = 4 * 16 * 16 + 2 * 16 * 20  # its own weights are what the pass is counted with
    assert line["scoring"]["other_macs"] == (per_layer + 16 * 16) * line["scoring"]["other_tokens"]
    texts = Words().batch_decode([row["input_ids"] for row in make_rows()], skip_special_tokens=True)
    wanted = library.SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
