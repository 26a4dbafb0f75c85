"""ALI as an estimator of scikit-learn: `fit`, `transform`, `inverse_transform`, `sample`, `score_samples`.

Rows are resampled into blocks of a fixed shape, so that what is compiled depends on the number of features
and on the parameters, but not on the number of rows.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state, validation
from sklearn.utils.validation import check_is_fitted

from ali_jax import config as configs
from ali_jax import losses, networks, rules, train
from ali_jax.config import Config
from ali_jax.data.order import Order
from ali_jax.game import parts
from ali_jax.networks.convolutions import compiler_options, platform_of
from ali_jax.records.weights import flat_weights, nested_weights
from ali_jax.tools.trained import Model, check_not_masked
from ali_jax.types import ALI, Array, Batch, TrainState, Variables

STEPS_PER_CALL = 50
FIRST_ROWS = 256  # that the networks are initialised from
CONVOLUTIONS = (16, 32, 64, 128)  # sizes of square images that the networks convolve


POSITIVE = rules.Rule(rules.count.holds, "a positive integer")
RULES = {
    **dict.fromkeys(("n_components", "num_steps", "batch_size"), POSITIVE),
    "hidden": rules.Rule(
        lambda value: isinstance(value, (tuple, list)) and bool(value) and rules.widths.holds(tuple(value)),
        "a tuple of one positive width or more, such as (128, 128)",
    ),
    "learning_rate": rules.positive,
    "cycle_weight": rules.not_negative,
}


class Recipe(NamedTuple):
    """All that a compiled training depends on: plain values."""

    shape: tuple[int, ...]  # of one x: (D,) or (H, W, C)
    n_components: int
    hidden: tuple[int, ...]
    num_steps: int
    batch_size: int
    learning_rate: float
    cycle_weight: float


class Programs(NamedTuple):
    """The networks of a recipe, and its training compiled."""

    ali: ALI
    init: Callable[[Array, Any], TrainState]  # (key, x [FIRST_ROWS, *X]) -> state
    steps: Callable[[TrainState, Any, int], TrainState]  # (state, x [STEPS_PER_CALL, B, *X], how many)


class ALIEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Adversarially Learned Inference as a transformer of scikit-learn.

    Rows are vectors [N, D], or images [N, H, W] or [N, H, W, C] that are uint8 or floats in [0, 1]. Vectors
    are centred and divided by one number; scale features of unlike units first, as by `StandardScaler`.
    Square images of 16, 32, 64 or 128 pixels a side are convolved, all other rows go through perceptrons.

    A pickle of a fitted estimator has arrays and plain values. As with every pickle, load only those that you
    trust; runs of `ali_jax.main`, which `ali_jax.load` reads, have no such risk.

    Args:
      n_components: Z, the length of a code.
      hidden: widths of the hidden layers of perceptrons; for convolutions the first is the number of maps at
        full size.
      num_steps: number of training steps.
      batch_size: rows per step.
      learning_rate: of encoder and decoder; the discriminator's is 1.5 times as large.
      cycle_weight: weight of the squared reconstruction error, summed over features, beside ALI's loss; 0 is
        ALI alone, whose samples are more varied and whose reconstructions are worse.
      random_state: seed or generator of weights, noise and the order of the rows.

    Attributes of a fitted estimator:
      n_features_in_: number of features; of images, of their pixels times channels.
      weights_: the averaged weights, arrays by name.
      mean_: [D] what is subtracted from rows.
      scale_: what they are divided by.
      row_shape_: the shape of one row, as `inverse_transform` and `sample` return it.
      recipe_: what the networks are built from.
    """

    def __init__(
        self,
        n_components: int = 16,
        *,
        hidden: tuple[int, ...] = (128, 128),
        num_steps: int = 3000,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        cycle_weight: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.hidden = hidden
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.cycle_weight = cycle_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "ALIEstimator":
        """Train on rows; `y` is ignored."""
        del y
        rows, shape, dtype = flattened(self, X, reset=True, fewest=2)
        is_image = len(shape) > 1
        x_shape = (*shape, 1) if len(shape) == 2 else shape
        if is_image:
            mean, scale = np.zeros(rows.shape[1]), 255.0 if dtype == np.uint8 else 1.0
            _check_pixels(rows / scale)
        else:
            mean = rows.mean(axis=0, dtype=np.float64)
            scale = float(np.sqrt(np.mean(np.square(rows - mean)))) or 1.0
        recipe = Recipe(x_shape, **self._parameters())
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        x = ((rows - mean) / scale).astype(np.float32).reshape(-1, *x_shape)
        self.weights_ = flat_weights(_trained(recipe, x, seed))
        self.mean_, self.scale_, self.row_shape_ = mean, scale, shape
        self.recipe_ = recipe._asdict()
        return self

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters of a recipe as plain values; raise a ValueError for one out of range."""
        given = {name: value for name, value in self.get_params().items() if name in Recipe._fields}
        for name, value in given.items():
            if not (rule := RULES[name]).holds(value):
                raise ValueError(f"{name} is {value!r}; it must be {rule.allowed}.")
        plain = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()
        }
        return {**plain, "hidden": tuple(self.hidden)}

    def transform(self, X: Any) -> np.ndarray:
        """Return the mean codes [N, Z] of rows."""
        x, dtype = self._units(X)
        return self.model_.encode(x).astype(dtype)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the decodings of codes X [N, Z], in the shape and units of the rows of `fit`."""
        check_is_fitted(self)
        return self._rows(self.model_.decode(check_array(X)))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw rows from the model, in the shape and units of those of `fit`."""
        check_is_fitted(self)
        seed = check_random_state(random_state).randint(2**31 - 1)
        return self._rows(self.model_.sample(n_samples, seed=seed))

    def score_samples(self, X: Any) -> np.ndarray:
        """Return minus the mean squared error [N] of the reconstruction, in the squared units of X.

        It is no likelihood: the model has none.
        """
        return self.model_.score_samples(self._units(X)[0]) * self.scale_**2

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`; `y` is ignored."""
        del y
        return float(np.mean(self.score_samples(X)))

    def rows(self, X: Any) -> np.ndarray:
        """Return rows as the networks take them: float32 [N, *X]."""
        return self._units(X)[0]

    @property
    def model_(self) -> Model:
        """The trained model, in the units of its networks."""
        check_is_fitted(self)
        recipe = Recipe(**self.recipe_)
        ali = _programs(recipe, platform_of()).ali
        return Model(
            ali,
            jax.tree.map(jnp.asarray, nested_weights(self.weights_)),
            recipe.shape,
            divisor=1.0,
            name="rows",
            step=recipe.num_steps,
        )

    @property
    def _n_features_out(self) -> int:
        return self.recipe_["n_components"]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _units(self, X: Any) -> tuple[np.ndarray, np.dtype]:
        """Return rows in the networks' units, and the type that results have."""
        check_is_fitted(self)
        rows, _, _ = flattened(self, X, reset=False)
        x = ((rows - self.mean_) / self.scale_).astype(np.float32)
        if len(self.row_shape_) > 1:
            _check_pixels(x)
        return x.reshape(-1, *self.recipe_["shape"]), rows.dtype

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """Return x [N, *X] in the shape and units of the rows of `fit`."""
        return (x.reshape(len(x), -1) * self.scale_ + self.mean_).reshape(-1, *self.row_shape_)


def flattened(
    estimator: Any, X: Any, *, reset: bool, fewest: int = 1
) -> tuple[np.ndarray, tuple[int, ...], np.dtype | None]:
    """Check rows as scikit-learn does; return them as floats [N, D], one row's shape, and the type given.

    With `reset` the estimator notes the number and the names of the features; otherwise it compares them.
    """
    check_not_masked(X, "row")
    shape, dtype = np.shape(X)[1:] if getattr(X, "ndim", 2) in (3, 4) else (), getattr(X, "dtype", None)
    X = np.asarray(X).reshape(len(X), math.prod(shape)) if shape else X
    checks = {"reset": reset, "dtype": [np.float64, np.float32], "ensure_min_samples": fewest}
    if hasattr(validation, "validate_data"):
        rows: Any = validation.validate_data(estimator, X, **checks)
    else:  # scikit-learn 1.5
        rows = estimator._validate_data(X, **checks)
    return rows, shape or rows.shape[1:], dtype


def _check_pixels(x: np.ndarray) -> None:
    if x.min() < 0 or x.max() > 1:
        raise ValueError(
            f"The images lie between {x.min():.4g} and {x.max():.4g} where white is 1: give uint8 from 0 to "
            "255, or floats in [0, 1]."
        )


def _trained(recipe: Recipe, x: np.ndarray, seed: int) -> Variables:
    """Train on rows x [N, *X] and return the averaged variables, on the host."""
    programs = _programs(recipe, platform_of())
    order = Order(STEPS_PER_CALL * recipe.batch_size, len(x), seed)
    state = programs.init(jax.random.PRNGKey(seed), x[np.arange(FIRST_ROWS) % len(x)])
    for call, start in enumerate(range(0, recipe.num_steps, STEPS_PER_CALL)):
        epoch, offset = order.start(call)
        position = offset + np.arange(order.batch_size, dtype=np.uint32)
        index = order.rows(order.words, np.uint32(epoch), position, np)
        block = x[index].reshape(STEPS_PER_CALL, recipe.batch_size, *recipe.shape)
        state = programs.steps(state, block, min(STEPS_PER_CALL, recipe.num_steps - start))
    variables = jax.device_get(state.ema)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
        raise ValueError(f"The training diverged: lower learning_rate, which is {recipe.learning_rate:g}.")
    return variables


@functools.lru_cache(maxsize=64)
def _programs(recipe: Recipe, platform: str) -> Programs:
    """Build the networks of a recipe; its programs are compiled when they are first called."""
    config = _config(recipe)
    ali = networks.build(config, recipe.shape, platform=platform)
    tx = parts.make_optimizer(config, platform=platform)
    penalties = parts.make_penalties(config)

    def init(key: Array, x: Array) -> TrainState:
        return train.init_state(ali, tx, key, Batch(x), ema=True)

    def steps(state: TrainState, x: Array, count: int) -> TrainState:
        def step(i: Array, state: TrainState) -> TrainState:
            update = train.train_step(
                ali, tx, losses.ali, penalties, state, Batch(x[i]), ema_decay=config.ema_decay
            )
            return update[0]

        return jax.lax.fori_loop(0, count, step, state)

    options = compiler_options(platform)
    once = {**options, "xla_backend_optimization_level": 0} if platform == "cpu" else options
    return Programs(
        ali,
        jax.jit(init, compiler_options=once),  # it runs once: compiling it quickly is what counts
        jax.jit(steps, donate_argnums=0, compiler_options=options),
    )


def _config(recipe: Recipe) -> Config:
    """Return the stable recipe for rows of a shape."""
    config = configs.base()
    configs.stable_recipe(config)
    config.batch_size, config.num_steps = recipe.batch_size, recipe.num_steps
    config.latent_dim, config.dataset.shape = recipe.n_components, recipe.shape
    config.discriminator.z_layers = config.discriminator.joint_layers = recipe.hidden
    is_image = len(recipe.shape) == 3
    if is_image and recipe.shape[0] == recipe.shape[1] in CONVOLUTIONS:
        for network in (config.encoder, config.decoder, config.discriminator):
            network.width = recipe.hidden[0]
    else:
        config.encoder.layers = config.decoder.layers = config.discriminator.x_layers = recipe.hidden
    if not is_image:
        config.decoder.output = "linear"
        config.encoder.center = config.discriminator.center = False
    config.penalties.r1.gamma_final = 0.3
    config.penalties.cycle_x.weight = recipe.cycle_weight
    config.optimizer.generator.learning_rate = recipe.learning_rate
    config.optimizer.discriminator.learning_rate = 1.5 * recipe.learning_rate
    config.ema_decay = min(config.ema_decay, 1 - 1 / max(2.0, recipe.num_steps / 10))
    configs.validate(config)
    return config
