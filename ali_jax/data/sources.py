"""Data sets that need no files. Each public function is one, by the name that `config.dataset.name` gives.

It takes the `LoadOptions` of `load`, uses those that apply, and returns a `Dataset`.
"""

import numpy as np

from ali_jax.data.dataset import ArraySplit, Dataset, LoadOptions, select, stratified

DRAWN = ("mixture", "mixture_100", "ring")  # their rows depend on the seed
TRAIN_POINTS = 100_000  # of the mixtures: the size of the authors' training set
TEST_POINTS = 10_000  # the paper measures coverage on 10,000 points


def digits(options: LoadOptions) -> Dataset:
    """Return scikit-learn's 1,797 bundled digits [8, 8, 1], 0 to 16, split into 1,400 and 397.

    The split is stratified and the same for every seed.
    """
    from sklearn.datasets import load_digits  # takes half a second, which other data sets can save

    pixels, target = load_digits(return_X_y=True)
    x = np.asarray(pixels, np.uint8).reshape(-1, 8, 8, 1)
    label = np.asarray(target, np.int32)
    rows = zip(("train", "test"), stratified(label, 397), strict=True)
    splits = {name: ArraySplit(x[index], None, label[index], 10) for name, index in rows}
    train, test = select(splits, options.train_split), select(splits, options.test_split)
    names = tuple(str(digit) for digit in range(10))
    return Dataset("digits", train, test, 16.0, 10, splits=_chosen(options), class_names=names)


def mixture(options: LoadOptions) -> Dataset:
    """Return 25 equiprobable Gaussians of standard deviation 0.05 with means {-4, -2, 0, 2, 4}^2.

    The label is the component. `options.scale` multiplies points, means and standard deviation. Test points
    are drawn independently of the training points, unlike the authors' validation points.
    """
    return _grid("mixture", 5, options)


def mixture_100(options: LoadOptions) -> Dataset:
    """Return 100 such Gaussians, with means {-9, -7, ..., 9}^2: as wide and as far apart as `mixture`'s."""
    return _grid("mixture_100", 10, options)


def ring(options: LoadOptions) -> Dataset:
    """Return 8 equiprobable Gaussians of standard deviation 0.01 on the unit circle (PacGAN's ring)."""
    angle = 2 * np.pi * np.arange(8) / 8
    return _gaussians("ring", np.stack([np.cos(angle), np.sin(angle)], -1), 0.01, options)


def _grid(name: str, side: int, options: LoadOptions) -> Dataset:
    """Draw both splits of side * side Gaussians on a square grid about 0, 2 apart."""
    at = 2.0 * np.arange(side) - (side - 1)
    means = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1).reshape(-1, 2)
    return _gaussians(name, means, 0.05, options)


def _gaussians(name: str, means: np.ndarray, std: float, options: LoadOptions) -> Dataset:
    """Draw both splits of an isotropic mixture with means [K, D]."""
    means, std = means * options.scale, std * options.scale

    def draw(stream: int, count: int) -> ArraySplit:
        generator = np.random.default_rng((options.seed % 2**64, stream))
        label = generator.integers(len(means), size=count)
        x = means[label] + std * generator.standard_normal((count, means.shape[1]))
        return ArraySplit(x.astype(np.float32), None, label.astype(np.int32), len(means))

    splits = {"train": draw(0, TRAIN_POINTS), "test": draw(1, TEST_POINTS)}
    train, test = select(splits, options.train_split), select(splits, options.test_split)
    return Dataset(name, train, test, 1.0, len(means), means.astype(np.float32), std, splits=_chosen(options))


def _chosen(options: LoadOptions) -> tuple[str, str]:
    return options.train_split, options.test_split
