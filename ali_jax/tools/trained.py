"""A trained model as one object: images in, codes, images and scores out, as NumPy arrays.

`load` makes it from the folder of a run or of `--mode export`. It is a shell over the functions of
`ali_jax.model`: it brings what people have to the networks' units, and runs blocks of fixed shapes, so that
little is compiled.
"""

import contextlib
import dataclasses
import numbers
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ali_jax import model
from ali_jax.data import DataError, images, sizes, survey
from ali_jax.evaluate.running import compiled
from ali_jax.game import Game, member_of, trained_run
from ali_jax.metrics.blocks import map_fixed_blocks
from ali_jax.networks.convolutions import platform_of
from ali_jax.networks.inputs import wrong_shape
from ali_jax.types import ALI, PyTree, TrainState, Variables

Images: TypeAlias = Any  # an array, a PIL image, a path, or a sequence of one of them
FILES = (str, os.PathLike, Image.Image)
LARGEST = np.finfo(np.float32).max
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained model, to be used on images that it has not seen.

    Images are integers as they are stored, floats in [0, 1], PIL images or paths; one or many. One image
    gives one result, without the axis of rows. Files become grey or coloured, as the model is. Vectors are
    numbers, [D] or [N, D]. Other shapes and ranges are a ValueError that says what to do.

    A model of conditions is given `y` beside images and codes: the name of a class as text, one for all rows
    or one for each, or numbers [A] or [N, A].

    Attributes:
      ali: the networks.
      variables: their parameters and batch statistics.
      shape: of one x, (H, W, C) or (D,).
      divisor: integers are divided by it, so that white is 1.
      classes: names of the classes of the data; empty if they have none.
      conditions: names of the columns of y; empty for a model without conditions.
      scale: factor on vectors, and on the pixels of integers and files, as `config.dataset.scale`.
      background: grey level behind transparent pixels of files.
      fit: how files of another size are brought to the model's, as `config.dataset.fit`; "" to refuse them.
      name: of the data.
      step: number of training steps.
    """

    ali: ALI
    variables: Variables
    shape: tuple[int, ...]
    divisor: float = 255.0
    classes: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    scale: float = 1.0
    background: int = 255
    fit: str = ""
    name: str = "data"
    step: int = 0

    def __repr__(self) -> str:
        """Return in one line what the model is of."""
        shape = "x".join(map(str, self.shape))
        return f"Model({self.name}, x: {shape}, z: {self.latent_dim}, step: {self.step})"

    def __sklearn_clone__(self) -> "Model":
        """Return the model itself: scikit-learn's `clone` leaves it trained."""
        return self

    @property
    def latent_dim(self) -> int:
        """Z, the length of a code."""
        return model.latent_dim(self.ali)

    def encode(self, images: Images, y: Any = None, *, sample: bool = False, seed: int = 0) -> np.ndarray:
        """Return the codes [N, Z] of images: the mean of q(z | x) or, with `sample`, a draw by `seed`."""
        x, is_one = self._given(images)
        z = self._encode(x, self.condition_rows(y, len(x)), _key(seed) if sample else None)
        return z[0] if is_one else z

    def posterior(self, images: Images, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of a Gaussian q(z | x), [N, Z] each."""
        x, is_one = self._given(images)
        mean, log_sigma = self._over_blocks(model.posterior, x, self.condition_rows(y, len(x)))
        sigma = np.exp(log_sigma)
        return (mean[0], sigma[0]) if is_one else (mean, sigma)

    def decode(self, codes: Any, y: Any = None, *, seed: int = 0) -> np.ndarray:
        """Return the decodings [N, *X] of codes [N, Z]; images are floats in [0, 1].

        `seed` is of decoders that draw noise.
        """
        z = _array(codes, "code")
        is_one, z = z.ndim == 1, np.atleast_2d(z)
        if z.ndim != 2 or z.shape[1] != self.latent_dim or not len(z) or z.dtype.kind not in "iuf":
            raise ValueError(
                f"The codes are {z.dtype} of the shape {list(np.shape(codes))}: give numbers "
                f"[N, {self.latent_dim}], or [{self.latent_dim}] for one."
            )
        _check_finite(z, "codes")
        z = z.astype(np.float32)
        x = self._decode(z, self.condition_rows(y, len(z)), _key(seed))
        return x[0] if is_one else x

    def reconstruct(self, images: Images, y: Any = None) -> np.ndarray:
        """Return the decodings [N, *X] of the mean codes of images."""
        x, is_one = self._given(images)
        y = self.condition_rows(y, len(x))
        x_hat = self._decode(self._encode(x, y), y)
        return x_hat[0] if is_one else x_hat

    def sample(self, n: int, y: Any = None, *, seed: int = 0) -> np.ndarray:
        """Draw n samples [n, *X] of the model: decodings of z ~ N(0, I).

        With the same seed, the first samples are the same for every n.
        """
        n = _whole("n", n, 1)
        random = np.random.default_rng(_whole("seed", seed, 0, LARGEST_SEED))
        z = random.standard_normal((n, self.latent_dim), np.float32)
        return self.decode(z, y, seed=seed)

    def interpolate(
        self, a: Images, b: Images, steps: int = 11, y: Any = None, y_end: Any = None
    ) -> np.ndarray:
        """Decode codes on the straight lines between those of images a and b.

        Args:
          a: one image or N.
          b: one image or N.
          steps: codes on each line, both ends included.
          y: conditions of a.
          y_end: conditions of b, to which those of a line move as its code does; None: they stay at y.

        Returns:
          [steps, *X] for one image at each end, [N, steps, *X] for N.
        """
        (x0, is_one), (x1, _) = self._given(a), self._given(b)
        if len(x0) != len(x1):
            raise ValueError(
                f"There are {len(x0)} images at one end and {len(x1)} at the other: give as many at both."
            )
        steps = _whole("steps", steps, 2)
        y0 = self.condition_rows(y, len(x0))
        y1 = y0 if y_end is None else self.condition_rows(y_end, len(x1))
        z0, z1 = self._encode(x0, y0), self._encode(x1, y1)
        alpha = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
        z = (1 - alpha) * z0[:, None] + alpha * z1[:, None]
        ys = None
        if y0 is not None and y1 is not None:
            ys = (y0[:, None] + alpha * (y1 - y0)[:, None]).reshape(-1, y0.shape[-1])
        path = self._decode(z.reshape(-1, z.shape[-1]), ys)
        path = path.reshape(len(x0), steps, *self.shape)
        return path[0] if is_one else path

    def score_samples(self, images: Images, y: Any = None) -> np.ndarray:
        """Return minus the mean squared error [N] of reconstructions from mean codes: higher is more usual.

        It is no likelihood: the model has none. `ali_jax.tools.anomaly` has better scores, and thresholds.
        """
        x, is_one = self._given(images)
        y = self.condition_rows(y, len(x))
        x_hat = self._over_blocks(model.decode, self._encode(x, y), y)
        error = np.mean(np.square(x - x_hat, dtype=np.float64).reshape(len(x), -1), axis=1)
        return -error[0] if is_one else -error

    def rows(self, images: Images) -> np.ndarray:
        """Return one image or many as the networks take them: float32 [N, *X], images in [0, 1]."""
        return self._given(images)[0]

    def condition_rows(self, y: Any, count: int) -> np.ndarray | None:
        """Return conditions as the networks take them, [N, A] for N = `count`; None for a model without."""
        names = self.conditions
        if not names:
            if y is not None:
                raise ValueError("y is given, but this model has no conditions: leave it out.")
            return None
        if y is None:
            raise ValueError(
                f"This model is given conditions: pass y, [N, {len(names)}] numbers for "
                f"{survey.listed(names)}, or the name of one of them for each row."
            )
        given = _array([y] * count if isinstance(y, str) else y, "condition")
        are_names = given.size and all(isinstance(name, str) for name in given.ravel())
        rows = self._numbers(given) if are_names else given
        rows = np.broadcast_to(rows, (count, len(names))) if rows.shape == (len(names),) else rows
        if rows.shape != (count, len(names)) or rows.dtype.kind not in "biuf":
            raise ValueError(
                f"y is {given.dtype} of the shape {list(given.shape)}: give numbers [{count}, {len(names)}] "
                f"or [{len(names)}], or names as texts, y={names[0]!r} for all rows or a list of {count}."
            )
        _check_finite(rows, "rows of y")
        return rows.astype(np.float32)

    def _numbers(self, names: np.ndarray) -> np.ndarray:
        """Return names of conditions [N] as numbers [N, A], 1 in the column of the name."""
        known = list(self.conditions)
        if unknown := sorted(set(names.ravel().tolist()) - set(known)):
            raise ValueError(f"There is no condition {unknown[0]!r}: the names are {survey.listed(known)}.")
        columns = [known.index(name) for name in names.ravel()]
        return np.eye(len(known), dtype=np.float32)[columns].reshape(*names.shape, len(known))

    def _given(self, images: Images) -> tuple[np.ndarray, bool]:
        """Return images as rows, and whether they were given as a single one."""
        if isinstance(images, FILES):
            return self._pixels(images)[None], True
        if isinstance(images, (list, tuple)) and any(is_file := [isinstance(i, FILES) for i in images]):
            if not all(is_file):
                other = images[is_file.index(False)]
                raise ValueError(
                    f"The list has files or PIL images and, at {is_file.index(False)}, one "
                    f"{type(other).__name__}: give files and PIL images alone, or arrays alone."
                )
            return np.stack([self._pixels(image) for image in images]), False
        x = _array(images, "image")
        if x.dtype.kind not in "iuf":
            raise ValueError(f"x is {x.dtype}: give integers as they are stored, or floats.")
        if x.ndim and not len(x):
            raise ValueError("There are no rows: give at least one.")
        is_grey = len(self.shape) == 3 and self.shape[-1] == 1
        if is_grey and x.ndim in (2, 3) and x.shape[-2:] == self.shape[:2] and x.shape != self.shape:
            x = x[..., None]
        is_one = x.shape == self.shape
        x = x[None] if is_one else x
        if x.shape[1:] != self.shape:
            raise ValueError(wrong_shape("x", x.shape, self.shape))
        return self._units(x), is_one

    def _pixels(self, file: Any) -> np.ndarray:
        """Return a PIL image, or the image in a file, as floats [H, W, C] in [0, 1]."""
        if len(self.shape) != 3:
            raise ValueError(f"This model takes vectors of {self.shape[0]} numbers, not images.")
        height, width, channels = self.shape
        is_open = isinstance(file, Image.Image)
        name = "The image" if is_open else str(file)
        with contextlib.nullcontext(file) if is_open else images.opened(_existing(file)) as opened:
            upright = images.upright(opened)
            pixels = images.to_uint8(upright, channels, background=self.background, scale=self.scale)
        if self.fit:
            pixels = sizes.fitted(pixels, sizes.Sizing((height, width), self.fit, self.background))
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{name} has {pixels.shape[1]}x{pixels.shape[0]} pixels, and this model takes "
                f"{width}x{height}: resize it, image.resize(({width}, {height}))."
            )
        return pixels.astype(np.float32) / np.float32(255)

    def _units(self, x: np.ndarray) -> np.ndarray:
        """Return rows [N, *X] of integers or floats as the networks take them, float32."""
        _check_finite(x, "rows")
        if len(self.shape) != 3:
            return x.astype(np.float32) * np.float32(self.scale)
        if x.dtype.kind != "f":
            return self._bytes(x)
        if not 0 <= x.min() <= x.max() <= 1:
            raise ValueError(
                f"The images lie between {x.min():.4g} and {x.max():.4g}, and floats must be in [0, 1]: give "
                f"x / {self.divisor:g} for pixels as they are stored, (x + 1) / 2 for [-1, 1], and "
                "np.clip(x, 0, 1) where resizing went beyond."
            )
        return x.astype(np.float32)

    def _bytes(self, x: np.ndarray) -> np.ndarray:
        """Return integer pixels as floats in [0, 1]."""
        if not 0 <= x.min() <= x.max() <= self.divisor:
            raise ValueError(
                f"The pixels run from {x.min()} to {x.max()}, and the integers of this model's data from 0 "
                f"to {self.divisor:g}: give floats in [0, 1]."
            )
        if self.scale != 1:
            x = images.scaled_bytes(x.astype(np.uint8), self.scale)
        return x.astype(np.float32) / np.float32(self.divisor)

    def _encode(self, x: np.ndarray, y: np.ndarray | None, key: Any = None) -> np.ndarray:
        return self._over_blocks(model.encode, x, y, key)

    def _decode(self, z: np.ndarray, y: np.ndarray | None, key: Any = None) -> np.ndarray:
        """Decode to the units of the data: vectors lose their scale again."""
        x = self._over_blocks(model.decode, z, y, jax.random.PRNGKey(0) if key is None else key)
        return x if len(self.shape) == 3 else x / np.float32(self.scale)

    def _over_blocks(
        self, function: Callable[..., PyTree], rows: np.ndarray, y: np.ndarray | None, key: Any = None
    ) -> PyTree:
        """Apply a function of `ali_jax.model` to rows; with a key, every block has its own noise."""
        run = compiled(function, platform_of(self.variables))

        def on_block(index: np.ndarray, rows: np.ndarray, y: np.ndarray | None) -> PyTree:
            noise = {} if key is None else {"key": jax.random.fold_in(key, index[0])}
            return run(self.ali, self.variables, rows, y, **noise)

        return map_fixed_blocks(on_block, np.arange(len(rows)), rows, y)


def _key(seed: Any) -> jax.Array:
    return jax.random.PRNGKey(_whole("seed", seed, 0, LARGEST_SEED))


def _existing(file: str | os.PathLike[str]) -> Path:
    """Return the path of a file; raise a DataError if it is none."""
    path = Path(file).expanduser()
    if not os.fspath(file):
        raise DataError("The path of the image is empty: give the name of a file.")
    if path.is_dir():
        raise DataError(f"{file}: this is a folder; give the paths of the images in it, as a list.")
    if not path.exists():
        raise DataError(f"{file}: there is no such file.")
    return path


def _array(rows: Any, what: str) -> np.ndarray:
    """Return rows as an array; raise a ValueError for masked values and for items that differ in shape."""
    check_not_masked(rows, what)
    try:
        return np.asarray(rows)
    except ValueError:
        shapes = [_shape(row) for row in rows]
        other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise ValueError(
            f"The shape of {what} number 0 is {shapes[0]}, of number {other} {shapes[other]}: bring them to "
            "one shape."
        ) from None


def check_not_masked(rows: Any, what: str) -> None:
    """Raise a ValueError if an array, or one in a list, has masked values: NumPy drops masks silently."""
    arrays = rows if isinstance(rows, (list, tuple)) else [rows]
    if count := sum(np.ma.count_masked(a) for a in arrays if isinstance(a, np.ma.MaskedArray)):
        raise ValueError(
            f"The {what}s have masked values, {count} of them: fill the gaps, as array.filled(0) does, or "
            "leave their rows out."
        )


def _shape(row: Any) -> list[int] | str:
    try:
        return list(np.shape(row))
    except ValueError:
        return "ragged"


def _check_finite(rows: np.ndarray, what: str) -> None:
    """Raise a ValueError if some rows [N, ...] have numbers that are NaN, infinite or not in float32."""
    if rows.dtype.kind != "f" or -LARGEST <= rows.min() <= rows.max() <= LARGEST:
        return
    fault, cure = "not finite", "leave these rows out or fill their gaps"
    is_broken = ~np.isfinite(rows)
    if not is_broken.any():
        fault, cure = "beyond float32, which ends at 3.4e38", "leave these rows out or scale them"
        is_broken = np.abs(rows) > LARGEST
    broken = np.flatnonzero(is_broken.reshape(len(rows), -1).any(axis=1))
    raise ValueError(
        f"{broken.size} of {len(rows)} {what} have numbers that are {fault}, the first in row {broken[0]}: "
        f"{cure}."
    )


def _whole(name: str, number: Any, least: int, most: int | None = None) -> int:
    """Return a whole number; raise a ValueError if it is none, or not from `least` to `most`."""
    with contextlib.suppress(TypeError):  # of 2.5, or a text
        whole = operator.index(number)
        if least <= whole and (most is None or whole <= most):
            return whole
    allowed = f", {least} or more" if most is None else f" from {least} to {most}"
    raise ValueError(f"{name} is {number!r}: give a whole number{allowed}.")


def load(workdir: str | os.PathLike[str], member: int = 0) -> Model:
    """Load the trained model of a run, with its averaged weights where it has them; its data are not read.

    Args:
      workdir: the folder of the run, or that of its export (`--mode export`).
      member: which member of a population, from 0.

    Returns:
      The model.

    Raises:
      ValueError: the folder holds no run and no exported model, or there is no such member.
      RunError: the run has no readable checkpoint, or the exported weights are damaged.
    """
    game, state = trained_run(Path(workdir).expanduser())
    return model_of(game, state, member)


def model_of(game: Game, state: TrainState, member: int = 0) -> Model:
    """Make the model of a trained game; the arguments are those of `game.fit` and `game.trained_state`.

    Raises:
      ValueError: there is no such member.
    """
    last = max(len(game.members), 1) - 1
    if not (isinstance(member, numbers.Integral) and 0 <= member <= last):
        raise ValueError(f"member is {member!r}; the run has the members 0 to {last}.")
    if game.members:
        game, state = game.members[member], member_of(state, member)
    source, dataset = game.config.dataset, game.dataset
    weights = state.variables if state.ema is None else state.ema
    names = dataset.class_names or tuple(map(str, range(dataset.num_classes)))
    grey = survey.GREY_LEVELS.get(source.background)
    return Model(
        game.ali,
        jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), jax.device_get(weights)),
        tuple(dataset.train.shape),
        divisor=float(dataset.divisor),
        classes=tuple(names),
        conditions=tuple(dataset.attributes) if source.conditional else (),
        scale=float(source.scale),
        background=int(source.background) if grey is None else grey,
        fit=source.fit if source.resize != () else "",
        name=dataset.name,
        step=int(state.step),
    )
