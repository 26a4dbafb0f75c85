"""The paper's semi-supervised protocol: linear L2-SVMs on few labels, over many draws of the labels.

The solver is our own because it takes a fourteenth of the time of scikit-learn's LinearSVC on the
protocol. It runs on the host, in float64 with LAPACK. Features are unscaled and C goes up to e^20, so
that 1/2C is as small as 1e-9 while the eigenvalues of the Gram matrix reach 1e6, beyond the precision of
float32. A linear system has one row per active example, a number that changes with class and step: a
compiled program would have to solve the largest system each time.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.linalg import get_lapack_funcs
from threadpoolctl import ThreadpoolController

TOLERANCE = 1e-8  # duality gap at which a fit ends, relative to the objective
FULL_STEPS = 30  # Newton steps before steps are shortened; 3 to 10 usually suffice
MAX_STEPS = 200
ROUNDING = 1e-12  # generous relative bound on the rounding error of the objective
SHARED_ROWS = 12_000  # the most rows whose Gram matrix is stored, 1.2 GB
VALIDATION_DRAWS = 10  # the validation error is their mean, as in the authors' script
LOG_C = np.linspace(-20, 20, 50)  # natural logarithms of the candidate values of C, from the same script

_POSV, _POTRF, _POTRI = get_lapack_funcs(("posv", "potrf", "potri"), dtype=np.float64)

# (active [N, K], signs [N, K]) -> the minimiser of the objective in which only the active examples count
_Newton: TypeAlias = Callable[[np.ndarray, np.ndarray], "_Point"]


class LinearSVM(NamedTuple):
    """Scores of a row x [F] are x @ weights + bias. Several machines are stacked along leading axes."""

    weights: np.ndarray  # [F, K] float64
    bias: np.ndarray  # [K]
    gap: np.ndarray  # [K] duality gap over objective; at most TOLERANCE, or the search did not converge


class Draws(NamedTuple):
    """Indices of the rows whose labels are used; each row of these arrays is a class-balanced draw."""

    selection: np.ndarray  # [1, N] for the choice of C
    validation: np.ndarray  # [10, N] for the validation error
    test: np.ndarray  # [D, N] for the test error


class Labelled(NamedTuple):
    """Features and their classes."""

    features: np.ndarray  # [N, F]
    labels: np.ndarray  # [N] integers in [0, K)


class Selection(NamedTuple):
    """The C with the lowest validation error, the first of equals."""

    c: float
    errors: np.ndarray  # [len(cs)] validation error of each value


class SVMResult(NamedTuple):
    """The result of the protocol. Errors are fractions."""

    c: float
    selection_errors: np.ndarray  # [50] validation error of each C of the grid, with one draw
    validation_errors: np.ndarray  # [10] at the chosen C, with other draws
    test_errors: np.ndarray  # [D] at the chosen C, with yet other draws
    gap: float  # the largest relative duality gap of the machines whose errors these are


class _Point(NamedTuple):
    """One w per class: the sum over examples of beta times x."""

    beta: np.ndarray  # [N, K]
    outputs: np.ndarray  # [N, K] the scores of the examples
    slack: np.ndarray  # [N, K] 1 - sign * outputs, without cancellation where examples are active


def fit_l2_svm(features: np.ndarray, labels: np.ndarray, num_classes: int, c: float) -> LinearSVM:
    """Fit one-vs-rest linear SVMs with squared hinge loss to features [N, F] and labels [N].

    Class k minimises liblinear's 1/2 |w|^2 + c sum_i max(0, 1 - s_i w.x_i)^2, where s_i is 1 in class k and
    -1 elsewhere, and x_i ends in a constant 1: the intercept is that entry of w and is penalised with it.
    """
    rows = np.arange(len(features))[None]
    return LinearSVM(*(array[0] for array in fit_draws(features, labels, rows, num_classes, c)))


def fit_draws(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray, num_classes: int, c: float
) -> LinearSVM:
    """Fit the machines of `fit_l2_svm` to each draw, rows [D, N] of features [M, F] and labels [M].

    Returns weights [D, F, K], bias [D, K] and gap [D, K]. Where draws overlap, their Gram matrix is
    computed once.
    """
    _check(features, labels, num_classes, c)
    used = np.unique(rows)
    shared = None
    if len(used) <= SHARED_ROWS and len(used) ** 2 < rows.size * rows.shape[1]:
        shared = _gram(_augmented(features[used]))
    fits = []
    for draw in rows:
        x = _augmented(features[draw])
        within = np.searchsorted(used, draw)
        gram = _gram(x) if shared is None else shared[np.ix_(within, within)]
        signs = _signs(labels[draw], num_classes)
        fits.append(_fit(x, gram, signs, c)[0])
    return LinearSVM(*(np.stack(arrays) for arrays in zip(*fits, strict=True)))


def fit_path(features: np.ndarray, labels: np.ndarray, num_classes: int, cs: np.ndarray) -> LinearSVM:
    """Fit the machines of `fit_l2_svm` for each of several values of C, each from the solution before.

    Returns weights [len(cs), F, K], and bias and gap likewise.
    """
    for c in cs:
        _check(features, labels, num_classes, c)
    x, signs = _augmented(features), _signs(labels, num_classes)
    gram, point, fits = _gram(x), None, []
    for c in cs:
        machine, point = _fit(x, gram, signs, c, point)
        fits.append(machine)
    return LinearSVM(*(np.stack(arrays) for arrays in zip(*fits, strict=True)))


def error_rates(machines: LinearSVM, data: Labelled) -> np.ndarray:
    """Return the share of rows that each of the stacked machines [D] classifies wrongly."""
    number, size, num_classes = machines.weights.shape
    weights = np.moveaxis(machines.weights, 0, 1).reshape(size, -1).astype(np.float32)
    scores = np.asarray(data.features, np.float32) @ weights + machines.bias.reshape(1, -1).astype(np.float32)
    predictions = scores.reshape(-1, number, num_classes).argmax(axis=-1)
    return np.mean(predictions != data.labels[:, None], axis=0)


def class_balanced_draws(
    seed: int, labels: np.ndarray, num_classes: int, per_class: int, draws: int
) -> np.ndarray:
    """Draw `per_class` rows of every class, without replacement, `draws` times: [draws, K * per_class].

    Rows are those of labels [N]; those with negative labels are never drawn.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == k) for k in range(num_classes)]
    few = min(members, key=len)
    if per_class < 1 or len(few) < per_class:
        scarce = [len(rows) for rows in members].index(len(few))
        raise ValueError(
            f"{per_class} labels of each class were asked for, and class {scarce} has {len(few)} in the "
            "pool: ask for at least one and at most that many."
        )
    return np.stack(
        [
            np.concatenate([rng.choice(rows, per_class, replace=False) for rows in members])
            for _ in range(draws)
        ]
    )


def protocol_draws(seed: int, labels: np.ndarray, num_classes: int, total: int, draws: int) -> Draws:
    """Draw the rows for all parts of the protocol from labels [N]: `total` balanced rows per draw."""
    if total < 1 or total % num_classes:
        raise ValueError(
            f"{total} labels cannot be divided equally among {num_classes} classes: ask for a multiple of "
            f"{num_classes}."
        )
    number = 1 + VALIDATION_DRAWS + draws
    rows = class_balanced_draws(seed, labels, num_classes, total // num_classes, number)
    return Draws(rows[:1], rows[1 : 1 + VALIDATION_DRAWS], rows[1 + VALIDATION_DRAWS :])


def validation_size(number: int) -> int:
    """Return how many of `number` labelled training rows, the last ones, are held out to choose C.

    It is 10,000 for 60,000 rows or more, as in the paper, and 3 in 17 for fewer, such as 1,500 of 8,500.
    """
    return 10_000 if number >= 60_000 else number * 3 // 17


def select_c(train: Labelled, validation: Labelled, num_classes: int, cs: np.ndarray) -> Selection:
    """Choose among cs, in ascending order, by the error on `validation` of machines fitted to `train`."""
    errors = error_rates(fit_path(*train, num_classes, cs), validation)
    return Selection(float(cs[np.argmin(errors)]), errors)


def svm_protocol(
    pool: Labelled, validation: Labelled, test: Labelled, draws: Draws, num_classes: int
) -> SVMResult:
    """Run the protocol of the paper's L2-SVM on SVHN (section 4.4 and the authors' script).

    C is chosen among e^-20 ... e^20 with one draw from the pool, by the error on `validation`. With that C,
    machines are fitted to ten other draws, whose errors on `validation` are returned, and to D more, whose
    errors on `test` are.
    """
    first = Labelled(*(array[draws.selection[0]] for array in pool))
    c, selection_errors = select_c(first, validation, num_classes, np.exp(LOG_C))
    machines = fit_draws(*pool, np.concatenate([draws.validation, draws.test]), num_classes, c)
    number = len(draws.validation)
    on_validation, on_test = (
        LinearSVM(*(array[part] for array in machines)) for part in (slice(number), slice(number, None))
    )
    return SVMResult(
        c,
        selection_errors,
        error_rates(on_validation, validation),
        error_rates(on_test, test),
        float(np.max(machines.gap)),
    )


def _check(features: np.ndarray, labels: np.ndarray, num_classes: int, c: float) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"Features of shape {features.shape} and labels of shape {labels.shape} do not go together: give "
            "[N, F] and [N] with N at least 1."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"The labels lie between {labels.min()} and {labels.max()}: with {num_classes} classes they must "
            f"be 0 to {num_classes - 1}."
        )
    if not 0 < c < float("inf"):
        raise ValueError(f"C is {c}: it must be positive and finite.")


def _augmented(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1, dtype=np.float64)


def _gram(x: np.ndarray) -> np.ndarray:
    return x @ x.T


def _signs(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.where(labels[:, None] == np.arange(num_classes)[None], 1.0, -1.0)


def _fit(
    x: np.ndarray, gram: np.ndarray, signs: np.ndarray, c: float, start: _Point | None = None
) -> tuple[LinearSVM, _Point]:
    """Minimise from `start`, or from w = 0; return the machines and the solution they are made from.

    The problem is divided by 2c: ridge / 2 |w|^2 + 1/2 sum max(0, slack)^2 with ridge = 1/2c. A ridge
    below the rounding error of the Gram matrix is raised to it; at so large a C the margin is hard.
    """
    if not np.isfinite(gram).all():  # of a model that has diverged
        broken = np.full_like(signs, np.nan)
        return LinearSVM(x[0, :-1, None] * broken[:1], broken[0], broken[0]), _Point(broken, broken, broken)
    scale = np.trace(gram)
    ridge = max(1 / (2 * c), np.finfo(np.float64).eps * scale)
    if start is None:
        start = _Point(np.zeros_like(signs), np.zeros_like(signs), np.ones_like(signs))
    # With fewer features than examples, the dual's systems can be as ill-conditioned as the ridge is small.
    in_dual = len(x) <= x.shape[1] or scale < 1e8 * ridge
    with _threads().limit(limits=1, user_api="blas"):
        newton = _dual_newton(gram, ridge) if in_dual else _full_rank_newton(x, gram, ridge)
        point, gap = _minimise(newton, signs, ridge, start)
    w = x.T @ point.beta
    if not in_dual:
        for k, on in enumerate(_active_rows(point.slack > 0)):
            if len(on) > len(w):
                w[:, k] = _primal_weights(x[on], signs[on, k], ridge)  # more exact than the sum over beta
    return LinearSVM(w[:-1], w[-1], gap), point


def _minimise(newton: _Newton, signs: np.ndarray, ridge: float, start: _Point) -> tuple[_Point, np.ndarray]:
    """Take Newton steps on the active examples of each class until its duality gap is closed.

    The objective is piecewise quadratic, so that a step reaches the minimum exactly once the active
    examples no longer change (Chapelle 2007). About ten full steps suffice, but they could cycle: after
    FULL_STEPS they are halved until the objective falls, which makes the search finite (Mangasarian
    2002).
    """
    point, gap = _Point(*(array.copy() for array in start)), np.full(signs.shape[1], np.inf)
    for count in range(MAX_STEPS):
        gap = _relative_gap(point, signs, ridge)
        open_classes = np.flatnonzero(gap > TOLERANCE)
        if not open_classes.size:
            break
        now, s = _Point(*(array[:, open_classes] for array in point)), signs[:, open_classes]
        full = newton(now.slack > 0, s)
        step = np.ones(open_classes.size) if count < FULL_STEPS else _step_sizes(now, full, s, ridge)
        for array, a, b in zip(point, now, full, strict=True):
            array[:, open_classes] = np.where(step[None] == 1, b, a + step[None] * (b - a))
    return point, gap


def _relative_gap(point: _Point, signs: np.ndarray, ridge: float) -> np.ndarray:
    """Return the duality gap [K] over the objective; infinite where beta is not feasible in the dual.

    The dual variables are sign * beta >= 0. Primal and dual have the same |w|^2, which cancels: the gap
    is a sum of terms that all vanish at the solution, and no large numbers are subtracted.
    """
    alpha, hinge = ridge * signs * point.beta, np.maximum(point.slack, 0)
    gap = 0.5 * np.sum((hinge - alpha) ** 2, axis=0) + np.sum(alpha * (hinge - point.slack), axis=0)
    feasible = alpha.min(axis=0) >= -1e-6 * alpha.max(axis=0)
    return np.where(feasible, gap / _objective(point, ridge), np.inf)


def _objective(point: _Point, ridge: float) -> np.ndarray:
    square = np.sum(point.beta * point.outputs, axis=0)
    return 0.5 * ridge * square + 0.5 * np.sum(np.maximum(point.slack, 0) ** 2, axis=0)


def _step_sizes(now: _Point, full: _Point, signs: np.ndarray, ridge: float) -> np.ndarray:
    """Return the largest step of 1, 1/2, 1/4 ... per class that decreases the objective (Armijo's rule)."""
    before = _objective(now, ridge)
    gradient = ridge * now.beta - signs * np.maximum(now.slack, 0)
    slope = np.sum(gradient * (full.outputs - now.outputs), axis=0)
    step = np.ones(signs.shape[1])
    for _ in range(30):
        there = _Point(*(a + step[None] * (b - a) for a, b in zip(now, full, strict=True)))
        rises = _objective(there, ridge) > (1 + ROUNDING) * before + 1e-3 * step * slope
        if not rises.any():
            break
        step = np.where(rises, step / 2, step)
    return step


def _dual_newton(gram: np.ndarray, ridge: float) -> _Newton:
    """Return the step in the dual: (gram + ridge I) beta = signs over the active rows, beta = 0 elsewhere.

    Classes and steps share the inverse over all rows. With it, the solution takes a system of the size of the
    inactive rows; without it, one of the size of the active rows. The smaller system is solved.
    """
    system = gram + ridge * np.eye(len(gram))
    inverse = _inverse(system)

    def step(active: np.ndarray, signs: np.ndarray) -> _Point:
        base = inverse @ signs
        push = np.zeros_like(signs)  # Lagrange multipliers of beta = 0 in the inactive rows
        beta = np.zeros_like(signs)
        by_inverse = 2 * active.sum(axis=0) >= len(signs)
        for k in range(signs.shape[1]):
            on, off = np.flatnonzero(active[:, k]), np.flatnonzero(~active[:, k])
            if by_inverse[k]:
                push[off, k] = _solve(inverse[np.ix_(off, off)], -base[off, k])
            else:
                beta[on, k] = _solve(system[np.ix_(on, on)], signs[on, k])
        beta = np.where(by_inverse[None] & active, base + inverse @ push, beta)
        outputs = gram @ beta
        return _Point(beta, outputs, np.where(active, ridge * signs * beta, 1 - signs * outputs))

    return step


def _full_rank_newton(x: np.ndarray, gram: np.ndarray, ridge: float) -> _Newton:
    """Return the step in the dual or in the primal, whichever matrix is smaller for each class."""

    def step(active: np.ndarray, signs: np.ndarray) -> _Point:
        beta, outputs = np.zeros_like(signs), np.zeros_like(signs)
        for k, on in enumerate(_active_rows(active)):
            if len(on) <= x.shape[1]:
                system = gram[np.ix_(on, on)] + ridge * np.eye(len(on))
                beta[on, k] = _solve(system, signs[on, k])
                outputs[:, k] = gram[:, on] @ beta[on, k]
            else:
                outputs[:, k] = x @ _primal_weights(x[on], signs[on, k], ridge)
                beta[on, k] = (signs[on, k] - outputs[on, k]) / ridge
        return _Point(beta, outputs, np.where(active, ridge * signs * beta, 1 - signs * outputs))

    return step


def _primal_weights(x: np.ndarray, signs: np.ndarray, ridge: float) -> np.ndarray:
    """Solve (x^T x + ridge I) w = x^T signs, the minimum where all rows of x [n, F] are active."""
    return _solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ signs)


def _active_rows(active: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(column) for column in active.T]


@functools.cache
def _threads() -> ThreadpoolController:
    """Return the controller of BLAS's threads: for systems this small, several are slower than one."""
    return ThreadpoolController()


def _solve(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Solve a positive definite system by its Cholesky factor."""
    if not len(target):
        return target
    _, solution, info = _POSV(matrix.T, target, lower=1, overwrite_a=1)
    return _checked(solution, info)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    factor, info = _POTRF(matrix.T, lower=1)
    lower, info_inverse = _POTRI(_checked(factor, info), lower=1, overwrite_c=1)
    lower = np.tril(_checked(lower, info_inverse))
    return lower + np.tril(lower, -1).T


def _checked(result: np.ndarray, info: int) -> np.ndarray:
    if info:
        raise np.linalg.LinAlgError("The Gram matrix of an SVM is singular to double precision.")
    return result
