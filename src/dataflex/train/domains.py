"""The domain of every pool row: the data set it came from, or what a column says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc_typed

from dataflex.algorithms.base import DomainInfo, PoolInfo
from dataflex.algorithms.mix.proportions import check_proportions, resolve_proportions
from dataflex.core.domains import count_rows, sum_by_domain
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.ledger.files import write_atomic

pc: Any = pc_typed  # its functions are made when it is imported

MOST_DOMAINS = 1000
LEARNED = Path("dataflex") / "proportions.json"  # in a run's output_dir
DATA_SET = "dataset"  # the column that names the data set of a row


@dataclass(frozen=True, kw_only=True)
class Domains:
    """The domains of a pool."""

    column: str
    info: DomainInfo
    domain_N: np.ndarray  # position in ``info.names``, int64

    def record(self) -> dict[str, Any]:
        """For run.yaml: the column of rows.parquet, and the domains in their order."""
        return {"column": self.column, "names": list(self.info.names)}


def find_domains(
    columns: Mapping[str, Any], pool: PoolInfo, *, column: str | None = None, names: Sequence[str] | None = None
) -> Domains:
    """The domains of a pool.

    Args:
        columns: those of rows.parquet, one entry per pool row.
        column: which of them says the domain; the data set of the row where None.
        names: the domains in the order in which the user names them; else they are sorted.

    Raises:
        ConfigError: no such column, a row without a value, or too many domains.
    """
    known = [name for name in columns if name not in ("row", "source_row", "excerpt")]
    name = column or DATA_SET
    if name not in columns:
        if column is None:
            raise ConfigError(
                "a mixer needs the domain of every row: name several data sets, or the column of the data that says it "
                f"with domain_column; columns: {', '.join(known) or 'none'}"
            )
        raise ConfigError(f"domain_column is {shown(column)}{did_you_mean(column, known)}; columns: {', '.join(known)}")
    return domains_of(name, columns[name], pool, names)


def domains_of(name: str, values: Any, pool: PoolInfo, names: Sequence[str] | None = None) -> Domains:
    """The domains that one column says; see ``find_domains``."""
    column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    texts = pc.cast(column, pa.string())
    if texts.null_count:
        row = next(i for i, is_null in enumerate(pc.is_null(texts).to_pylist()) if is_null)
        raise ConfigError(f"row {row} has no {name}, so that its domain is unknown; fill the column, or drop such rows")
    encoded = pc.dictionary_encode(texts)
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    found = encoded.dictionary.to_pylist()
    if len(found) > MOST_DOMAINS:
        raise ConfigError(
            f"the column {name} has {len(found)} different values; at most {MOST_DOMAINS} domains can be mixed, name "
            "another column with domain_column"
        )
    # In the order of the config where it names them, also those of which no row is left.
    ordered = list(names) if names is not None and set(found) <= set(names) else sorted(found)
    position = np.array([ordered.index(value) for value in found], dtype=np.int64)
    domain_N = position[encoded.indices.to_numpy(zero_copy_only=False)]
    info = DomainInfo(
        names=tuple(ordered),
        num_rows_D=count_rows(domain_N, len(ordered), pool.trainable_N),
        num_label_tokens_D=sum_by_domain(pool.num_label_tokens_N, domain_N, len(ordered)).astype(np.int64),
    )
    return Domains(column=name, info=info, domain_N=domain_N)


def weighs_domains(mixer: Any, domains: Domains) -> bool:
    """True where a mixer weighs the loss of each domain, as step 2 of doremi does."""
    return mixer.domain_weights(mixer.init(domains.info)) is not None


def read_proportions(path: str, domains: Domains) -> np.ndarray:
    """Proportions that a run learned: its output_dir, or the file in it; float64, shape (D,), sum 1.

    Raises:
        ConfigError: no such file, or one of other domains.
    """
    file = Path(path) / LEARNED if Path(path).is_dir() else Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(
            f"path {shown(path)} holds no proportions that a run learned ({reason}); name the output_dir of step 2"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is no mapping of domains to numbers; name the output_dir of step 2")
    check_proportions(str(file), content)
    return resolve_proportions(str(file), content, domains.info, domains.info.num_rows_D)


def write_learned(folder: Path, domains: Domains, learned_D: np.ndarray) -> str:
    """Write the proportions that a mixer found, for the run that trains on them; the sentence that says so.

    Args:
        folder: of the run's record.
    """
    path = folder / LEARNED.name
    named = dict(zip(domains.info.names, learned_D.tolist(), strict=True))
    write_atomic(path, json.dumps(named, ensure_ascii=False, indent=2).encode())
    listed = ", ".join(f"{name} {share:.4f}" for name, share in named.items())
    return f"learned proportions: {listed}; in {path}"
