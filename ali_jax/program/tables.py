"""Tables of named rows as .npz, .csv or .parquet."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ali_jax.records.workdir import replaced

Columns = Mapping[str, Any]  # arrays [N], or [N, K] for K columns


def write_table(path: Path, columns: Columns) -> None:
    """Write columns in the format of the file's suffix, atomically; .npz keeps two dimensions."""
    writers = {".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}
    with replaced(path) as partial:
        writers[path.suffix.lower()](partial, columns)


def flat(columns: Columns) -> dict[str, np.ndarray]:
    """Return columns of one dimension: mean [N, K] becomes mean_0 to mean_{K-1}."""
    made = {}
    for name, values in columns.items():
        array = np.asarray(values)
        made |= (
            {f"{name}_{k}": array[:, k] for k in range(array.shape[1])} if array.ndim == 2 else {name: array}
        )
    return made


def _write_npz(path: Path, columns: Columns) -> None:
    with path.open("wb") as file:
        arrays: dict[str, Any] = {name: np.asarray(values) for name, values in columns.items()}
        np.savez(file, **arrays)


def _write_csv(path: Path, columns: Columns) -> None:
    table = flat(columns)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow([f"{value:.6g}" if isinstance(value, np.floating) else value for value in row])


def _write_parquet(path: Path, columns: Columns) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({name: pyarrow.array(v) for name, v in flat(columns).items()}), path)
