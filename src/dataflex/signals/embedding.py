"""The embedding signal: one unit vector a row, by the model in training or by a sentence encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dataflex.core.errors import ConfigError, shown
from dataflex.signals.head import innermost, text_config

Pooling = Literal["position", "mean", "last"]
EXTRA = "pip install 'dataflex[embed]'"


class HiddenStates:
    """Pooled last hidden states of a causal language model, of unit length.

    Rows are padded on the right, which a causal model does not look at; every token of a row counts, the prompt too.

    Args:
        model: bare; a head for the language model is left out.
        tokens: rows -> their token ids.
        pooling: ``position``: token t of T weighs t (RDS+, 2503.01807); ``mean``; or ``last`` token.
        autocast: the host's own autocast context.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        tokens: Callable[[np.ndarray], list[Any]],
        pooling: Pooling,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.model, self.num_columns = model, int(text_config(innermost(model)).hidden_size)
        self._tokens, self._device, self._autocast = tokens, device, autocast
        self._pooling: Pooling = pooling

    def prepare(self, rows_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.as_tensor(np.asarray(ids), dtype=torch.int64) for ids in self._tokens(rows_B)]
        input_ids_BxT = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths_B = torch.tensor([len(ids) for ids in rows])
        return input_ids_BxT, torch.arange(input_ids_BxT.shape[1]) < lengths_B[:, None]

    def measure(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        input_ids_BxT, kept_BxT = (part.to(self._device) for part in batch)
        with self._autocast():
            hidden_BxTxH = backbone(self.model)(
                input_ids=input_ids_BxT, attention_mask=kept_BxT.long(), use_cache=False
            ).last_hidden_state
        return pooled(hidden_BxTxH, kept_BxT, self._pooling).double()


class SentenceEncoder:
    """Unit vectors of rows as texts, by a model of sentence-transformers or an encoder of transformers.

    Args:
        model: of sentence-transformers.
        texts: rows -> their texts.
    """

    def __init__(self, *, model: Any, texts: Callable[[np.ndarray], list[str]], device: torch.device) -> None:
        self.model, self._texts, self._device = model, texts, device
        dimension = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
        self.num_columns = int(dimension())
        # Called ``preprocess`` in newer versions.
        self._tokenize = getattr(model, "preprocess", None) or model.tokenize

    def prepare(self, rows_B: np.ndarray) -> dict[str, Any]:
        return self._tokenize(self._texts(rows_B))

    def measure(self, batch: dict[str, Any]) -> torch.Tensor:
        given = {name: part.to(self._device) if torch.is_tensor(part) else part for name, part in batch.items()}
        return unit(self.model(given)["sentence_embedding"].float()).double()


def load_sentence_encoder(path: str, device: torch.device) -> Any:
    """A model of sentence-transformers, or a plain encoder, whose tokens it then averages.

    Raises:
        ConfigError: the package is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]  an extra
    except ImportError as error:
        raise ConfigError(
            f"encoder {shown(path)} needs sentence-transformers ({error}); install it with {EXTRA}, or set encoder: "
            "self"
        ) from error
    try:
        model = SentenceTransformer(path, device=str(device))
    except Exception as error:  # of several libraries
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"encoder {shown(path)} cannot be loaded ({reason}); name a model's folder, or set encoder: self"
        ) from error
    return model.eval()


def backbone(model: nn.Module) -> nn.Module:
    """The language model without its head.

    Raises:
        ConfigError: the model does not say what that is.
    """
    base: Any = innermost(model)
    prefix = getattr(base, "base_model_prefix", "")
    found = getattr(base, prefix, None) if prefix else None
    if found is None:
        raise ConfigError(
            f"{type(base).__name__} does not name the model below its head, whose hidden states are the embeddings; "
            "set encoder to a sentence encoder"
        )
    return getattr(found, "language_model", found)


@contextmanager
def last_hidden_states(model: nn.Module, see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Have ``see`` shown the last hidden states, (B, T, H), of each forward of ``model``, a wrapped one too."""

    def after(module: nn.Module, args: Any, output: Any) -> None:
        see(output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0])

    handle = backbone(model).register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def pooled(hidden_BxTxH: torch.Tensor, kept_BxT: torch.Tensor, pooling: Pooling = "position") -> torch.Tensor:
    """Unit vectors of rows of hidden states, float32, shape (B, H).

    Positions are counted among the kept ones, so that neither side nor amount of padding changes anything. NaN for a
    row without any.

    >>> pooled(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[True, True]]), "mean").tolist()
    [[0.7071067690849304, 0.7071067690849304]]
    """
    position_BxT = kept_BxT.long().cumsum(1) * kept_BxT
    match pooling:
        case "position":
            weights_BxT = position_BxT.float()
        case "mean":
            weights_BxT = kept_BxT.float()
        case "last":
            weights_BxT = (kept_BxT & (position_BxT == position_BxT.amax(1, keepdim=True))).float()
    weights_BxT = weights_BxT / weights_BxT.sum(1, keepdim=True)
    # A position that does not count may hold anything.
    hidden_BxTxH = hidden_BxTxH.float().masked_fill(~kept_BxT[..., None], 0.0)
    return unit(torch.einsum("bt,bth->bh", weights_BxT, hidden_BxTxH))


def unit(vectors_BxE: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; NaN for one of length 0."""
    return vectors_BxE / vectors_BxE.norm(dim=1, keepdim=True)
