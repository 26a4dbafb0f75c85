"""The evaluators: a model and a data set in, a Report out.

Every public function here that returns a Report is an evaluator, and configs name it. All have the signature
`(ali, variables, key, dataset, **options)`; the options are those of `config.evaluation` that they accept.
What the numbers are is in the docstrings. "Mean code" is the encoder's output at epsilon = 0. Training data
are all of train or, of a larger split, 60,000 rows spread evenly over it; test data likewise, with 10,000.
Their numbers are reported as n_train and n_test or, where labelled rows alone count, as n_train_labelled and
n_test_labelled. `l2_svm` alone takes every labelled row, as the paper does, and says so in names of its own.
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
from ali_jax.metrics import classes, coverage, frechet, inception, reconstruction, svm, two_sample
from ali_jax.metrics.blocks import ROWS_PER_BLOCK, map_blocks
from ali_jax.metrics.classifier import Classifier, Predict, fit_classifier
from ali_jax.metrics.divergence import joint_divergence as divergence_of_pairs
from ali_jax.metrics.intervals import wilson_interval
from ali_jax.metrics.ladder import Ladder, code_error, ladder
from ali_jax.metrics.modes import mode_counts, mode_kept, mode_statistics, paper_mode_count
from ali_jax.metrics.neighbors import nearest_few
from ali_jax.metrics.probes import knn_accuracy, linear_probe_accuracy, pca
from ali_jax.types import ALI, Array, Batch, Pairs, PyTree, Report, Variables

Evaluator = Callable[..., Report]

TRAIN_ROWS = 60_000
TEST_ROWS = 10_000
PICTURE_ROWS = 5_000  # pictures show rows drawn from the first 5,000 of test, as the authors' scripts do
SCATTER_POINTS = 2_500  # as in the authors' mixture plots
MODE_SAMPLES = 2_500  # the number that modes, modes_strict and reverse_kl are quoted at in the literature
PAPER_MODE_SAMPLES = 10_000  # the paper's own
MEMORISATION_ROWS = 2_000  # samples, and test rows, whose median distance is taken
LADDER_SAMPLES = 10  # of each row's posterior
LADDER_ROWS_PER_BLOCK = 100
LADDER_STARTS = 2  # random codes of each row from which a better one is sought
BATCH_STATISTICS_ROWS = 100  # samples per batch where the decoder normalises by the batch
COVERAGE_BATCHES = 8  # of MODE_SAMPLES samples each
SUPPORT_SAMPLES = 2_000  # among which twins are looked for
CODE_ROWS = 2_000  # distinct test rows, whose codes are tested: the tests hold the square of that
CRITIC_PAIRS = 20_000  # of either kind, of which the critic learns; fewer train rows are taken several times
PICTURE_COLUMNS = 10  # of pictures that show chosen rows
NEIGHBOURS = 3  # training images below each sample
TRAVERSED = 8  # code dimensions, those that change the image most
TRAVERSAL_STEPS = 11
TRAVERSAL_END = 2.5  # standard deviations of the prior, to both sides
BATCH_NORM_ROWS = 100  # of the batch whose statistics are compared with the running ones
UNTRAINED_SEED = 2017  # of the encoder that the probes are compared with
ATTRIBUTE_COLUMNS = (  # of the paper's conditional figure: unchanged, then what is set
    (),
    ("Black_Hair",),
    ("Brown_Hair",),
    ("Blond_Hair",),
    ("Black_Hair", "Wavy_Hair"),
    ("Blond_Hair", "Bangs"),
    ("Blond_Hair", "Receding_Hairline"),
    ("Blond_Hair", "Bald"),
    ("Black_Hair", "Smiling"),
    ("Black_Hair", "Smiling", "Mouth_Slightly_Open"),
    ("Black_Hair", "Smiling", "Mouth_Slightly_Open", "Eyeglasses"),
    ("Black_Hair", "Smiling", "Mouth_Slightly_Open", "Eyeglasses", "Wearing_Hat"),
)
CONTROLS = (  # numbers that are the same whatever the weights
    "n_*",
    "*_pixels",
    "*_pca",
    "*_untrained",
    "classifier_accuracy",
    "*_floor",
    "reconstruction_mse_random_pair",
    "ladder_random_pair",
    "code_*_floor",
    "effective_support_real",
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
    if name == "label_error" and getattr(ali.discriminator, "num_classes", 1) < 2:
        raise ValueError(
            "The evaluator 'label_error' needs a discriminator of K classes, as for the loss "
            "'semi_supervised': leave it out of config.evaluators."
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


def reconstruction_ladder(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    ladder_rows: int = 300,
    ladder_steps: int = 100,
) -> Report:
    """Measure whose fault the error of reconstructions is: mean squared errors per pixel, x in [0, 1].

    ladder_random_pair  between two different test rows, as scale
    ladder_sample       from a sampled code
    ladder_mean         from the mean code
    ladder_best_of_k    from the best of 10 sampled codes
    ladder_refined      after `ladder_steps` Adam steps on the code from the mean one; the best iterate counts
    ladder_searched     likewise from codes of the prior, the better of two
    ladder_decoder_gap  with the best code found: the decoder's share is at most that
    ladder_encoder_gap  the rest of ladder_mean: the encoder's share is at least that
    ladder_code         of z -> x -> z, per dimension and z ~ N(0, I): 2 for a random pair, 1 for code 0

    The first `ladder_rows` of the test rows that evaluators use are taken, with their conditions.
    """
    check_applicable("reconstruction_ladder", dataset, ali)
    test = jax.tree.map(lambda array: array[:ladder_rows], _test(dataset))
    run = _jitted(_climb, _platform(variables), static=(0, 5))

    def on_block(index: np.ndarray, x: np.ndarray, y: np.ndarray | None) -> tuple[Ladder, Array]:
        key_block = jax.random.fold_in(key, index[0])
        return run(ali, variables, key_block, _unit(x, dataset.scale), y, ladder_steps)

    found, code = map_blocks(on_block, np.arange(len(test.x)), test.x, test.y, size=LADDER_ROWS_PER_BLOCK)
    scalars = {f"ladder_{name}": float(np.mean(error)) for name, error in found._asdict().items()}
    scalars |= {
        "ladder_random_pair": reconstruction.random_pair_error(_unit(test.x, dataset.scale)),
        "ladder_decoder_gap": float(np.mean(np.minimum(found.refined, found.searched))),
        "ladder_code": float(np.mean(code)),
        "n_ladder": float(len(test.x)),
    }
    scalars["ladder_encoder_gap"] = scalars["ladder_mean"] - scalars["ladder_decoder_gap"]
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


def frechet_distance(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure how far samples are from train in the features of the reference classifier.

    fid_classifier              Frechet distance of n samples to train, on the last hidden layer's features
    kid_classifier              kernel distance, unbiased
    kid_classifier_error        its standard error over ten blocks
    fid_classifier_floor, kid_classifier_floor
                                the same for n real test rows instead of samples
    n_fid                       n: `num_samples` or, if those are fewer, the number of test rows
    fid_classifier_batch_norm   with the decoder normalising by batches of 100, where it has batch norm
    warn_fid_batch_norm         1 where that and the value with running statistics disagree, else 0

    The numbers compare at one data set, extractor and n only: `frechet_measurements` gives them with their
    provenance.
    """
    check_applicable("frechet_distance", dataset, ali)
    return _frechet_report(ali, variables, key, dataset, classifier_extractor(dataset), num_samples)


def inception_distance(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    num_samples: int = 10_000,
    inception_weights: str = "",
) -> Report:
    """Measure what `frechet_distance` does with Inception-v3: fid_inception, kid_inception and so on.

    `inception_weights` names the .npz file of the weights, which `ali_jax.metrics.inception` describes.
    """
    check_applicable("inception_distance", dataset, ali)
    if not inception_weights:
        raise ValueError(
            "The evaluator 'inception_distance' needs the weights of Inception-v3: set "
            "config.evaluation.inception_weights to an .npz file, as ali_jax.metrics.inception describes."
        )
    extractor = inception_extractor(inception_weights)
    return _frechet_report(ali, variables, key, dataset, extractor, num_samples)


class Extractor(NamedTuple):
    """Features of images, and what they are called in the provenance; any callable will do."""

    name: str  # fid_NAME
    resize: str  # the rule that brings images to the extractor's size
    features: Callable[[np.ndarray], np.ndarray]  # x [N, *X] in [0, 1] -> [N, F]


def classifier_extractor(dataset: Dataset) -> Extractor:
    """Return the reference classifier's last hidden layer; it is trained once per data set and process."""
    return Extractor("classifier", "none", _reference(_ByIdentity(dataset)).features)


@functools.lru_cache(maxsize=1)
def inception_extractor(path: str) -> Extractor:
    """Return Inception-v3 with the weights of an .npz file; a ValueError says what is wrong with it."""
    run = functools.partial(jax.jit(inception.features), inception.load(path))
    return Extractor("inception", inception.RESIZE, lambda x: map_blocks(run, x, size=50))


def frechet_measurements(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    extractor: Extractor,
    *,
    num_samples: int = 10_000,
    weights: str = "given",
) -> dict[str, frechet.Measurement]:
    """Return Frechet and kernel distances to train, each with its provenance.

    Names and numbers are those of `frechet_distance`. `weights` names the variables in the provenance.
    """
    real = _real_features(_ByIdentity(dataset), extractor)
    n = min(num_samples, len(real.test))
    has_batch_norm = bool(jax.tree.leaves(variables.batch_stats.decoder))
    provenance = frechet.Provenance(
        extractor=extractor.name,
        resize=extractor.resize,
        count=n,
        split=f"{dataset.name} {dataset.splits[0]}",
        seed="-".join(map(str, np.ravel(jax.random.key_data(key)))),
        weights=weights,
        batch_norm="running" if has_batch_norm else "none",
    )
    sampled = extractor.features(_sample(ali, variables, key, n, dataset))
    fid, kid = f"fid_{extractor.name}", f"kid_{extractor.name}"
    kernel, kernel_floor = (_kernel_distance(rows, real.train) for rows in (sampled, real.test[:n]))
    floor = frechet.frechet_distance(frechet.moments(real.test[:n]), real.moments)
    of_real = provenance._replace(seed="none", weights="none", batch_norm="none")
    found = {
        fid: (frechet.frechet_distance(frechet.moments(sampled), real.moments), provenance),
        kid: (kernel.value, provenance),
        f"{kid}_error": (kernel.error, provenance),
        f"{fid}_floor": (floor, of_real),
        f"{kid}_floor": (kernel_floor.value, of_real),
    }
    if has_batch_norm:
        by_batch = extractor.features(_sample_by_batch(ali, variables, key, n, dataset))
        distance = frechet.frechet_distance(frechet.moments(by_batch), real.moments)
        found[f"{fid}_batch_norm"] = (distance, provenance._replace(batch_norm="batch"))
    return {name: frechet.Measurement(*pair) for name, pair in found.items()}


def disagreements(averaged: dict[str, float], raw: dict[str, float]) -> dict[str, float]:
    """Return warn_fid_NAME_raw_ema: 1 where the Frechet distances of both parameters disagree, else 0."""
    names = [name for name in averaged if f"{name}_floor" in averaged and name.startswith("fid_")]
    return {
        f"warn_{name}_raw_ema": float(frechet.disagree(averaged[name], raw[name], averaged[f"{name}_floor"]))
        for name in names
        if name in raw
    }


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


def l2_svm(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    svm_labels: int = 1000,
    svm_draws: int = 100,
) -> Report:
    """Measure the error of linear L2-SVMs on few labels, by the protocol of the paper (section 4.4).

    svm_error              mean test error of machines fitted to `svm_draws` draws of `svm_labels` rows, as
                           many of every class
    svm_error_std          its standard deviation over the draws
    svm_error_low, svm_error_high
                           95 % interval (Wilson) for svm_error from the number of test rows; the spread over
                           draws is no part of it
    svm_validation_error   mean validation error over ten other draws, at the same C
    svm_log_c              natural logarithm of C, chosen on validation rows with one more draw
    svm_gap                largest relative duality gap of the machines; above 1e-8 a fit did not converge

    Features are `model.features`: the code at epsilon = 0 and the encoder's last three layers before their
    nonlinearity, unscaled. Validation rows are the last of train's labelled rows, 10,000 of 60,000 or more
    and 3 in 17 of fewer; labels are drawn from the rows before them, and all labelled rows of test are
    scored. The paper's number on SVHN needs its `train` and `test` splits, whatever the networks saw.
    """
    check_applicable("l2_svm", dataset, ali)
    train_labels, test_labels = (_all_labels(_ByIdentity(dataset), name) for name in ("train", "test"))
    known = np.flatnonzero(train_labels >= 0)
    rows_pool, rows_held = np.split(known, [len(known) - svm.validation_size(len(known))])
    seed = int(jax.random.bits(key))
    draws = svm.protocol_draws(seed, train_labels[rows_pool], dataset.num_classes, svm_labels, svm_draws)
    used, within = np.unique(np.concatenate(draws), return_inverse=True)
    draws = svm.Draws(*np.split(within, np.cumsum([len(rows) for rows in draws[:-1]])))

    def labelled(split: Split, indices: np.ndarray) -> svm.Labelled:
        rows = _read(split, indices)
        return svm.Labelled(_over_rows(model.features, ali, variables, rows, dataset.scale), rows.label)

    pool, validation = labelled(dataset.train, rows_pool[used]), labelled(dataset.train, rows_held)
    test = labelled(dataset.test, np.flatnonzero(test_labels >= 0))
    found = svm.svm_protocol(pool, validation, test, draws, dataset.num_classes)
    error, number = float(np.mean(found.test_errors)), len(test.labels)
    low, high = wilson_interval(error * number, number)
    scalars = {
        "svm_error": error,
        "svm_error_std": float(np.std(found.test_errors)),
        "svm_error_low": low,
        "svm_error_high": high,
        "svm_validation_error": float(np.mean(found.validation_errors)),
        "svm_log_c": float(np.log(found.c)),
        "svm_gap": found.gap,
        "n_svm_labels": float(svm_labels),
        "n_svm_draws": float(svm_draws),
        "n_svm_pool": float(len(rows_pool)),
        "n_svm_validation": float(len(rows_held)),
        "n_svm_test": float(number),
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


def conditional_samples(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, grid: tuple[int, int] = (10, 10)
) -> Report:
    """Show G_x(z, y) for classes y: a row per class, in whose columns z is the same."""
    check_applicable("conditional_samples", dataset, ali)
    classes_shown, columns = dataset.num_classes, grid[1]
    z = np.asarray(jax.random.normal(key, (columns, model.latent_dim(ali))))
    y = np.eye(classes_shown, dtype=np.float32)
    x_tilde = _decode(ali, variables, np.tile(z, (classes_shown, 1)), y.repeat(columns, axis=0))
    return Report({}, {"conditional_samples": figures.image_grid(x_tilde, classes_shown, columns)})


def condition_agreement(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_samples: int = 10_000
) -> Report:
    """Measure how often samples G_x(z, y) are of the class y that they were asked to be.

    condition_agreement      share of `num_samples` samples, as many of each class, that the reference
                             classifier gives the class y
    condition_agreement_min  the same of the class where it is smallest
    classifier_accuracy      of the classifier on test; it is trained on train only
    """
    check_applicable("condition_agreement", dataset, ali)
    predict, accuracy = _classifier(_ByIdentity(dataset))
    label = np.arange(num_samples) % dataset.num_classes
    z = np.asarray(jax.random.normal(key, (num_samples, model.latent_dim(ali))))
    x_tilde = _decode(ali, variables, z, np.eye(dataset.num_classes, dtype=np.float32)[label])
    right = predict(x_tilde) == label
    scalars = {
        "condition_agreement": float(right.mean()),
        "condition_agreement_min": float(min(right[label == k].mean() for k in range(dataset.num_classes))),
        "classifier_accuracy": accuracy,
        "n_samples": float(num_samples),
    }
    return Report(scalars, {})


def attribute_grid(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Show one z under 4 x 12 attribute vectors of CelebA, as in the paper's figure of conditional samples.

    Rows: attractive men and women, young and older. Columns: `ATTRIBUTE_COLUMNS` are set in addition.
    """
    check_applicable("attribute_grid", dataset, ali)
    rows = [("Male", "Young"), ("Male",), ("Young",), ()]
    y = np.zeros((len(rows), len(ATTRIBUTE_COLUMNS), len(dataset.attributes)), np.float32)
    for i, of_row in enumerate(rows):
        for j, of_column in enumerate(ATTRIBUTE_COLUMNS):
            y[i, j, [dataset.attributes.index(name) for name in ("Attractive", *of_row, *of_column)]] = 1
    y = y.reshape(-1, y.shape[-1])
    z = np.asarray(jax.random.normal(key, (1, model.latent_dim(ali)))).repeat(len(y), axis=0)
    x_tilde = _decode(ali, variables, z, y)
    return Report({}, {"attribute_grid": figures.image_grid(x_tilde, len(rows), len(ATTRIBUTE_COLUMNS))})


def label_error(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, num_codes: int = 10
) -> Report:
    """Measure the test error of a discriminator of K classes, of at most 10,000 test rows.

    label_error          of argmax_k l_k(x, z) at the mean code z
    label_error_sampled  of the class with the largest probability, averaged over `num_codes` sampled codes
    """
    check_applicable("label_error", dataset, ali)
    test = _labelled(_test(dataset))
    logits = functools.partial(_over_rows, _class_probabilities, ali, variables, test, dataset.scale)
    sampled = sum(logits(key=k) for k in jax.random.split(key, num_codes))
    scalars = {
        "label_error": float(np.mean(np.argmax(logits(), axis=-1) != test.label)),
        "label_error_sampled": float(np.mean(np.argmax(sampled, axis=-1) != test.label)),
        "n_test_labelled": float(len(test.x)),
    }
    return Report(scalars, {})


def _class_probabilities(
    ali: ALI, variables: Variables, x: Array, y: Array | None = None, *, key: Array | None = None
) -> Array:
    z = model.encode(ali, variables, x, y, key=key)
    return jax.nn.softmax(model.discriminate(ali, variables, x, z, y), axis=-1)


def code_distribution(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Compare q(z) with p(z) as `metrics.two_sample.code_statistics` does.

    code_mmd, code_energy  squared MMD and energy distance of codes from prior draws, both with expectation 0
                           where q(z) = p(z)
    code_neighbor          share of rows whose nearest neighbour is of their own sample; 1/2 where q(z) = p(z)
    code_ks                largest Kolmogorov-Smirnov distance of one dimension from N(0, 1)
    code_mmd_p, code_energy_p, code_neighbor_p, code_ks_p
                           their p-values; at a fixed n the distance is the finding
    code_mean_error, code_covariance_error
                           |mean| / sqrt(Z) and |covariance - I|_F / Z
    code_mean_error_floor, code_covariance_error_floor
                           what true draws of the prior have at this n
    code_width, code_width_min, code_width_max
                           standard deviation of q(z | x), of all dimensions, the narrowest, the widest; near
                           1: that dimension says nothing about x

    One sampled code of each distinct test row, at most 2,000 (n_codes), with as many draws of the prior.
    """
    check_applicable("code_distribution", dataset, ali)
    key_codes, key_other, key_prior = jax.random.split(key, 3)
    rows = _distinct_test(_ByIdentity(dataset))
    z_hat, other = (
        _over_rows(model.encode, ali, variables, rows, dataset.scale, key=k) for k in (key_codes, key_other)
    )
    z = np.asarray(jax.random.normal(key_prior, z_hat.shape))
    scalars = two_sample.code_statistics(z_hat, other, z, _generator(key))
    return Report({**scalars, "n_codes": float(len(z))}, {})


def joint_divergence(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Bound the Jensen-Shannon divergence of q(x, z) and p(x, z), which ALI minimises, by a fresh critic.

    joint_jsd           lower bound in nats, of log 2 at most; 0 where the joints are equal
    joint_jsd_se        its standard error
    joint_accuracy      of the critic; 1/2 where it sees no difference

    It is trained on 20,000 pairs of either kind with x of train, stopped by a fifth of the train rows that it
    does not learn from, and judged on one sampled code of each test row, at most 10,000 (n_test).
    """
    check_applicable("joint_divergence", dataset, ali)
    train, test = _train(dataset), _test(dataset)
    aside = np.arange(len(train.x)) % 5 == 0
    learnt = np.flatnonzero(~aside)
    index = learnt[np.arange(CRITIC_PAIRS) * len(learnt) // CRITIC_PAIRS]
    parts = (jax.tree.map(lambda array, at=at: array[at], train) for at in (index, np.flatnonzero(aside)))
    pairs = [
        _draw_pairs(ali, variables, k, rows, dataset.scale)
        for k, rows in zip(jax.random.split(key, 3), (*parts, test), strict=True)
    ]
    found = divergence_of_pairs(*pairs)
    scalars = {
        "joint_jsd": found.jensen_shannon,
        "joint_jsd_se": found.standard_error,
        "joint_accuracy": found.accuracy,
        "n_test": float(len(test.x)),
    }
    return Report(scalars, {})


def discriminator_use_of_z(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how much D looks at z, on both kinds of pairs of each distinct test row, at most 2,000.

    d_logit_change  mean |s(x, z) - s(x, z')|, z' shuffled within each kind of pairs; 0 if D ignores z
    d_auc           of D, telling the two kinds of pairs apart; 1/2 at the game's solution
    d_auc_drop      what that loses when z is shuffled
    """
    check_applicable("discriminator_use_of_z", dataset, ali)
    pairs = _draw_pairs(ali, variables, key, _distinct_test(_ByIdentity(dataset)), dataset.scale)
    run = functools.partial(_jitted(model.discriminate, _platform(variables)), ali, variables)
    rng = _generator(key)
    logits = [
        map_blocks(run, x, z[order], pairs.y)
        for x, z in ((pairs.x, pairs.z_hat), (pairs.x_tilde, pairs.z))
        for order in (np.arange(len(z)), two_sample.derangement(rng, len(z)))
    ]
    found = {f"d_{name}": value for name, value in two_sample.use_of_z(*logits)._asdict().items()}
    return Report({**found, "n_pairs": float(len(pairs.x))}, {})


def mode_coverage(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Estimate how many of the known modes, or else classes, the model covers; 95 % intervals (_low, _high).

    coverage_expected  modes hit by 2,500 samples, on average over such samples (`metrics.coverage`)
    coverage_frequent  modes with at least a fifth of their fair share of all samples; where the reference
                       classifier reads them off, its errors on test are accounted for

    20,000 samples are drawn (n_samples). A sample hits a known mode within three standard deviations.
    """
    check_applicable("mode_coverage", dataset, ali)
    x_tilde = _sample(ali, variables, key, COVERAGE_BATCHES * MODE_SAMPLES, dataset)
    confusion = None
    if dataset.modes is not None:
        batches = x_tilde.reshape(COVERAGE_BATCHES, MODE_SAMPLES, -1)
        counts = np.stack([mode_counts(batch, dataset.modes, dataset.mode_std) for batch in batches])
    else:
        predict, _ = _classifier(_ByIdentity(dataset))
        test = _labelled(_test(dataset))
        confusion = np.zeros((dataset.num_classes, dataset.num_classes), int)
        np.add.at(confusion, (test.label, predict(_unit(test.x, dataset.scale))), 1)
        read = predict(x_tilde).reshape(COVERAGE_BATCHES, MODE_SAMPLES)
        counts = np.stack([np.bincount(labels, minlength=dataset.num_classes) for labels in read])
    fair_fifth = 0.2 / counts.shape[1]
    frequent = coverage.frequent_modes(counts.sum(axis=0), len(x_tilde), fair_fifth, confusion=confusion)
    scalars = {
        **_with_ends("coverage_expected", coverage.expected_modes(counts)),
        **_with_ends("coverage_frequent", frequent),
        "n_samples": float(len(x_tilde)),
    }
    return Report(scalars, {})


def effective_support(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Estimate how many different things the model makes, from the twins among 2,000 samples.

    effective_support        1 / sum p^2, with a 95 % interval (_low, _high), as `metrics.coverage` does
    effective_support_real   the same of real data, twins between test and train, as scale

    Twins are rows closer than 99 % of test rows (at most 2,000) are to their nearest row of train.
    """
    check_applicable("effective_support", dataset, ali)
    threshold, real = _real_support(_ByIdentity(dataset))
    twins = coverage.twins(_sample(ali, variables, key, SUPPORT_SAMPLES, dataset), threshold)
    scalars = {
        **_with_ends("effective_support", coverage.effective_support(twins)),
        "effective_support_real": real,
        "n_support": float(SUPPORT_SAMPLES),
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


def _lacks_attributes(dataset: Dataset) -> bool:
    shown = {"Attractive", "Male", "Young"}.union(*ATTRIBUTE_COLUMNS)
    return not shown <= set(dataset.attributes)


_PICTURES = _Need("images or points in the plane", lambda data: _is_no_image(data) and not _is_planar(data))
_LABELS = _Need("labels of two classes or more", lambda data: data.num_classes < 2)
_CLASS_CONDITIONS = _Need(
    "classes as conditions (config.dataset.conditional)",
    lambda data: not data.num_classes or len(data.attributes) != data.num_classes,
)
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
    "reconstruction_ladder": (_PAIR,),
    "class_balance": (_LABELS,),
    "l2_svm": (_LABELS,),
    "probes": (_LABELS,),
    "frechet_distance": (_LABELS,),
    "inception_distance": (_Need("images", _is_no_image),),
    "modes": (_Need("known modes", lambda data: data.modes is None),),
    "conditional_samples": (_PICTURES, _CLASS_CONDITIONS),
    "condition_agreement": (_LABELS, _CLASS_CONDITIONS),
    "attribute_grid": (_PICTURES, _Need("CelebA's attributes as conditions", _lacks_attributes)),
    "label_error": (_LABELS,),
    "mode_coverage": (
        _Need("known modes or labels", lambda data: data.modes is None and data.num_classes < 2),
    ),
    "code_distribution": (_PAIR,),
    "discriminator_use_of_z": (_PAIR,),
    "joint_divergence": (_PAIR, _Need("two train rows or more", lambda data: len(data.train) < 2)),
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


@functools.lru_cache(maxsize=4)
def _all_labels(data: _ByIdentity, split_name: str) -> np.ndarray:
    """Return the labels of every row, -1 where there is none, holding x of few rows at a time."""
    split = getattr(data.dataset, split_name)
    parts = np.array_split(np.arange(len(split)), -(-len(split) // TEST_ROWS))
    return np.concatenate([_read(split, indices).label for indices in parts])


@functools.lru_cache(maxsize=2)
def _classifier(data: _ByIdentity) -> tuple[Predict, float]:
    """Train the reference classifier; return it and its test accuracy."""
    test = _labelled(_test(data.dataset))
    predict = _reference(data).predict
    return predict, float(np.mean(predict(_unit(test.x, data.dataset.scale)) == test.label))


@functools.lru_cache(maxsize=2)
def _reference(data: _ByIdentity) -> Classifier:
    train = _labelled(_train(data.dataset))
    return fit_classifier(train.x, train.label, data.dataset.num_classes, scale=data.dataset.scale)


class _RealFeatures(NamedTuple):
    train: np.ndarray  # [N, F]
    test: np.ndarray  # [M, F]
    moments: frechet.Moments  # of train


@functools.lru_cache(maxsize=2)
def _real_features(data: _ByIdentity, extractor: Extractor) -> _RealFeatures:
    scale = data.dataset.scale
    train, test = (
        extractor.features(_unit(rows.x, scale)) for rows in (_train(data.dataset), _test(data.dataset))
    )
    blocks = np.array_split(train, 1 + len(train) // TEST_ROWS)
    return _RealFeatures(train, test, frechet.stream(blocks))


def _frechet_report(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, extractor: Extractor, num_samples: int
) -> Report:
    found = frechet_measurements(ali, variables, key, dataset, extractor, num_samples=num_samples)
    scalars = {name: measurement.value for name, measurement in found.items()}
    fid = f"fid_{extractor.name}"
    if (by_batch := scalars.get(f"{fid}_batch_norm")) is not None:
        unlike = frechet.disagree(scalars[fid], by_batch, scalars[f"{fid}_floor"])
        scalars["warn_fid_batch_norm"] = float(unlike)
    return Report({**scalars, "n_fid": float(found[fid].provenance.count)}, {})


def _kernel_distance(rows: np.ndarray, reference: np.ndarray) -> frechet.Estimate:
    """Return the kernel distance in ten blocks of rows in random order; nan where they are too few."""
    rng = np.random.default_rng(0)
    if min(len(rows), len(reference)) < 20:
        return frechet.Estimate(float("nan"), float("nan"))
    return frechet.kernel_distance(rng.permutation(rows), rng.permutation(reference))


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


@functools.lru_cache(maxsize=2)
def _real_support(data: _ByIdentity) -> tuple[float, float]:
    """Return the distance below which rows are twins, and the effective support of real data."""
    train, test = (_unit(rows.x, data.dataset.scale) for rows in (_train(data.dataset), _test(data.dataset)))
    test = test[np.arange(min(len(test), SUPPORT_SAMPLES)) * len(test) // min(len(test), SUPPORT_SAMPLES)]
    threshold = coverage.duplicate_threshold(test, train)
    return threshold, coverage.cross_support(coverage.twins(test, threshold, train), len(train)).estimate


def _train(dataset: Dataset) -> _Rows:
    return _stored(_ByIdentity(dataset), "train", TRAIN_ROWS)


def _test(dataset: Dataset) -> _Rows:
    return _stored(_ByIdentity(dataset), "test", TEST_ROWS)


@functools.lru_cache(maxsize=4)
def _distinct_test(data: _ByIdentity) -> _Rows:
    """Return at most CODE_ROWS test rows, none twice, spread evenly."""
    test = _test(data.dataset)
    _, first = np.unique(test.x.reshape(len(test.x), -1), axis=0, return_index=True)
    number = min(len(first), CODE_ROWS)
    chosen = np.sort(first)[np.arange(number) * len(first) // number]
    return jax.tree.map(lambda array: array[chosen], test)


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


def _with_ends(name: str, interval: coverage.Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _with_suffix(scalars: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"{name}_{suffix}": value for name, value in scalars.items()}


def _climb(
    ali: ALI, variables: Variables, key: Array, x: Array, y: Array | None, steps: int
) -> tuple[Ladder, Array]:
    """Climb the ladder for x [N, *X], and return beside it the errors [N] of z -> x -> z."""
    key_samples, key_starts, key_prior = jax.random.split(key, 3)
    encode = functools.partial(model.encode, ali, variables, y=y)
    decode = functools.partial(model.decode, ali, variables, y=y)
    samples = jnp.stack([encode(x, key=k) for k in jax.random.split(key_samples, LADDER_SAMPLES)])
    starts = jax.random.normal(key_starts, (LADDER_STARTS, len(x), model.latent_dim(ali)))
    z = jax.random.normal(key_prior, starts.shape[1:])
    return ladder(decode, x, encode(x), samples, starts, steps=steps), code_error(encode, decode, z)


def _sample(ali: ALI, variables: Variables, key: Array, number: int, dataset: Dataset) -> np.ndarray:
    """Draw x_tilde [number, *X] in blocks; conditions are those of the first test rows, over and over."""
    y = _test(dataset).y
    z = np.asarray(jax.random.normal(key, (number, model.latent_dim(ali))))
    y = None if y is None else y[np.arange(number) % len(y)]
    return _decode(ali, variables, z, y, key=jax.random.fold_in(key, 1))


def _sample_by_batch(ali: ALI, variables: Variables, key: Array, number: int, dataset: Dataset) -> np.ndarray:
    """Draw the codes of `_sample`, and decode them in full batches with the statistics of each batch."""
    z = np.asarray(jax.random.normal(key, (number, model.latent_dim(ali))))
    rows = np.arange(-(-number // BATCH_STATISTICS_ROWS) * BATCH_STATISTICS_ROWS)
    y = _test(dataset).y
    run = functools.partial(_jitted(_decode_by_batch, _platform(variables)), ali, variables, key)
    conditions = None if y is None else y[rows % number % len(y)]
    return map_blocks(run, z[rows % number], conditions, size=BATCH_STATISTICS_ROWS)[:number]


def _decode_by_batch(ali: ALI, variables: Variables, key: Array, z: Array, y: Array | None) -> Array:
    """Decode in training mode; what is random in the decoder besides z is the same in every batch."""
    held = {"params": variables.params.decoder, "batch_stats": variables.batch_stats.decoder}
    streams = {"dropout": key, "noise": key}
    x, _ = ali.decoder.apply(held, z, y, train=True, rngs=streams, mutable=["batch_stats"])
    return x


def _draw_pairs(ali: ALI, variables: Variables, key: Array, rows: _Rows, scale: float) -> Pairs:
    """Draw z_hat ~ q(z | x) for every row, and as many pairs of the decoder; arrays of the host."""
    key_codes, key_prior, key_decoder = jax.random.split(key, 3)
    z_hat = _over_rows(model.encode, ali, variables, rows, scale, key=key_codes)
    z: Any = np.asarray(jax.random.normal(key_prior, z_hat.shape))
    x: Any = _unit(rows.x, scale)
    y: Any = rows.y
    x_tilde: Any = _decode(ali, variables, z, y, key=key_decoder)
    return Pairs(x, z_hat, x_tilde, z, y)


def _decode(
    ali: ALI, variables: Variables, z: np.ndarray, y: np.ndarray | None, *, key: Array | None = None
) -> np.ndarray:
    """Decode in blocks; with a key, a decoder with noise of its own has other noise in each."""
    run = _jitted(model.decode, _platform(variables))

    def on_block(index: np.ndarray, z: np.ndarray, y: np.ndarray | None) -> Array:
        noise = {} if key is None else {"key": jax.random.fold_in(key, index[0])}
        return run(ali, variables, z, y, **noise)

    return map_blocks(on_block, np.arange(len(z)), z, y)


def _generator(key: Array) -> np.random.Generator:
    """Return numpy's generator for what is drawn on the host."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


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
