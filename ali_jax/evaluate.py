"""The evaluators: a model and a data set in, a Report out.

Every public function here that returns a Report is an evaluator, and configs name it. All have the signature
`(ali, variables, key, dataset, **options)`; the options are those of `config.evaluation` that they accept.
What the numbers are is in the docstrings. "Mean code" is the encoder's output at epsilon = 0. Training data
are all of train or, of a larger split, 60,000 rows spread evenly over it; test data likewise, with 10,000.
Their numbers are reported as n_train and n_test or, where labelled rows alone count, as n_train_labelled and
n_test_labelled.
"""

import difflib
import fnmatch
import functools
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax import figures, model
from ali_jax.convolutions import compiler_options
from ali_jax.data import Dataset, Split
from ali_jax.metrics import classes, reconstruction
from ali_jax.metrics.blocks import ROWS_PER_BLOCK, map_blocks
from ali_jax.metrics.classifier import Predict, train_classifier
from ali_jax.metrics.modes import mode_kept, mode_statistics, paper_mode_count
from ali_jax.metrics.neighbors import nearest_few
from ali_jax.metrics.probes import knn_accuracy, linear_probe_accuracy, pca
from ali_jax.types import ALI, Array, Batch, PyTree, Report, Variables

Evaluator = Callable[..., Report]

TRAIN_ROWS = 60_000
TEST_ROWS = 10_000
PICTURE_ROWS = 5_000  # pictures show rows drawn from the first 5,000 of test, as the authors' scripts do
SCATTER_POINTS = 2_500  # as in the authors' mixture plots
MODE_SAMPLES = 2_500  # the number that modes, modes_strict and reverse_kl are quoted at in the literature
PAPER_MODE_SAMPLES = 10_000  # the paper's own
MEMORISATION_ROWS = 2_000  # samples, and test rows, whose median distance is taken
PICTURE_COLUMNS = 10  # of pictures that show chosen rows
NEIGHBOURS = 3  # training images below each sample
TRAVERSED = 8  # code dimensions, those that change the image most
TRAVERSAL_STEPS = 11
TRAVERSAL_END = 2.5  # standard deviations of the prior, to both sides
BATCH_NORM_ROWS = 100  # of the batch whose statistics are compared with the running ones
UNTRAINED_SEED = 2017  # of the encoder that the probes are compared with
CONTROLS = (  # numbers that are the same whatever the weights
    "n_*",
    "*_pixels",
    "*_pca",
    "*_untrained",
    "classifier_accuracy",
    "class_kl_floor",
    "reconstruction_mse_random_pair",
)


_ENTRY = r"^(\w+(?:, \w+)*)(?:  +|\n +)(\S.*(?:\n +\S.*)*)"  # NAME, NAME  meaning, over indented lines


def names() -> list[str]:
    """Return the names of the evaluators."""
    public = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    return [name for name, f in public if name[0] != "_" and inspect.signature(f).return_annotation is Report]


def named(name: str) -> Evaluator:
    """Return the evaluator of that name; of an unknown one, raise a ValueError that lists them."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no evaluator {name!r}.{hint} There are: {', '.join(known)}.")
    return getattr(sys.modules[__name__], name)


def is_control(name: str) -> bool:
    """Tell whether the number of that name is a control: it does not depend on the trained weights."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in CONTROLS)


def glossary() -> dict[str, dict[str, str]]:
    """Return what each number is, by evaluator and name, as the evaluators' docstrings say it.

    There a line "NAME, NAME  meaning" begins an entry, which more deeply indented lines go on with; of a
    single number the first line may be "Measure NAME, the meaning" or "Measure NAME: the meaning".
    """
    found = {}
    for evaluator in names():
        text = inspect.getdoc(getattr(sys.modules[__name__], evaluator)) or ""
        entries: dict[str, str] = {}
        if single := re.match(r"Measure (\w+)[,:] (.+?)\.(?:\s|$)", text, flags=re.DOTALL):
            entries[single[1]] = _prose(single[2])
        for match in re.finditer(_ENTRY, text, flags=re.MULTILINE):
            entries |= dict.fromkeys(match[1].split(", "), _prose(match[2]))
        found[evaluator] = entries
    return found


def _prose(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def check_applicable(name: str, dataset: Dataset, ali: ALI) -> None:
    """Raise a ValueError if there is no evaluator of that name, or if it does not apply to data or model."""
    named(name)
    for needs, lacks in _NEEDS.get(name, ()):
        if lacks(dataset):
            shape = "x".join(map(str, dataset.test.shape))
            raise ValueError(
                f"The evaluator {name!r} needs {needs}, and the data set {dataset.name!r} (x: {shape}; test "
                f"rows: {len(dataset.test)}) does not have them: leave it out of config.evaluators."
            )
    if name == "posterior" and not _is_gaussian(ali.encoder):
        raise ValueError(
            "The evaluator 'posterior' needs a Gaussian encoder, with `moments(x, y, *, train)`; this one is "
            "none: leave it out of config.evaluators."
        )


def samples(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, grid: tuple[int, int] = (10, 10)
) -> Report:
    """Show G_x(z), z ~ N(0, I): a grid of rows x columns, or points in the plane.

    Conditional models are given the conditions of the first test rows.
    """
    check_applicable("samples", dataset, ali)
    if _is_planar(dataset):
        x_tilde = _sample(ali, variables, key, SCATTER_POINTS, dataset)
        limit = figures.limit_of(_test(dataset).x)
        return Report({}, {"samples": figures.scatter([[figures.Panel("x_tilde", x_tilde, limit=limit)]])})
    x_tilde = _sample(ali, variables, key, grid[0] * grid[1], dataset)
    return Report({}, {"samples": figures.image_grid(x_tilde, *grid)})


def reconstructions(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, grid: tuple[int, int] = (10, 10)
) -> Report:
    """Show test data beside G_x(z_hat), z_hat ~ q(z | x) sampled as in the paper.

    Images: `grid` gives the rows, and the pairs per row; odd columns are originals. Data in the plane: x,
    x_hat, x_tilde above z_hat, z; of codes the first two coordinates.
    """
    check_applicable("reconstructions", dataset, ali)
    if _is_planar(dataset):
        panels = plane_panels(ali, variables, key, dataset)
        return Report({}, {"reconstructions": figures.scatter(panels)})
    key_rows, key_code, _ = jax.random.split(key, 3)
    rows = _picture_rows(dataset, key_rows, grid[0] * grid[1])
    z_hat = _over_rows(model.encode, ali, variables, rows, dataset.scale, key=key_code)
    x, x_hat = _unit(rows.x, dataset.scale), _decode(ali, variables, z_hat, rows.y)
    return Report({}, {"reconstructions": figures.reconstruction_grid(x, x_hat, *grid)})


def interpolations(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    num_pairs: int = 4,
    num_interpolation_steps: int = 11,
) -> Report:
    """Show decodings on straight lines between the sampled codes of two test images, one row per pair.

    The outer columns are the originals; between them stand num_interpolation_steps + 1 images, the two
    reconstructions included (paper: 4 rows, 11 steps). Conditions are those of the first of the pair.
    """
    check_applicable("interpolations", dataset, ali)
    key_rows, key_code = jax.random.split(key)
    rows = _picture_rows(dataset, key_rows, 2 * num_pairs)
    pairs = len(rows.x) // 2
    x0, x1 = (_unit(x, dataset.scale) for x in (rows.x[:pairs], rows.x[pairs : 2 * pairs]))
    y = None if rows.y is None else rows.y[:pairs]
    run = _jitted(model.interpolate, _platform(variables), static=(0, 4))
    path = run(ali, variables, x0, x1, num_interpolation_steps + 1, y, key=key_code)
    return Report({}, {"interpolations": figures.interpolation_grid(x0, np.asarray(path), x1)})


def error_extremes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Show the test images that are reconstructed best, those about the median and the worst, mean codes.

    Three pictures, each of at most 10 originals above their reconstructions, by rising error.

    reconstruction_error_best, reconstruction_error_median, reconstruction_error_worst
                   mean squared error per pixel of the first, the middle and the last image, x in [0, 1]

    Of test at most 10,000 rows are used. Nothing is drawn from `key`.
    """
    check_applicable("error_extremes", dataset, ali)
    del key
    test = _test(dataset)
    x = _unit(test.x, dataset.scale)
    x_hat = _over_rows(model.reconstruct, ali, variables, test, dataset.scale)
    errors = np.mean(np.square(x - x_hat), axis=tuple(range(1, x.ndim)))
    order = np.argsort(errors, kind="stable")
    columns, middle = min(PICTURE_COLUMNS, len(x)), len(x) // 2
    first = min(max(middle - columns // 2, 0), len(x) - columns)
    chosen = {
        "best": order[:columns],
        "median": order[first : first + columns],
        "worst": order[len(x) - columns :],
    }
    pictures = {
        f"error_{name}": figures.image_grid(np.concatenate([x[rows], x_hat[rows]]), 2, columns)
        for name, rows in chosen.items()
    }
    ranked = errors[order]
    scalars = {"best": ranked[0], "median": ranked[middle], "worst": ranked[-1]}
    named_scalars = {f"reconstruction_error_{name}": float(value) for name, value in scalars.items()}
    return Report({**named_scalars, "n_test": float(len(x))}, pictures)


def traversals(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Show what single dimensions of the code do to one test image, one row per dimension.

    The mean code of the image is decoded with one dimension moved from -2.5 to 2.5 in 11 steps. Shown are the
    8 dimensions, or all, whose ends differ most in mean squared error, the most effective first.
    """
    check_applicable("traversals", dataset, ali)
    row = _picture_rows(dataset, key, 1)
    z = _over_rows(model.encode, ali, variables, row, dataset.scale)

    def decode(dimensions: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return images [dimensions, values, *X]."""
        moved = np.tile(z[:, None], (len(dimensions), len(values), 1))
        moved[np.arange(len(dimensions)), :, dimensions] = values[None]
        y = None if row.y is None else row.y.repeat(moved.shape[0] * moved.shape[1], axis=0)
        x = _decode(ali, variables, moved.reshape(-1, z.shape[1]), y)
        return x.reshape(*moved.shape[:2], *x.shape[1:])

    ends = decode(np.arange(z.shape[1]), np.array([-TRAVERSAL_END, TRAVERSAL_END], z.dtype))
    effects = np.mean(np.square(ends[:, 1] - ends[:, 0]), axis=tuple(range(1, ends.ndim - 1)))
    chosen = np.argsort(-effects, kind="stable")[:TRAVERSED]
    x = decode(chosen, np.linspace(-TRAVERSAL_END, TRAVERSAL_END, TRAVERSAL_STEPS, dtype=z.dtype))
    image = figures.image_grid(x.reshape(-1, *x.shape[2:]), len(chosen), TRAVERSAL_STEPS)
    return Report({}, {"traversals": image})


def neighbours(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Show samples above their nearest training images: a model that copies shows the same image below.

    Of 500 samples those 10 that lie nearest to a training image, the nearest first, each above its 3 nearest
    by Euclidean distance between pixels. Of train at most 60,000 rows are used.
    """
    check_applicable("neighbours", dataset, ali)
    train = _unit(_train(dataset).x, dataset.scale)
    x_tilde = _sample(ali, variables, key, ROWS_PER_BLOCK, dataset)
    few = min(NEIGHBOURS, len(train))
    index, distance = nearest_few(x_tilde.reshape(len(x_tilde), -1), train.reshape(len(train), -1), few)
    chosen = np.argsort(distance[:, 0], kind="stable")[:PICTURE_COLUMNS]
    rows = [x_tilde[chosen], *(train[index[chosen, i]] for i in range(few))]
    return Report({}, {"neighbours": figures.image_grid(np.concatenate(rows), len(rows), len(chosen))})


def codes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Show the mean codes of at most 2,500 test rows in the plane, coloured by class.

    Codes of more than two dimensions are projected on the two principal components of theirs that vary most.
    Nothing is drawn from `key`.
    """
    check_applicable("codes", dataset, ali)
    del key
    panel, _ = code_panel(ali, variables, dataset)
    return Report({}, {"codes": figures.scatter([[panel]])})


def code_panel(ali: ALI, variables: Variables, dataset: Dataset) -> tuple[figures.Panel, float]:
    """Return the points that `codes` shows, and the share of the codes' variance that the plane holds."""
    rows = jax.tree.map(lambda array: array[:SCATTER_POINTS], _test(dataset))
    z = _over_rows(model.encode, ali, variables, rows, dataset.scale)
    labels = rows.label if dataset.num_classes else None
    if z.shape[1] == 2:
        return figures.Panel("mean codes", z, labels), 1.0
    mean, components = pca(z, 2)
    points = (z - mean[None]) @ components
    share = float(points.var(axis=0).sum() / max(z.var(axis=0).sum(), np.finfo(z.dtype).tiny))
    limit = 1.05 * float(np.abs(points[np.isfinite(points)]).max(initial=1.0))  # codes may have diverged
    return figures.Panel("mean codes", points, labels, limit), share


def plane_panels(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset
) -> tuple[tuple[figures.Panel, ...], ...]:
    """Return the panels that `reconstructions` shows of data in the plane."""
    key_rows, key_code, key_prior = jax.random.split(key, 3)
    rows = _picture_rows(dataset, key_rows, SCATTER_POINTS)
    z_hat = _over_rows(model.encode, ali, variables, rows, dataset.scale, key=key_code)
    x, x_hat = _unit(rows.x, dataset.scale), _decode(ali, variables, z_hat, rows.y)
    z = np.asarray(jax.random.normal(key_prior, z_hat.shape))
    x_tilde = _decode(ali, variables, z, rows.y)
    return figures.mixture_panels(x, x_hat, x_tilde, z_hat[:, :2], z[:, :2], labels=rows.label)


def batch_norm(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how far running batch statistics disagree with those of a batch of 100.

    batch_norm_gap_encoder, batch_norm_gap_decoder
        mean squared difference between the outputs in training mode and in evaluation, over the variance of
        the latter; 0 where a network has no batch norm, and small where the running statistics have settled
    """
    rows = _picture_rows(dataset, key, BATCH_NORM_ROWS)
    batch = Batch(jnp.asarray(_unit(rows.x, dataset.scale)), None if rows.y is None else jnp.asarray(rows.y))
    run = _jitted(_in_both_modes, _platform(variables))
    pairs = jax.tree.map(np.asarray, run(ali, variables, key, batch))
    gaps = [np.mean(np.square(a - b)) / max(np.mean(b.var(axis=0)), 1e-12) for a, b in pairs]
    scalars = dict(zip(("batch_norm_gap_encoder", "batch_norm_gap_decoder"), map(float, gaps), strict=True))
    return Report({**scalars, "n_batch_norm": float(len(rows.x))}, {})


def reconstruction_error(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure the error of reconstructions of at most 10,000 test rows, per pixel, x in [0, 1].

    reconstruction_mse              mean squared error, from the mean code
    reconstruction_mse_sampled      the same, from a sampled code
    reconstruction_mse_random_pair  between two different test images, as scale
    """
    check_applicable("reconstruction_error", dataset, ali)
    test = _test(dataset)
    x = _unit(test.x, dataset.scale)
    reconstruct = functools.partial(_over_rows, model.reconstruct, ali, variables, test, dataset.scale)
    scalars = {
        "reconstruction_mse": reconstruction.mean_squared_error(x, reconstruct()),
        "reconstruction_mse_sampled": reconstruction.mean_squared_error(x, reconstruct(key=key)),
        "reconstruction_mse_random_pair": reconstruction.random_pair_error(x),
        "n_test": float(len(x)),
    }
    return Report(scalars, {})


def class_balance(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure which classes the model makes and keeps, as the reference classifier sees them.

    class_kl                          KL(classes of `num_samples` samples || classes of train)
    class_kl_floor                    its expectation for perfect samples, (K - 1) / 2n
    class_share_min, class_share_max  the smallest and the largest share among the samples
    class_kept, class_kept_sampled    share of test images whose reconstruction, from the mean code and from
                                      a sampled one, is given their true label
    classifier_accuracy               of the classifier on test; it is trained on train only

    Of train at most 60,000 rows are used and of test 10,000, those of them that are labelled.
    """
    check_applicable("class_balance", dataset, ali)
    key_samples, key_codes = jax.random.split(key)
    predict, accuracy = _classifier(_ByIdentity(dataset))
    test = _labelled(_test(dataset))
    frequencies = classes.class_histogram(_labelled(_train(dataset)).label, dataset.num_classes)
    sampled = predict(_sample(ali, variables, key_samples, num_samples, dataset))
    shares = classes.class_histogram(sampled, dataset.num_classes)

    def kept(key: Array | None) -> float:
        x_hat = _over_rows(model.reconstruct, ali, variables, test, dataset.scale, key=key)
        return float(np.mean(predict(x_hat) == test.label))

    scalars = {
        "class_kl": classes.class_kl(sampled, frequencies),
        "class_kl_floor": classes.class_kl_floor(dataset.num_classes, num_samples),
        "class_share_min": float(shares.min()),
        "class_share_max": float(shares.max()),
        "class_kept": kept(None),
        "class_kept_sampled": kept(key_codes),
        "classifier_accuracy": accuracy,
        "n_samples": float(num_samples),
        "n_test_labelled": float(len(test.x)),
    }
    return Report(scalars, {})


def probes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how far mean codes tell the classes apart: reference is train, queries are test.

    knn_accuracy           1-nearest neighbour, Euclidean, unscaled
    linear_probe_accuracy  logistic regression, C = 1, standardised, all labels of train

    Of train at most 60,000 rows are used and of test 10,000, those of them that are labelled. Controls stand
    beside; nothing is drawn from `key`.

    knn_accuracy_pixels, linear_probe_accuracy_pixels        the same of raw pixels
    knn_accuracy_pca, linear_probe_accuracy_pca              of as many principal components as Z
    knn_accuracy_untrained, linear_probe_accuracy_untrained  of the untrained encoder's codes
    """
    check_applicable("probes", dataset, ali)
    del key
    data = _ByIdentity(dataset)
    scalars = {
        **_code_accuracies(ali, variables, dataset),
        **_with_suffix(_pixel_accuracies(data), "pixels"),
        **_with_suffix(_pca_accuracies(data, model.latent_dim(ali)), "pca"),
        **_with_suffix(_untrained_accuracies(data, ali), "untrained"),
        "n_train_labelled": float(len(_labelled(_train(dataset)).x)),
        "n_test_labelled": float(len(_labelled(_test(dataset)).x)),
    }
    return Report(scalars, {})


def posterior(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure posterior_sigma, the encoder's median sigma over at most 10,000 test rows and all dimensions.

    Nothing is drawn from `key`. Raises ValueError for an encoder that is no Gaussian.
    """
    check_applicable("posterior", dataset, ali)
    del key
    test = _test(dataset)
    _, log_sigma = _over_rows(model.posterior, ali, variables, test, dataset.scale)
    return Report({"posterior_sigma": float(np.exp(np.median(log_sigma))), "n_test": float(len(test.x))}, {})


def memorisation(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure memorisation: the median distance of 2,000 samples to the nearest training row, over test's.

    About 1 for samples as far from the training data as test data are, near 0 for copies; infinite where half
    of the test rows stand in train as well. Of train at most 60,000 rows are used, and of test 2,000.
    """
    train = _train(dataset)
    x_tilde = _sample(ali, variables, key, MEMORISATION_ROWS, dataset)
    distance = reconstruction.median_distance(x_tilde, _unit(train.x, dataset.scale))
    scalars = {
        "memorisation": reconstruction.distance_ratio(distance, _test_distance(_ByIdentity(dataset))),
        "n_memorisation": float(MEMORISATION_ROWS),
        "n_train": float(len(train.x)),
    }
    return Report(scalars, {})


def modes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure the coverage of a mixture, with 2,500 samples as `metrics.modes.mode_statistics` does.

    modes         number of modes with at least one sample of high quality: within 3 standard deviations
    modes_strict  number of modes with at least a fifth of their fair share of those
    high_quality  share of the samples that are of high quality
    reverse_kl    KL(high-quality samples over modes || uniform)
    mode_spread   spread of the high-quality samples about their mode, over the true one; 0.974 for the data
    modes_paper   the paper's lenient count, with 10,000 samples
    mode_kept     share of test rows, at most 10,000, whose sampled reconstruction stays with their mode
    """
    check_applicable("modes", dataset, ali)
    assert dataset.modes is not None
    key_samples, key_paper, key_codes = jax.random.split(key, 3)
    test = _test(dataset)
    x_hat = _over_rows(model.reconstruct, ali, variables, test, dataset.scale, key=key_codes)
    x_tilde = _sample(ali, variables, key_samples, MODE_SAMPLES, dataset)
    many = _sample(ali, variables, key_paper, PAPER_MODE_SAMPLES, dataset)
    scalars = {
        **mode_statistics(x_tilde, dataset.modes, dataset.mode_std),
        "modes_paper": float(paper_mode_count(many, dataset.modes)),
        "mode_kept": mode_kept(test.x, x_hat, dataset.modes),
        "n_test": float(len(test.x)),
    }
    return Report(scalars, {})


class _Need(NamedTuple):
    what: str
    is_missing: Callable[[Dataset], bool]


def _is_planar(dataset: Dataset) -> bool:
    return dataset.test.shape == (2,)


def _is_gaussian(encoder: Any) -> bool:
    return hasattr(encoder, "moments") and getattr(encoder, "posterior", "gaussian") == "gaussian"


def _is_no_image(dataset: Dataset) -> bool:
    return len(dataset.test.shape) != 3


_PICTURES = _Need("images or points in the plane", lambda data: _is_no_image(data) and not _is_planar(data))
_LABELS = _Need("labels of two classes or more", lambda data: data.num_classes < 2)
_PAIR = _Need("two test rows or more", lambda data: len(data.test) < 2)
_NEEDS = {
    "samples": (_PICTURES,),
    "reconstructions": (_PICTURES,),
    "interpolations": (_Need("images", _is_no_image), _PAIR),
    "error_extremes": (_Need("images", _is_no_image),),
    "traversals": (_Need("images", _is_no_image),),
    "neighbours": (_Need("images", _is_no_image),),
    "codes": (_Need("three test rows or more", lambda data: len(data.test) < 3),),
    "reconstruction_error": (_PAIR,),
    "class_balance": (_LABELS,),
    "probes": (_LABELS,),
    "modes": (_Need("known modes", lambda data: data.modes is None),),
}


class _Rows(NamedTuple):
    """Rows of a split, on the host."""

    x: np.ndarray  # [N, *X] as stored
    y: np.ndarray | None  # [N, A]
    label: np.ndarray  # [N] int, -1 where there is none


class _ByIdentity:
    """A data set as a key: equal where the splits are the same objects, which it keeps alive."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _ByIdentity)
            and self.dataset.train is other.dataset.train
            and self.dataset.test is other.dataset.test
        )

    def __hash__(self) -> int:
        return hash((id(self.dataset.train), id(self.dataset.test)))


# What does not depend on the trained model is worked out once per data set and process.


@functools.lru_cache(maxsize=4)
def _stored(data: _ByIdentity, split_name: str, most: int) -> _Rows:
    split = getattr(data.dataset, split_name)
    number = min(len(split), most)
    return _read(split, np.arange(number) * len(split) // number)


@functools.lru_cache(maxsize=2)
def _classifier(data: _ByIdentity) -> tuple[Predict, float]:
    """Train the reference classifier; return it and its test accuracy."""
    train, test = _labelled(_train(data.dataset)), _labelled(_test(data.dataset))
    scale = data.dataset.scale
    predict = train_classifier(train.x, train.label, data.dataset.num_classes, scale=scale)
    return predict, float(np.mean(predict(_unit(test.x, scale)) == test.label))


@functools.lru_cache(maxsize=2)
def _pixel_accuracies(data: _ByIdentity) -> dict[str, float]:
    return _accuracies(data.dataset, *_pixels(data.dataset))


@functools.lru_cache(maxsize=2)
def _pca_accuracies(data: _ByIdentity, size: int) -> dict[str, float]:
    train, test = _pixels(data.dataset)
    mean, components = pca(train, min(size, train.shape[1]))
    return _accuracies(data.dataset, (train - mean[None]) @ components, (test - mean[None]) @ components)


@functools.lru_cache(maxsize=2)
def _untrained_accuracies(data: _ByIdentity, ali: ALI) -> dict[str, float]:
    train = _train(data.dataset)
    x, y = _unit(train.x[:500], data.dataset.scale), None if train.y is None else train.y[:500]
    variables = _jitted(model.init, _default_platform())(ali, jax.random.key(UNTRAINED_SEED), x, y)
    return _code_accuracies(ali, variables, data.dataset)


@functools.lru_cache(maxsize=2)
def _test_distance(data: _ByIdentity) -> float:
    train, test = (_unit(rows.x, data.dataset.scale) for rows in (_train(data.dataset), _test(data.dataset)))
    return reconstruction.median_distance(test[:MEMORISATION_ROWS], train)


def _train(dataset: Dataset) -> _Rows:
    return _stored(_ByIdentity(dataset), "train", TRAIN_ROWS)


def _test(dataset: Dataset) -> _Rows:
    return _stored(_ByIdentity(dataset), "test", TEST_ROWS)


def _picture_rows(dataset: Dataset, key: Array, number: int) -> _Rows:
    """Draw distinct test rows; all that there are, if those are fewer."""
    candidates = jax.random.permutation(key, min(len(dataset.test), PICTURE_ROWS))
    return _read(dataset.test, np.asarray(candidates[:number]))


def _read(split: Split, indices: np.ndarray) -> _Rows:
    x, y, label = split.rows(indices)
    label = np.full(len(indices), -1) if label is None else np.asarray(label)
    return _Rows(np.asarray(x), None if y is None else np.asarray(y), label)


def _labelled(rows: _Rows) -> _Rows:
    known = rows.label >= 0
    return rows if known.all() else jax.tree.map(lambda array: array[known], rows)


def _unit(x: np.ndarray, scale: float) -> np.ndarray:
    """Turn stored x into what networks see."""
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32) / np.float32(scale)


def _pixels(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    train, test = (_unit(_labelled(rows).x, dataset.scale) for rows in (_train(dataset), _test(dataset)))
    return train.reshape(len(train), -1), test.reshape(len(test), -1)


def _code_accuracies(ali: ALI, variables: Variables, dataset: Dataset) -> dict[str, float]:
    train, test = (
        _over_rows(model.encode, ali, variables, _labelled(rows), dataset.scale)
        for rows in (_train(dataset), _test(dataset))
    )
    return _accuracies(dataset, train, test)


def _accuracies(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    train_label, test_label = _labelled(_train(dataset)).label, _labelled(_test(dataset)).label
    linear = linear_probe_accuracy(train, train_label, test, test_label, dataset.num_classes)
    return {
        "knn_accuracy": knn_accuracy(train, train_label, test, test_label),
        "linear_probe_accuracy": linear,
    }


def _with_suffix(scalars: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"{name}_{suffix}": value for name, value in scalars.items()}


def _sample(ali: ALI, variables: Variables, key: Array, number: int, dataset: Dataset) -> np.ndarray:
    """Draw x_tilde [number, *X] in blocks; conditions are those of the first test rows, over and over."""
    y = _test(dataset).y
    z = np.asarray(jax.random.normal(key, (number, model.latent_dim(ali))))
    return _decode(ali, variables, z, None if y is None else y[np.arange(number) % len(y)])


def _decode(ali: ALI, variables: Variables, z: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    run = _jitted(model.decode, _platform(variables))
    return map_blocks(functools.partial(run, ali, variables), z, y)


def _over_rows(
    function: Callable[..., PyTree],
    ali: ALI,
    variables: Variables,
    rows: _Rows,
    scale: float,
    *,
    key: Array | None = None,
) -> PyTree:
    """Apply a function of the model to rows, in blocks; with a key, each block has its own noise."""
    run = _jitted(function, _platform(variables))

    def on_block(index: np.ndarray, x: np.ndarray, y: np.ndarray | None) -> PyTree:
        noise = {} if key is None else {"key": jax.random.fold_in(key, index[0])}
        return run(ali, variables, _unit(x, scale), y, **noise)

    return map_blocks(on_block, np.arange(len(rows.x)), rows.x, rows.y)


def _in_both_modes(ali: ALI, variables: Variables, key: Array, batch: Batch) -> tuple:
    """Return codes and samples of the same noise, each in training mode and in evaluation, flat."""
    params, batch_stats = variables
    noise = model.draw_noise(ali, key, batch.x.shape[0])
    pairs, _ = model.generate(ali, params, batch_stats, batch, noise)
    held = {"params": params.encoder, "batch_stats": batch_stats.encoder}
    z_hat = ali.encoder.apply(held, batch.x, noise.epsilon, batch.y, train=False)
    x_tilde = model.decode(ali, variables, noise.z, batch.y)
    flat = [a.reshape(a.shape[0], -1) for a in (pairs.z_hat, z_hat, pairs.x_tilde, x_tilde)]
    return (flat[0], flat[1]), (flat[2], flat[3])


@functools.cache
def _jitted(
    function: Callable[..., PyTree], platform: str, *, static: tuple[int, ...] = (0,)
) -> Callable[..., PyTree]:
    return jax.jit(function, static_argnums=static, compiler_options=compiler_options(platform))


def _platform(variables: Variables) -> str:
    """Return the platform that holds the variables, for which programs are compiled."""
    leaf = jax.tree.leaves(variables)[0]
    return next(iter(leaf.devices())).platform if isinstance(leaf, jax.Array) else _default_platform()


def _default_platform() -> str:
    """Return the platform on which new arrays are placed."""
    return next(iter(jnp.zeros(()).devices())).platform
