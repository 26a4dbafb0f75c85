"""The user's cache: what takes long to compute and depends on its arguments alone is kept between processes.

It is ALI_JAX_CACHE or, where that is not set, the folder `ali_jax` in XDG_CACHE_HOME or ~/.cache. With
ALI_JAX_CACHE=off nothing is kept. All of it may be deleted at any time.
"""

import functools
import hashlib
import os
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MOST_BYTES = 2**29  # of results; those that were not used for longest are deleted
LIBRARIES = ("flax", "jax", "jaxlib", "numpy", "optax")


def folder() -> Path | None:
    """Return the folder of the cache, which exists; None if there is none that can be written."""
    given = os.environ.get("ALI_JAX_CACHE", "")
    if given == "off":
        return None
    try:
        path = Path(given or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ali_jax")
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or not writable
        return None
    return path if os.access(path, os.W_OK | os.X_OK) else None


def kept(compute: Callable[[], T], *about: Any) -> T:
    """Return the result of a function, computed or as an earlier process computed it.

    Args:
      compute: what it returns depends on `about`, on this package and on its libraries alone, and can be
        pickled.
      about: a name, and what distinguishes results: arrays of NumPy, numbers, strings, tuples of them, None.

    A result that cannot be read is computed again.
    """
    if (memory := _memory(folder())) is None:
        return compute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of results that cannot be read or written
        return memory.cache(_computed, ignore=["compute"])(compute, _versions(), about)


def digest(*about: Any) -> str:
    """Return a digest of large arrays, to be given to `kept` in their place by several results."""
    import joblib

    return str(joblib.hash(about))


def _computed(compute: Callable[[], T], versions: str, about: tuple) -> T:
    del versions, about  # they are the key
    return compute()


@functools.cache
def _memory(path: Path | None) -> Any:
    """Return joblib's memory in a folder, and delete what is too much; None if there is no folder."""
    if path is None:
        return None
    import joblib

    memory = joblib.Memory(path / "results", verbose=0)
    memory.reduce_size(bytes_limit=MOST_BYTES)
    return memory


@functools.cache
def _versions() -> str:
    """Return a digest of the code of this package and of the versions of its libraries."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest() + "".join(f" {name} {version(name)}" for name in LIBRARIES)
