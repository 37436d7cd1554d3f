"""What takes in the losses of the training's own forwards, put together for one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dataflex.algorithms.mix.doremi import domain_coefficients
from dataflex.core.domains import sum_by_domain
from dataflex.core.errors import ConfigError
from dataflex.core.order import Geometry
from dataflex.train.anchors import anchor_reader
from dataflex.train.curator import Curator
from dataflex.train.domains import Domains, read_proportions, weighs_domains
from dataflex.train.host_rows import fetch
from dataflex.train.make_budget import shows_losses
from dataflex.train.measure import number_column
from dataflex.train.method import Method
from dataflex.train.pool import Pool
from dataflex.train.ranks import Ranks
from dataflex.train.reference import Excess, Reference
from dataflex.train.refuse import refuse_loss
from dataflex.train.stage_loss import scores_own_loss
from dataflex.train.target import Target
from dataflex.train.trained_loss import TrainedLoss
from dataflex.train.weighing import Weighing


def watch_training(
    trainer: Any,
    method: Method,
    *,
    num_steps: int,
    geometry: Geometry,
    pool: Pool,
    ranks: Ranks,
    domains: Domains | None,
    columns: Mapping[str, Any],
    listener: Callable[[np.ndarray, torch.Tensor], None] | None,
    factor: Callable[[np.ndarray], np.ndarray | None],
    target: Target | None = None,
) -> TrainedLoss | None:
    """The program of a run that keeps and weighs the trained rows' losses; None where nothing needs them.

    Args:
        columns: those of rows.parquet, which weighers may name.
        listener: is told the losses of each micro-batch.
        factor: further coefficients of rows, by their domains or by the selection that they are of.
        target: rows that weighers compare with.

    Raises:
        ConfigError: the trainer's loss is not one that can be read or weighed.
    """
    # Under a budget, losses of training stand in for passes; where it shows none, passes are all there is.
    keeps = method.watches_training or (method.score_budget is not None and shows_losses(trainer))
    if not keeps and listener is None:
        return None
    if method.watches_training and scores_own_loss(trainer):
        raise ConfigError(
            f"{method.title} needs the losses of the tokens that are trained, which rows of this kind (pairs, classes) "
            "do not have; use rows of text, or choose with a selector"
        )
    mixer = method.mixer.method if method.mixer is not None else None
    excess = None
    if mixer is not None and mixer.step_needs and domains is not None:
        accelerator = trainer.accelerator
        reference = Reference(mixer.reference, accelerator.unwrap_model(trainer.model), accelerator)
        excess = Excess(reference, domains.domain_N, len(domains.info), ranks)
    weighing = _weighing(trainer, method, num_steps, geometry, ranks, domains, columns, factor)
    by_embedding = weighing is not None and weighing.needs_embeddings
    trained_loss = TrainedLoss(
        ranks=ranks,
        num_tokens_N=pool.info.num_tokens_N,
        weighing=weighing,
        reference=_reference_of_tokens(trainer, method),
        read_anchors=anchor_reader(trainer, target, ranks, fetch) if by_embedding else None,
        excess=excess,
        beside=not keeps,
        keep=keeps,
    )
    if listener is not None:
        trained_loss.listen(listener)
    return trained_loss


def _weighing(
    trainer: Any,
    method: Method,
    num_steps: int,
    geometry: Geometry,
    ranks: Ranks,
    domains: Domains | None,
    columns: Mapping[str, Any],
    factor: Callable[[np.ndarray], np.ndarray | None],
) -> Weighing | None:
    by_domain = method.mixer is not None and domains is not None and weighs_domains(method.mixer.method, domains)
    by_selection = method.selects and getattr(method.selector, "gives_factors", False)
    if not method.weighers and not by_domain and not by_selection:
        return None
    if by_selection:
        refuse_loss(trainer, method.name)
    for part in (*method.weighers, *((method.mixer,) if by_domain and method.mixer else ())):
        refuse_loss(trainer, part.name)
    names = {part.method.column for part in method.weighers if "column" in part.method.needs}
    return Weighing(
        method.weighers,
        ranks=ranks,
        num_steps=num_steps,
        rows_in_scope=geometry.world_size * geometry.micro_batch,
        normalize=method.normalize,
        warmup_step=method.weigh_warmup,
        columns={name: number_column(name, columns) for name in names},
        factor=factor if by_domain or by_selection else None,
    )


def _reference_of_tokens(trainer: Any, method: Method) -> Reference | None:
    """The model whose loss of the same tokens a weigher asks for."""
    named = [part.method.reference for part in method.weighers if "reference_token_loss" in part.method.needs]
    if not named:
        return None
    return Reference(named[0], trainer.accelerator.unwrap_model(trainer.model), trainer.accelerator)


def row_factor(curator: Curator, step: int, rows_B: np.ndarray) -> np.ndarray | None:
    """Coefficients of rows that come neither of their losses nor of a column; None: all 1."""
    of_selection_B, of_domain_B = curator.factors(rows_B), _domain_factor(curator, step, rows_B)
    if of_selection_B is None or of_domain_B is None:
        return of_domain_B if of_selection_B is None else of_selection_B
    return of_selection_B * of_domain_B


def _domain_factor(curator: Curator, step: int, rows_B: np.ndarray) -> np.ndarray | None:
    """Coefficients of rows by the weights of their domains, over the global batch of optimizer step ``step``."""
    weights_D, domains, mixer = curator.domain_weights(), curator.domains, curator.method.mixer
    if weights_D is None or domains is None or mixer is None:
        return None
    of_step = curator.rows_of_step(step)
    tokens_N, domain_N = curator.pool.info.num_label_tokens_N, domains.domain_N
    tokens_D = sum_by_domain(tokens_N[of_step], domain_N[of_step], len(weights_D))
    return domain_coefficients(weights_D, domain_N[rows_B], tokens_D, mixer.method.normalizer)


def measure_domains(method: Method, domains: Domains | None, name: str) -> np.ndarray:
    """A signal by domain that training does not show."""
    if name != "proportions_file" or method.mixer is None or domains is None:
        raise ConfigError(f"the mixer needs a signal {name!r}, which nothing measures")
    return read_proportions(method.mixer.method.path, domains)
