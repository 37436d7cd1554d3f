"""Similarities to groups of targets: closed forms, brute force, a killed pass, two ranks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradient_reference import lengths, looped_gradients, source_of
from tiny_models import NEVER_SCORED, Row, make_model, make_rows
from torch import nn

from dataflex.core.errors import ConfigError
from dataflex.signals.collect import Place
from dataflex.signals.gradient.capture import Captured
from dataflex.signals.gradient.engines import Exact, Ghost, inner_products, pair_products
from dataflex.signals.gradient.factorised import Factorised
from dataflex.signals.gradient.moments import Adam, Moments, adam_of
from dataflex.signals.gradient.similarity import (
    Similarities,
    factorised_similarities,
    pass_key,
    similarities,
    target_groups,
)
from dataflex.signals.gradient.targets import TargetGroups, squared_norms
from dataflex.signals.gradient.weights import Weight, Weights, trainable_weights
from dataflex.signals.sweep import Collective

POOL = make_rows(0)
TARGETS = [row for number, row in enumerate(make_rows(7)) if number not in NEVER_SCORED][:6]
GROUPS = np.array([0, 1, 0, 2, 1, 0])
CPU = torch.device("cpu")


def trained(name: str = "lora", kind: type = torch.optim.AdamW) -> tuple[nn.Module, Any]:
    """A model after three steps, and its optimizer."""
    model = make_model(name)
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for row in POOL[:2] + POOL[3:4]:
        inputs = {key: torch.tensor([values]) for key, values in row.items()}
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def targets_of(model: nn.Module, weights: Weights) -> TargetGroups:
    return target_groups(source_of(model, TARGETS), weights, lengths(TARGETS), GROUPS, device=CPU, batch_tokens=128)


def measured(
    model: nn.Module, adam: Adam | None, folder: Path, *, rows: list[Row] = POOL, engine: str = "exact", **options: Any
) -> Similarities:
    weights = trainable_weights(model)
    options = {"ranks": Collective(device=CPU), "batch_tokens": 128, **options}
    measure = factorised_similarities if engine == "factorised" else similarities
    if engine == "ghost":
        options["engine"] = "ghost"
    return measure(
        source_of(model, rows),
        weights,
        targets_of(model, weights),
        adam,
        lengths(rows),
        np.arange(len(rows)),
        place=Place(directory=folder, key=pass_key(model, weights, adam)),
        **options,
    )


def flat(gradients: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([gradients[name].double().flatten().numpy() for name in gradients])


def brute_force(model: nn.Module, optimizer: Any | None) -> np.ndarray:
    """The mean over each group of the cosines of Adam updates with target gradients, rows and targets one by one."""
    weights = trainable_weights(model)
    pool, targets = looped_gradients(model, POOL, weights), looped_gradients(model, TARGETS, weights)
    wanted = np.full((len(POOL), 3), np.nan)
    for row, gradients in pool.items():
        u = flat(gradients)
        if optimizer is not None:
            beta1, beta2 = optimizer.param_groups[0]["betas"]
            state = [optimizer.state[weight.parameter] for weight in weights.included]
            m = np.concatenate([s["exp_avg"].double().flatten().numpy() for s in state])
            v = np.concatenate([s["exp_avg_sq"].double().flatten().numpy() for s in state])
            u = (beta1 * m + (1 - beta1) * u) / np.sqrt(beta2 * v + (1 - beta2) * u**2 + 1e-8)
        cosines_M = [u @ q / np.linalg.norm(u) / np.linalg.norm(q) for q in map(flat, targets.values())]
        wanted[row] = [np.mean(np.array(cosines_M)[group == GROUPS]) for group in range(3)]
    return wanted


@pytest.mark.parametrize("name", ["lora", "llama", "gpt2"])
@pytest.mark.parametrize("preconditioned", [True, False], ids=["adam", "plain"])
def test_exact_is_the_mean_cosine_of_brute_force(name: str, preconditioned: bool, tmp_path: Path) -> None:
    model, optimizer = trained(name)
    adam = adam_of(optimizer, model, trainable_weights(model)) if preconditioned else None
    found = measured(model, adam, tmp_path / "rows")
    wanted = brute_force(model, optimizer if preconditioned else None)
    np.testing.assert_allclose(found.similarities_NxG, wanted, atol=2e-5)
    assert np.isnan(found.similarities_NxG[list(NEVER_SCORED)]).all()
    assert found.normalised


def test_ghost_is_exact_without_materialising(tmp_path: Path) -> None:
    for name in ("lora", "gpt2"):
        model, _ = trained(name)
        exact = measured(model, None, tmp_path / name / "exact")
        ghost = measured(model, None, tmp_path / name / "ghost", engine="ghost")
        np.testing.assert_allclose(ghost.similarities_NxG, exact.similarities_NxG, atol=1e-5)
        np.testing.assert_allclose(ghost.norms_N, exact.norms_N, rtol=1e-4)


def test_ghost_and_factorised_apply_the_frozen_diagonal_of_adam_and_say_that_it_is_no_cosine(tmp_path: Path) -> None:
    model, optimizer = trained()
    weights = trainable_weights(model)
    adam = adam_of(optimizer, model, weights)
    ghost = measured(model, adam, tmp_path / "ghost", engine="ghost")
    whole = measured(model, adam, tmp_path / "factorised", engine="factorised", rank=64)
    assert not ghost.normalised
    assert not whole.normalised
    vectors = targets_of(model, weights).vectors
    for row, gradients in looped_gradients(model, POOL, weights).items():
        wanted = np.zeros(3)
        for weight in weights.included:
            state = optimizer.state[weight.parameter]
            update = (0.9 * state["exp_avg"] + 0.1 * gradients[weight.name]) / (state["exp_avg_sq"] + 1e-8).sqrt()
            wanted += (vectors[weight.name] * update).flatten(1).double().sum(1).numpy()
        np.testing.assert_allclose(ghost.similarities_NxG[row], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
        np.testing.assert_allclose(whole.similarities_NxG[row], wanted, rtol=5e-3, atol=5e-3 * np.abs(wanted).max())


def test_factorised_ranks_as_exact_does(tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    model, _ = trained("lora")
    exact = measured(model, None, tmp_path / "exact").similarities_NxG
    scored = np.isfinite(exact).all(axis=1)
    close = []
    for rank in (4, 16, 32):
        found = measured(model, None, tmp_path / str(rank), engine="factorised", rank=rank).similarities_NxG
        assert np.array_equal(np.isfinite(found).all(axis=1), scored)
        close.append(spearmanr(found[scored].ravel(), exact[scored].ravel()).statistic)
    assert close[-1] > 0.9, close
    assert close[0] < close[-1]


def captured(
    a: list, e: list, *, name: str = "w", input_first: bool = False, module: nn.Module | None = None
) -> Captured:
    inputs, outputs = torch.tensor(a, dtype=torch.float32), torch.tensor(e, dtype=torch.float32)
    shape = (inputs.shape[-1], outputs.shape[-1]) if input_first else (outputs.shape[-1], inputs.shape[-1])
    weight = Weight(name=name, parameter=nn.Parameter(torch.zeros(shape)), modules=(), input_first=input_first)
    return Captured(weight=weight, inputs_RxLxI=inputs, output_gradients_RxLxO=outputs)


def test_golden_ghost_products_and_the_kronecker_identity() -> None:
    one = captured([[[1, 2, 0], [0, 1, -1]]], [[[1, 0], [0.5, -1]]])
    two = captured([[[2, 0, 1], [1, 1, 1]]], [[[0, 1], [1, 1]]])
    assert one.gradients()[0].tolist() == [[1, 2.5, -0.5], [0, -1, 1]]
    assert pair_products(one, two).item() == 4
    assert inner_products(one, two.gradients()[0]).item() == 4
    weights = Weights(included=(one.weight,), left_out=())
    factorised = Factorised(weights, rank=2)
    root = 2**0.5
    factorised._sides = {"w": (torch.tensor([[1.0, 1.0]]) / root, torch.tensor([[1.0, 0, 1], [0, 1, -1]]) / root)}
    factorised.num_columns = 2
    factorised.begin(np.array([0]), CPU)
    factorised.take(one)
    assert factorised.finish()[0].tolist() == pytest.approx([0.75, 0.5])


def test_products_and_norms_of_both_layouts_are_those_of_materialised_gradients() -> None:
    rng = np.random.default_rng(0)
    for num_positions in (3, 40):  # norms by pairs of positions, and from the gradient itself
        a, e = rng.standard_normal((4, num_positions, 7)), rng.standard_normal((4, num_positions, 5))
        for input_first in (False, True):
            rows = captured(a.tolist(), e.tolist(), input_first=input_first)
            vector = torch.tensor(rng.standard_normal(rows.weight.parameter.shape), dtype=torch.float32)
            by_hand = rows.gradients()
            assert by_hand.shape[1:] == rows.weight.parameter.shape
            torch.testing.assert_close(squared_norms(rows), by_hand.double().square().sum((1, 2)), rtol=1e-4, atol=1e-4)
            products = (by_hand * vector).double().sum((1, 2))
            torch.testing.assert_close(inner_products(rows, vector), products, rtol=1e-4, atol=1e-4)
            weighted = rows.weighted_sum(torch.tensor([1.0, -2.0, 0.5, 0.0]))
            torch.testing.assert_close(weighted, by_hand[0] - 2 * by_hand[1] + 0.5 * by_hand[2], rtol=1e-4, atol=1e-4)


def test_norms_and_products_of_large_weights_lose_no_digits_to_summation() -> None:
    generator = torch.Generator().manual_seed(0)
    a, e = (torch.randn(1, 3, width, generator=generator) for width in (3000, 1500))
    weight = Weight(name="w", parameter=nn.Parameter(torch.zeros(1500, 3000)), modules=(), input_first=False)
    rows = Captured(weight=weight, inputs_RxLxI=a, output_gradients_RxLxO=e)
    targets = TargetGroups(vectors={"w": rows.gradients()}, num_groups=1, norms_M=np.ones(1))
    engine = Exact(targets, None)
    engine.begin(np.array([0]), CPU)
    engine.take(rows)
    product, _, norm = engine.finish()[0].tolist()
    wanted = rows.gradients().double().square().sum().item()
    assert norm == pytest.approx(wanted**0.5, rel=1e-5)
    assert product == pytest.approx(wanted, rel=1e-4)
    assert squared_norms(rows).item() == pytest.approx(wanted, rel=1e-5)


def test_projections_are_unbiased_and_no_two_weights_share_one() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((2, 1, 6, 30))
    e_left, e_right = rng.standard_normal((2, 1, 6, 24))
    one, two = (
        captured(left[None, 0].tolist(), e_left[None, 0].tolist()),
        captured(right[None, 0].tolist(), e_right[None, 0].tolist()),
    )
    wanted = pair_products(one, two).item()
    found = []
    for seed in range(600):
        engine = Factorised(Weights(included=(one.weight,), left_out=()), rank=8, seed=seed)
        features = []
        for rows in (one, two):
            engine.begin(np.array([0]), CPU)
            engine.take(rows)
            features.append(engine.finish()[0].numpy())
        found.append(features[0] @ features[1])
    assert abs(np.mean(found) - wanted) < 4 * np.std(found) / len(found) ** 0.5
    assert np.std(found) / len(found) ** 0.5 < 0.1 * np.linalg.norm(one.gradients()) * np.linalg.norm(two.gradients())
    named = [Weight(name=n, parameter=one.weight.parameter, modules=(), input_first=False) for n in ("p", "q")]
    sides = Factorised(Weights(included=tuple(named), left_out=()), rank=8)._sides
    assert sides["p"][1] is not None
    assert not torch.equal(sides["p"][1], sides["q"][1])


def test_golden_trace_of_less() -> None:
    gradients = torch.tensor([[1, 0, 0.5], [0, 2, -1], [-1, 1, 0], [0.5, 0.5, 0.5], [2, -1, 1]])
    m, v = torch.tensor([[0.1, 0, -0.05]]), torch.tensor([[0.04, 0.01, 0.02]])
    moments = Moments(m=m, v=v, beta1=0.9, beta2=0.999, step=3)
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, -1, 1]])
    unit = targets / targets.norm(dim=1, keepdim=True)
    vectors = torch.stack([unit[0], unit[1:].mean(0)])[:, None]
    rows = captured(gradients[:, None].tolist(), [[[1.0]]] * 5)
    engine = Exact(TargetGroups(vectors={"w": vectors}, num_groups=2, norms_M=np.ones(3)), Adam(moments={"w": moments}))
    engine.begin(np.arange(5), CPU)
    engine.take(rows)
    values = engine.finish()
    products, norms = values[:, :2], values[:, 2:3]
    wanted = [
        [0.9993, 0.026459],
        [0.223332, -0.351133],
        [-0.049075, -0.223585],
        [0.815574, 0.029037],
        [0.802963, 0.155873],
    ]
    np.testing.assert_allclose((products / norms).numpy(), wanted, atol=1e-4)
    np.testing.assert_allclose(values[:, 3].numpy(), gradients.norm(dim=1).numpy(), rtol=1e-5)


def test_bias_correction_gives_adams_own_next_step() -> None:
    parameter = nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]]))
    optimizer = torch.optim.AdamW([parameter], lr=0.5, weight_decay=0.0, eps=1e-12)
    for gradient in ([0.1, -0.2, 0.3], [0.4, 0.1, -0.3]):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    model = nn.Module()
    model.layer = nn.Linear(3, 1, bias=False)
    model.layer.weight = parameter
    adam = adam_of(optimizer, model, trainable_weights(model), bias_correction=True)
    raw = adam_of(optimizer, model, trainable_weights(model))
    new = torch.tensor([[[0.2, 0.5, -0.1]]])
    ours, plain = adam.update("layer.weight", new.clone())[0], raw.update("layer.weight", new.clone())[0]
    before = parameter.detach().clone()
    parameter.grad = new[0]
    optimizer.step()
    torch.testing.assert_close(ours, (before - parameter.detach()) / 0.5, rtol=1e-3, atol=1e-5)
    assert torch.cosine_similarity(ours, plain).item() == pytest.approx(1.0, abs=1e-4)
    assert not torch.allclose(ours, plain, rtol=1e-2)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad])
def test_other_optimizers_are_refused(kind: type) -> None:
    model = make_model("lora")
    with pytest.raises(ConfigError, match=rf"{kind.__name__}.*gradient_type: sgd"):
        adam_of(kind(model.parameters(), lr=0.1), model, trainable_weights(model))


def test_moments_before_the_first_step_and_of_parameters_not_held_are_refused() -> None:
    model = make_model("lora")
    weights = trainable_weights(model)
    with pytest.raises(ConfigError, match=r"no step yet.*warmup_step"):
        adam_of(torch.optim.AdamW([w.parameter for w in weights.included]), model, weights)
    with pytest.raises(ConfigError, match="does not hold"):
        adam_of(torch.optim.AdamW([nn.Parameter(torch.zeros(2))]), model, weights)


def test_moments_are_those_of_the_named_parameter_in_any_order_of_the_optimizer() -> None:
    model = make_model("lora")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": parameters[::-2]}, {"params": parameters[-2::-2], "betas": (0.5, 0.6)}])
    model(**{key: torch.tensor([values]) for key, values in POOL[1].items()}).loss.backward()
    optimizer.step()
    adam = adam_of(type("Wrapper", (), {"optimizer": optimizer})(), model, trainable_weights(model))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            beta1 = adam.moments[name].beta1
            torch.testing.assert_close(adam.moments[name].m, (1 - beta1) * parameter.grad)
    assert {moments.beta2 for moments in adam.moments.values()} == {0.999, 0.6}


def test_targets_without_gradient_and_groups_without_rows_are_refused() -> None:
    model = make_model("lora")
    weights = trainable_weights(model)
    for rows, groups, said in [
        (POOL[:4], np.zeros(4, int), r"1 of 4 target samples .* row 2"),
        (TARGETS[:2], np.array([0, 2]), r"groups \[1\]"),
        ([], np.zeros(0, int), "no target"),
    ]:
        with pytest.raises(ConfigError, match=said):
            target_groups(source_of(model, rows), weights, lengths(rows), groups, device=CPU, batch_tokens=64)


def test_the_order_of_targets_within_a_group_and_the_batch_size_change_nothing() -> None:
    model, _ = trained()
    weights = trainable_weights(model)
    one = targets_of(model, weights)
    mixed = np.random.default_rng(0).permutation(len(TARGETS))
    rows = [TARGETS[number] for number in mixed]
    two = target_groups(source_of(model, rows), weights, lengths(rows), GROUPS[mixed], device=CPU, batch_tokens=1)
    for name, vectors in one.vectors.items():
        torch.testing.assert_close(two.vectors[name], vectors, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(two.norms_M, one.norms_M[mixed], rtol=1e-4)


class KilledError(Exception):
    """As good as a kill: nothing after it runs."""


@pytest.mark.parametrize("engine", ["exact", "factorised"])
def test_a_killed_pass_goes_on_and_gives_the_same(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.signals.collect.BLOCK_ROWS", 4)
    model, optimizer = trained()
    adam = adam_of(optimizer, model, trainable_weights(model)) if engine == "exact" else None
    whole = measured(model, adam, tmp_path / "whole", engine=engine, batch_tokens=None)
    assert whole.cost["num_rows"] == len(POOL)
    tokens = 0

    def kill(num_tokens: int) -> None:
        nonlocal tokens
        tokens += num_tokens
        if tokens > int(np.sort(lengths(POOL))[-6:].sum()):
            raise KilledError

    with pytest.raises(KilledError):
        measured(model, adam, tmp_path / "killed", engine=engine, batch_tokens=None, advance=kill)
    with open(tmp_path / "killed" / "blocks.jsonl", "a") as file:
        file.write('{"rows": "cut sho')
    again = measured(model, adam, tmp_path / "killed", engine=engine, batch_tokens=None)
    assert again.cost["num_rows_kept"] >= 4
    assert again.cost["num_rows"] == len(POOL) - again.cost["num_rows_kept"]
    assert np.array_equal(again.similarities_NxG, whole.similarities_NxG, equal_nan=True)
    done = measured(model, adam, tmp_path / "killed", engine=engine)
    assert done.cost["num_rows"] == 0
    assert np.array_equal(done.similarities_NxG, whole.similarities_NxG, equal_nan=True)


def test_rows_of_other_weights_or_moments_and_damaged_rows_are_measured_anew(tmp_path: Path) -> None:
    model, optimizer = trained()
    weights = trainable_weights(model)
    first = measured(model, adam_of(optimizer, model, weights), tmp_path / "rows")
    state = optimizer.state[weights.included[0].parameter]
    state["exp_avg"] += 0.1
    other = measured(model, adam_of(optimizer, model, weights), tmp_path / "rows")
    assert other.cost["num_rows"] == len(POOL)
    assert not np.array_equal(other.similarities_NxG, first.similarities_NxG, equal_nan=True)
    array = np.load(tmp_path / "rows" / "similarities.npy", mmap_mode="r+")
    array[4] += 1
    array.flush()
    mended = measured(model, adam_of(optimizer, model, weights), tmp_path / "rows")
    assert mended.cost["num_rows"] == len(POOL)
    np.testing.assert_allclose(mended.similarities_NxG, other.similarities_NxG, rtol=1e-6)
    with torch.no_grad():
        weights.included[0].parameter.add_(0.1)
    assert measured(model, adam_of(optimizer, model, weights), tmp_path / "rows").cost["num_rows"] == len(POOL)


def test_features_serve_other_targets(tmp_path: Path) -> None:
    model, _ = trained()
    weights = trainable_weights(model)
    measured(model, None, tmp_path / "features", engine="factorised")
    vectors = {name: -value for name, value in targets_of(model, weights).vectors.items()}
    found = factorised_similarities(
        source_of(model, POOL),
        weights,
        TargetGroups(vectors=vectors, num_groups=3, norms_M=np.ones(6)),
        None,
        lengths(POOL),
        np.arange(len(POOL)),
        ranks=Collective(device=CPU),
        place=Place(directory=tmp_path / "features", key=pass_key(model, weights, None)),
    )
    assert found.cost["num_rows"] == 0
    before = measured(model, None, tmp_path / "features", engine="factorised").similarities_NxG
    np.testing.assert_allclose(found.similarities_NxG, -before, atol=1e-5)


@pytest.mark.long
def test_memory_does_not_grow_with_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.signals.collect.BLOCK_ROWS", 16)
    model, optimizer = trained()
    adam = adam_of(optimizer, model, trainable_weights(model))
    rows = [POOL[1]] * 64
    held: list[int] = []

    def look(num_tokens: int) -> None:
        gc.collect()
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in gc.get_objects()
            if type(tensor) in (torch.Tensor, nn.Parameter)  # no tensors of a compiler, which have no storage
        }
        held.append(sum(storages.values()))

    measured(model, adam, tmp_path / "rows", rows=rows, batch_tokens=240, advance=look)
    assert len(held) > 15
    gradient = 4 * trainable_weights(model).size
    assert max(held) - min(held) < gradient  # not even one row's gradient is kept between batches


@pytest.mark.long
@pytest.mark.parametrize("name", ["lora", "gpt2"])
def test_two_ranks_measure_as_one(name: str, tmp_path: Path) -> None:
    program = Path(__file__).with_name("gradient_ranks_program.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(program), name, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model, optimizer = trained(name)
    one = measured(model, adam_of(optimizer, model, trainable_weights(model)), tmp_path / "one")
    for rank in (0, 1):
        two = np.load(tmp_path / f"rank{rank}.npy")
        np.testing.assert_allclose(two, one.similarities_NxG, rtol=1e-4, atol=1e-5)


def test_ghost_engine_has_the_same_columns() -> None:
    vectors = {"w": torch.ones(2, 1, 3)}
    targets = TargetGroups(vectors=vectors, num_groups=2, norms_M=np.ones(2))
    assert Ghost(targets, None).num_columns == Exact(targets, None).num_columns == 4
