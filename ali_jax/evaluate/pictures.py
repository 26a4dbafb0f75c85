"""Evaluators that draw pictures: samples, reconstructions, interpolations, traversals, codes, conditions."""

import jax
import numpy as np

from ali_jax import model
from ali_jax.data import Dataset, unit
from ali_jax.evaluate import figures
from ali_jax.evaluate.declare import (
    CLASS_CONDITIONS,
    IMAGES,
    PICTURES,
    TWO_TEST_ROWS,
    Need,
    evaluator,
    is_planar,
)
from ali_jax.evaluate.numbers import N_TEST, Number
from ali_jax.evaluate.rows import is_given_y, picture_rows, test_rows, train_rows
from ali_jax.evaluate.running import compiled, decode, draw_samples, over_rows, platform_of
from ali_jax.metrics.blocks import ROWS_PER_BLOCK, rows_per_block
from ali_jax.metrics.neighbors import nearest_few
from ali_jax.metrics.probes import pca
from ali_jax.metrics.reconstruction import row_errors
from ali_jax.types import ALI, Array, Report, Variables

SCATTER_POINTS = 2_500  # as in the authors' mixture plots
PICTURE_COLUMNS = 10  # of error_extremes and neighbours
NEIGHBOURS = 3  # training images below each sample
TRAVERSED = 8  # code dimensions shown, those that change the image most
TRAVERSAL_STEPS = 11
TRAVERSAL_END = 2.5  # standard deviations of the prior, to both sides
ATTRIBUTE_COLUMNS = (  # the attributes set in each column of the paper's conditional figure
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


def _lacks_attributes(dataset: Dataset, ali: ALI) -> bool:
    del ali
    shown = {"Attractive", "Male", "Young"}.union(*ATTRIBUTE_COLUMNS)
    return not shown <= set(dataset.attributes)


@evaluator(needs=(PICTURES,))
def samples(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, grid: tuple[int, int] = (10, 10)
) -> Report:
    """Draw samples G_x(z), z ~ N(0, I): a grid of images, or points in the plane.

    `grid` gives its rows and columns. The conditions of conditional models are those of the first test rows.
    """
    if is_planar(dataset):
        x_tilde = draw_samples(ali, variables, key, SCATTER_POINTS, dataset)
        limit = figures.limit_of(test_rows(dataset).x)
        return Report({}, {"samples": figures.scatter([[figures.Panel("x_tilde", x_tilde, limit=limit)]])})
    x_tilde = draw_samples(ali, variables, key, grid[0] * grid[1], dataset)
    return Report({}, {"samples": figures.image_grid(x_tilde, *grid)})


@evaluator(needs=(PICTURES,))
def reconstructions(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, grid: tuple[int, int] = (10, 10)
) -> Report:
    """Draw test data x beside their reconstructions G_x(z_hat), z_hat ~ q(z | x) sampled as in the paper.

    For images `grid` gives the rows and the pairs per row; odd columns are originals. For points in the plane
    one row shows x, x_hat and x_tilde, the other the first two coordinates of z_hat and z.
    """
    if is_planar(dataset):
        panels = plane_panels(ali, variables, key, dataset)
        return Report({}, {"reconstructions": figures.scatter(panels)})
    key_rows, key_code, _ = jax.random.split(key, 3)
    rows = picture_rows(dataset, key_rows, grid[0] * grid[1])
    z_hat = over_rows(model.encode, ali, variables, rows, dataset.divisor, key=key_code)
    x, x_hat = unit(rows.x, dataset.divisor), decode(ali, variables, z_hat, rows.y)
    return Report({}, {"reconstructions": figures.reconstruction_grid(x, x_hat, *grid)})


@evaluator(needs=(IMAGES, TWO_TEST_ROWS))
def interpolations(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    num_pairs: int = 4,
    num_interpolation_steps: int = 11,
) -> Report:
    """Draw decodings on the straight line between the sampled codes of two test images, one row per pair.

    The outer columns are the originals. Between them are num_interpolation_steps + 1 images, which include
    the two reconstructions (paper: 4 rows, 11 steps). Both images get the conditions of the first.
    """
    key_rows, key_code = jax.random.split(key)
    rows = picture_rows(dataset, key_rows, 2 * num_pairs)
    pairs = len(rows.x) // 2
    x0, x1 = (unit(x, dataset.divisor) for x in (rows.x[:pairs], rows.x[pairs : 2 * pairs]))
    y = None if rows.y is None else rows.y[:pairs]
    run = compiled(model.interpolate, platform_of(variables), static=(0, 4))
    path = run(ali, variables, x0, x1, num_interpolation_steps + 1, y, key=key_code)
    return Report({}, {"interpolations": figures.interpolation_grid(x0, np.asarray(path), x1)})


@evaluator(
    needs=(IMAGES,),
    numbers=(
        *(
            Number(
                f"reconstruction_error_{which}",
                f"mean squared error per pixel of the {which} image, x in [0, 1]",
            )
            for which in ("best", "median", "worst")
        ),
        N_TEST,
    ),
)
def error_extremes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Draw the test images that are reconstructed best, worst, and with errors about the median.

    Each of the three pictures has at most 10 originals above their reconstructions from the mean code, by
    rising error. At most 10,000 rows of test are ranked. `key` is not used.
    """
    del key
    test = test_rows(dataset)
    errors = over_rows(model.reconstruct, ali, variables, test, dataset.divisor, read=row_errors)
    order = np.argsort(errors, kind="stable")
    columns, middle = min(PICTURE_COLUMNS, len(order)), len(order) // 2
    first = min(max(middle - columns // 2, 0), len(order) - columns)
    chosen = {
        "best": order[:columns],
        "median": order[first : first + columns],
        "worst": order[len(order) - columns :],
    }
    shown = np.concatenate(list(chosen.values()))
    size = min(len(order), rows_per_block(test.x.shape[1:]))  # that of a compiled program
    some = jax.tree.map(lambda array: array[np.resize(shown, max(size, len(shown)))], test)
    both = over_rows(
        *(model.reconstruct, ali, variables, some, dataset.divisor),
        read=lambda x, x_hat: np.stack([x, x_hat], axis=1),
    )
    pictures = {
        f"error_{name}": figures.image_grid(np.concatenate([pair[:, 0], pair[:, 1]]), 2, columns)
        for name, pair in zip(chosen, np.split(both[: len(shown)], 3), strict=True)
    }
    ranked = errors[order]
    scalars = {"best": ranked[0], "median": ranked[middle], "worst": ranked[-1]}
    named_scalars = {f"reconstruction_error_{name}": float(value) for name, value in scalars.items()}
    return Report({**named_scalars, "n_test": float(len(order))}, pictures)


@evaluator(needs=(IMAGES,))
def traversals(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Draw what single dimensions of the code change in one test image, one row per dimension.

    The mean code of the image is decoded with one dimension moved from -2.5 to 2.5 in 11 steps. The rows are
    the 8 dimensions whose two ends differ most in mean squared error, the largest difference first.
    """
    row = picture_rows(dataset, key, 1)
    z = over_rows(model.encode, ali, variables, row, dataset.divisor)

    def decode_moved(dimensions: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return images [dimensions, values, *X]."""
        moved = np.tile(z[:, None], (len(dimensions), len(values), 1))
        moved[np.arange(len(dimensions)), :, dimensions] = values[None]
        y = None if row.y is None else row.y.repeat(moved.shape[0] * moved.shape[1], axis=0)
        x = decode(ali, variables, moved.reshape(-1, z.shape[1]), y)
        return x.reshape(*moved.shape[:2], *x.shape[1:])

    ends = decode_moved(np.arange(z.shape[1]), np.array([-TRAVERSAL_END, TRAVERSAL_END], z.dtype))
    effects = np.mean(np.square(ends[:, 1] - ends[:, 0]), axis=tuple(range(1, ends.ndim - 1)))
    chosen = np.argsort(-effects, kind="stable")[:TRAVERSED]
    x = decode_moved(chosen, np.linspace(-TRAVERSAL_END, TRAVERSAL_END, TRAVERSAL_STEPS, dtype=z.dtype))
    image = figures.image_grid(x.reshape(-1, *x.shape[2:]), len(chosen), TRAVERSAL_STEPS)
    return Report({}, {"traversals": image})


@evaluator(needs=(IMAGES,))
def neighbours(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Draw samples above their nearest training images; a model that copies shows the same image below.

    Of 500 samples the 10 that are nearest to a training image are shown, the nearest first. Below each are
    its 3 nearest training images, by Euclidean distance between pixels, from at most 60,000 rows of train.
    """
    train, divisor = train_rows(dataset).x, dataset.divisor
    x_tilde = draw_samples(ali, variables, key, ROWS_PER_BLOCK, dataset)
    few = min(NEIGHBOURS, len(train))
    flat_x_tilde, flat_train = (x.reshape(len(x), -1) for x in (x_tilde, train))
    index, distance = nearest_few(flat_x_tilde, flat_train, few, divisor=divisor)
    chosen = np.argsort(distance[:, 0], kind="stable")[:PICTURE_COLUMNS]
    rows = [x_tilde[chosen], *(unit(train[index[chosen, i]], divisor) for i in range(few))]
    return Report({}, {"neighbours": figures.image_grid(np.concatenate(rows), len(rows), len(chosen))})


@evaluator(needs=(Need("three test rows or more", lambda data, _: len(data.test) < 3),))
def codes(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Draw the mean codes of at most 2,500 test rows in the plane, coloured by class.

    They have one colour for stacks, and for a model that is given y, whose encoder is told the class.
    Codes of more than two dimensions are projected on their first two principal components. `key` is not
    used.
    """
    del key
    panel, _ = code_panel(ali, variables, dataset)
    return Report({}, {"codes": figures.scatter([[panel]])})


@evaluator(needs=(PICTURES, CLASS_CONDITIONS))
def conditional_samples(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset, *, grid: tuple[int, int] = (10, 10)
) -> Report:
    """Draw G_x(z, y), one row per class y and one column per z."""
    classes_shown, columns = dataset.num_classes, grid[1]
    z = np.asarray(jax.random.normal(key, (columns, model.latent_dim(ali))))
    y = np.eye(classes_shown, dtype=np.float32)
    x_tilde = decode(ali, variables, np.tile(z, (classes_shown, 1)), y.repeat(columns, axis=0))
    picture = figures.image_grid(x_tilde, classes_shown, columns)
    return Report({}, {"conditional_samples": figures.with_row_names(picture, dataset.attributes)})


@evaluator(needs=(PICTURES, Need("CelebA's attributes as conditions", _lacks_attributes)))
def attribute_grid(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Draw one z under 4 x 12 attribute vectors of CelebA, as in the paper's figure of conditional samples.

    The rows are attractive men and women, young and older. Each column sets the attributes of
    `ATTRIBUTE_COLUMNS` in addition.
    """
    rows = [("Male", "Young"), ("Male",), ("Young",), ()]
    y = np.zeros((len(rows), len(ATTRIBUTE_COLUMNS), len(dataset.attributes)), np.float32)
    for i, of_row in enumerate(rows):
        for j, of_column in enumerate(ATTRIBUTE_COLUMNS):
            y[i, j, [dataset.attributes.index(name) for name in ("Attractive", *of_row, *of_column)]] = 1
    y = y.reshape(-1, y.shape[-1])
    z = np.asarray(jax.random.normal(key, (1, model.latent_dim(ali)))).repeat(len(y), axis=0)
    x_tilde = decode(ali, variables, z, y)
    return Report({}, {"attribute_grid": figures.image_grid(x_tilde, len(rows), len(ATTRIBUTE_COLUMNS))})


def code_panel(ali: ALI, variables: Variables, dataset: Dataset) -> tuple[figures.Panel, float]:
    """Return the points that `codes` draws, and the share of the codes' variance that the plane retains."""
    rows = jax.tree.map(lambda array: array[:SCATTER_POINTS], test_rows(dataset))
    z = over_rows(model.encode, ali, variables, rows, dataset.divisor)
    coloured = dataset.num_classes and dataset.parts is None and not is_given_y(dataset)
    labels = rows.label if coloured else None
    if z.shape[1] == 2:
        return figures.Panel("mean codes", z, labels, names=dataset.class_names), 1.0
    mean, components = pca(z, 2)
    points = (z - mean[None]) @ components
    share = float(points.var(axis=0).sum() / max(z.var(axis=0).sum(), np.finfo(z.dtype).tiny))
    limit = 1.05 * float(np.abs(points[np.isfinite(points)]).max(initial=1.0))  # codes may have diverged
    return figures.Panel("mean codes", points, labels, limit, dataset.class_names), share


def plane_panels(
    ali: ALI, variables: Variables, key: Array, dataset: Dataset
) -> tuple[tuple[figures.Panel, ...], ...]:
    """Return the panels that `reconstructions` draws for data in the plane, in one colour if y is given."""
    key_rows, key_code, key_prior = jax.random.split(key, 3)
    rows = picture_rows(dataset, key_rows, SCATTER_POINTS)
    z_hat = over_rows(model.encode, ali, variables, rows, dataset.divisor, key=key_code)
    x, x_hat = unit(rows.x, dataset.divisor), decode(ali, variables, z_hat, rows.y)
    z = np.asarray(jax.random.normal(key_prior, z_hat.shape))
    x_tilde = decode(ali, variables, z, rows.y)
    labels = None if is_given_y(dataset) else rows.label
    return figures.mixture_panels(x, x_hat, x_tilde, z_hat[:, :2], z[:, :2], labels=labels)
