"""Encoders, decoders and joint discriminators, and `build`, which makes them from a config.

The public classes of this module are what `config.encoder.name` and its like may name; the keys beside
`name` are their fields.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ali_jax.config import Config, base
from ali_jax.names import did_you_mean
from ali_jax.networks import convolutions, layers
from ali_jax.networks.layers import Bias, Dense, Dropout, Embedding, Layer, Stack, per_layer
from ali_jax.types import ALI, Array, Networks, PyTree

POSTERIORS = ("gaussian", "noise", "deterministic")
OUTPUTS = ("sigmoid", "linear")


class Encoder(nn.Module):
    """The stochastic encoder q(z | x).

    `gaussian`: z = mu(x) + sigma(x) epsilon, where the last linear layer gives mu and log sigma (paper,
    section 2.1). `noise`: z = f(x, epsilon), the change of variables of the paper's mixture experiment.
    `deterministic`: z = mu(x), which makes ALI a BiGAN.

    Attributes:
      latent_dim: Z.
      layers: of a convolutional network (kernel, stride, maps[, padding]) each, then widths; of a perceptron
        widths.
      activation, slope: relu, or leaky_relu with this slope.
      batch_norm: one for all layers, or one per layer.
      init_std: standard deviation of the initial weights; 0 = He initialisation.
      posterior: gaussian, noise or deterministic.
      log_sigma_clip: (low, high); () = no limits.
      log_sigma_bias, log_sigma_init: initial value of log sigma, and a factor on its initial weights.
      center: whether the network sees 2x - 1.
      frequencies: (count, std) of `layers.fourier_features` on the input of a perceptron; () = none.
      embedding, embedding_learned: width of y's linear embedding, 0 = y itself, and whether it is learned.
      lowering, axis_name, dtype: form of convolutions, named axis of batch norm, type of computations; see
        `build`.
    """

    latent_dim: int
    layers: tuple[Layer, ...]
    activation: str = "leaky_relu"
    slope: float = 0.01
    batch_norm: bool | tuple[bool, ...] = True
    init_std: float = 0.01
    posterior: str = "gaussian"
    log_sigma_clip: tuple[float, ...] = ()
    log_sigma_bias: float = 0.0
    log_sigma_init: float = 1.0
    center: bool = False
    frequencies: tuple[float, ...] = ()
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        _check_choice("posterior", self.posterior, POSTERIORS)
        self.embed = Embedding(self.embedding, self.embedding_learned, self.dtype)
        self.stack = Stack(
            self.layers,
            activation=layers.activation(self.activation, slope=self.slope),
            batch_norm=self.batch_norm,
            init_std=self.init_std,
            lowering=self.lowering,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        self.mu = _Affine(self.latent_dim, self.init_std, dtype=self.dtype)
        if self.posterior == "gaussian":
            self.log_sigma = _Affine(
                self.latent_dim, self.init_std, self.log_sigma_init, self.log_sigma_bias, self.dtype
            )

    def __call__(self, x: Array, epsilon: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map data [B, *X], noise [B, Z] and conditions [B, A] to codes [B, Z]."""
        if self.posterior == "gaussian":
            mu, log_sigma = self.moments(x, y, train=train)
            return mu + jnp.exp(log_sigma) * epsilon
        if self.posterior == "deterministic":
            return self.mu(self._hidden(x, y, train))
        inputs = jnp.concatenate([x.reshape(x.shape[0], -1), epsilon], axis=-1)
        return self.mu(self._hidden(inputs, y, train))

    def moments(self, x: Array, y: Array | None = None, *, train: bool = False) -> tuple[Array, Array]:
        """Return mu and log sigma of the Gaussian posterior, [B, Z] each."""
        h = self._hidden(x, y, train)
        log_sigma = self.log_sigma(h)
        if self.log_sigma_clip:
            log_sigma = jnp.clip(log_sigma, *self.log_sigma_clip)
        return self.mu(h), log_sigma

    def _hidden(self, x: Array, y: Array | None, train: bool) -> Array:
        x = _centered(x) if self.center else x
        if self.frequencies:
            count, std = self.frequencies
            x = layers.fourier_features(x.reshape(x.shape[0], -1), int(count), std)
        return _join(self.stack(x, train=train), self.embed(y))


class Decoder(nn.Module):
    """The deterministic decoder x_tilde = G_x(z), with an output bias per pixel and channel.

    Attributes:
      x_shape: (H, W, C) or (D,).
      layers: transposed convolutions (kernel, stride, maps[, padding]) or, of a perceptron, widths.
      output: sigmoid, for data in [0, 1], or linear.
      activation, slope, batch_norm, init_std, embedding, embedding_learned, lowering, axis_name, dtype: as in
        `Encoder`.
    """

    x_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    activation: str = "leaky_relu"
    slope: float = 0.01
    batch_norm: bool | tuple[bool, ...] = True
    init_std: float = 0.01
    output: str = "sigmoid"
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map codes [B, Z] and conditions [B, A] to data [B, *X], in (0, 1) where the output is a sigmoid."""
        _check_choice("output", self.output, OUTPUTS)
        z = _join(z, Embedding(self.embedding, self.embedding_learned, self.dtype, name="embed")(y))
        shared = {"init_std": self.init_std, "dtype": self.dtype}
        h = Stack(
            self.layers,
            transpose=True,
            activation=layers.activation(self.activation, slope=self.slope),
            batch_norm=self.batch_norm,
            lowering=self.lowering,
            axis_name=self.axis_name,
            **shared,
        )(z, train=train)
        if h.ndim == 4:
            maps = self.x_shape[-1]
            h = layers.Convolution(1, 1, maps, lowering=self.lowering, name="output", **shared)(h)
        else:
            h = Dense(math.prod(self.x_shape), name="output", **shared)(h).reshape(-1, *self.x_shape)
        logits = Bias(self.x_shape, name="untied")(h.astype(jnp.promote_types(self.dtype, jnp.float32)))
        return jax.nn.sigmoid(logits) if self.output == "sigmoid" else logits

    def fit_bias(self, params: PyTree, x: Array) -> PyTree:
        """Set the output bias to the log-odds of the mean image of x [N, *X], clipped to [1e-7, 1 - 1e-7].

        The authors use 500 training images. A linear output keeps its zeros.
        """
        if self.output != "sigmoid":
            return params
        mean = jnp.clip(jnp.mean(x, axis=0), 1e-7, 1 - 1e-7)
        return {**params, "untied": {"bias": jnp.log(mean) - jnp.log1p(-mean)}}


class Discriminator(nn.Module):
    """The joint discriminator: logit of "(x, z) comes from the encoder".

    D(x) and D(z) are stacks of their own; their outputs and y, joined, go through D(x, z). Without x_layers
    and z_layers it is one perceptron on [x, z]. `x_pool` averages D(x)'s maps over space before they are
    joined. A `blind` one does not see z: with it ALI is a GAN, whose encoder learns nothing. With
    `num_classes` above 1 there is a logit per class, beside that of "from the decoder", which is fixed at 0
    (paper, section 4.4).

    `spectral_norm` divides the kernel of every linear map by its largest singular value. `packing` = m judges
    m consecutive pairs at once, their x and their z side by side in the last dimension: one logit, or row of
    logits, for every m pairs (PacGAN). `z_everywhere` adds a linear map of z before every nonlinearity of
    D(x) and D(x, z) (BiGAN). `unary_scores` gives D(x) and D(z) a linear score each: see `unary`; it excludes
    `z_everywhere`.
    `pair_layers` make a second, separate discriminator of pairs of data: see `pair`.

    Attributes:
      x_layers, z_layers, joint_layers: of D(x), D(z) and D(x, z), as `Encoder.layers`; the last linear layer
        is added.
      activation, slope, pieces: relu, leaky_relu with this slope, or maxout of so many pieces.
      x_batch_norm: of D(x), one for all layers or one per layer.
      x_dropout, z_dropout, joint_dropout: rates on the inputs of layers, one for all or one per layer;
        joint_dropout has one more, for the logit's.
      x_dropout_after: rates between a layer of D(x) and its activation.
      z_bias: whether D(z) has biases.
      x_pool, blind, num_classes, spectral_norm, packing, z_everywhere, unary_scores, pair_layers: see above.
      center, init_std, embedding, embedding_learned, lowering, axis_name, dtype: as in `Encoder`.
    """

    x_layers: tuple[Layer, ...] = ()
    z_layers: tuple[int, ...] = ()
    joint_layers: tuple[int, ...] = ()
    activation: str = "leaky_relu"
    slope: float = 0.01
    pieces: int = 2
    x_batch_norm: bool | tuple[bool, ...] = True
    x_dropout: float | tuple[float, ...] = 0.0
    x_dropout_after: float | tuple[float, ...] = 0.0
    z_dropout: float | tuple[float, ...] = 0.0
    z_bias: bool = False
    joint_dropout: float | tuple[float, ...] = 0.0
    init_std: float = 0.01
    center: bool = False
    x_pool: bool = False
    blind: bool = False
    num_classes: int = 1
    spectral_norm: bool = False
    packing: int = 1
    z_everywhere: bool = False
    unary_scores: bool = False
    pair_layers: tuple[Layer, ...] = ()
    embedding: int = 0
    embedding_learned: bool = False
    lowering: convolutions.Lowering = "native"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @property
    def coupled(self) -> bool:
        """Whether a logit depends on other rows than its own, the `packing` that it judges: by batch norm."""
        return any(per_layer(self.x_batch_norm, len(self.x_layers), "x_batch_norm"))

    def setup(self) -> None:
        if self.blind and (self.z_everywhere or self.unary_scores):
            raise ValueError("A blind discriminator has no z: unset z_everywhere and unary_scores, or blind.")
        if self.z_everywhere and self.unary_scores:
            raise ValueError("A score of x alone must not see z: unset z_everywhere, or unary_scores.")
        shared = {"init_std": self.init_std, "dtype": self.dtype, "spectral_norm": self.spectral_norm}
        stack = partial(
            Stack,
            activation=layers.activation(self.activation, slope=self.slope, pieces=self.pieces),
            lowering=self.lowering,
            axis_name=self.axis_name,
            **shared,
        )
        rates = per_layer(self.joint_dropout, len(self.joint_layers) + 1, "joint_dropout")
        self.x = stack(
            self.x_layers,
            batch_norm=self.x_batch_norm,
            dropout=self.x_dropout,
            dropout_after=self.x_dropout_after,
        )
        self.z = stack(self.z_layers, dropout=self.z_dropout, bias=self.z_bias)
        self.joint = stack(self.joint_layers, dropout=rates[:-1])
        self.last_dropout = Dropout(rates[-1])
        self.logit = _Affine(self.num_classes, **shared)
        self.embed = Embedding(self.embedding, self.embedding_learned, self.dtype)
        if self.unary_scores:
            self.x_score, self.z_score = _Affine(1, **shared), _Affine(1, **shared)
        if self.pair_layers:
            self.pairs, self.pair_logit = stack(self.pair_layers), _Affine(1, **shared)

    def __call__(self, x: Array, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map data [B, *X], codes [B, Z] and conditions [B, A] to logits [B] or, of K > 1 classes, [B, K]."""
        h_x, h_z = self._towers(x, z, train)
        h = _join(_join(h_x, h_z), self._conditions(y))
        beside = _packed(z, self.packing) if self.z_everywhere else None
        h = self.last_dropout(self.joint(h, train=train, beside=beside), train=train)
        logits = self.logit(h, train=train)
        if self.is_initializing() or self.spectral_norm:  # their parameters, and their power iteration
            self._other_scores(h_x, h_z, x, y, train)
        return logits if self.num_classes > 1 else logits[:, 0]

    def unary(self, x: Array, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Return the scores of x and of z alone, [B, 2], for a D with `unary_scores` (BigBiGAN)."""
        del y
        return self._unary(*self._towers(x, z, train), train)

    def _unary(self, h_x: Array, h_z: Array | None, train: bool) -> Array:
        assert h_z is not None  # setup refuses a blind one
        scores = [self.x_score(_join(h_x, None), train=train), self.z_score(h_z, train=train)]
        return jnp.concatenate(scores, axis=-1)

    def pair(self, x: Array, x_prime: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Return the logits [B] of "x_prime is x itself", for a D with `pair_layers` (ALICE)."""
        h = jnp.concatenate([_packed(x, self.packing), _packed(x_prime, self.packing)], axis=-1)
        h = self.pairs(_centered(h) if self.center else h, train=train)
        return self.pair_logit(_join(h, self._conditions(y)), train=train)[:, 0]

    def _towers(self, x: Array, z: Array, train: bool) -> tuple[Array, Array | None]:
        """Return D(x) and D(z)."""
        x, z = _packed(x, self.packing), _packed(z, self.packing)
        h_x = self.x(_centered(x) if self.center else x, train=train, beside=z if self.z_everywhere else None)
        if self.x_pool:
            h_x = jnp.mean(h_x, axis=(1, 2))
        return h_x, None if self.blind else self.z(z, train=train)

    def _conditions(self, y: Array | None) -> Array | None:
        return self.embed(None if y is None else _packed(y, self.packing))

    def _other_scores(self, h_x: Array, h_z: Array | None, x: Array, y: Array | None, train: bool) -> None:
        if self.unary_scores:
            self._unary(h_x, h_z, train)
        if self.pair_layers:
            self.pair(x, x, y, train=train)


def _packed(rows: Array, m: int) -> Array:
    """Put m consecutive rows side by side in the last dimension: [B, ..., C] -> [B / m, ..., m C]."""
    if len(rows) % m:
        raise ValueError(f"packing is {m}, which does not divide {len(rows)} rows: change one of them.")
    if m == 1:
        return rows
    groups = jnp.moveaxis(rows.reshape(-1, m, *rows.shape[1:]), 1, -2)
    return groups.reshape(*groups.shape[:-2], -1)


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """A network that is not trained: it runs with running statistics and no dropout, in training too."""

    module: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def apply(self, *args: Any, train: bool = False, **kwargs: Any) -> Any:
        del train
        return self.module.apply(*args, train=False, **kwargs)


class _Affine(nn.Module):
    """A linear output layer with bias, at least float32: [B, F] -> [B, width]."""

    width: int
    init_std: float
    init_factor: float = 1.0
    init_bias: float = 0.0
    dtype: Any = jnp.float32
    spectral_norm: bool = False

    @nn.compact
    def __call__(self, h: Array, *, train: bool = False) -> Array:
        kernel = self.param("kernel", _scaled(self.init_std, self.init_factor), (h.shape[-1], self.width))
        if self.spectral_norm:
            kernel = layers.SpectralNorm(name="spectral")(kernel, train=train)
        bias = self.param("bias", nn.initializers.constant(self.init_bias), (self.width,))
        outputs = h.astype(self.dtype) @ kernel.astype(self.dtype)
        return outputs.astype(jnp.promote_types(self.dtype, jnp.float32)) + bias[None]


def _scaled(std: float, factor: float) -> nn.initializers.Initializer:
    init = layers.initializer(std)
    return lambda key, shape, dtype=jnp.float32: factor * init(key, shape, dtype)


def _centered(x: Array) -> Array:
    return 2 * x - 1


def _join(h: Array, other: Array | None) -> Array:
    """Flatten h [B, ...] and append what is beside it, if anything."""
    if other is None:
        return h if h.ndim == 2 else h.reshape(h.shape[0], -1)
    parts = (h.reshape(h.shape[0], -1), other.reshape(other.shape[0], -1).astype(h.dtype))
    return jnp.concatenate(parts, axis=-1)


def _check_choice(what: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{what} is {value!r}; it must be one of {', '.join(choices)}.")


def is_convolutional(table: Sequence[Layer]) -> bool:
    """Tell whether any of the layers is a convolution."""
    return any(not isinstance(layer, int) for layer in table)


def pyramid(size: int, width: int, *, what: str) -> tuple[Layer, ...]:
    """Return encoder layers that follow the image size: 4x4 convolutions of stride 2 to 4x4, then one to 1x1.

    `width` maps at first, doubled per layer up to eightfold. Sizes are powers of two from 8 to 128.
    """
    if size not in (8, 16, 32, 64, 128):
        raise ValueError(
            f"The layers of config.{what} follow the image size, which must be 8, 16, 32, 64 or 128; "
            f"the images are {size}x{size}. Resize them, or state layers that fit."
        )
    maps = [width * min(2**i, 8) for i in range(size.bit_length() - 3)]
    return (*((4, 2, m, 1) for m in maps), (4, 1, 2 * maps[-1]))


def inverted_pyramid(size: int, width: int, *, what: str) -> tuple[Layer, ...]:
    """Return the decoder layers that mirror `pyramid`: 1x1 to 4x4, then stride 2 up to the image size."""
    down = pyramid(size, width, what=what)
    maps = [layer[2] for layer in down if isinstance(layer, tuple)]
    return ((4, 1, maps[-2]), *((4, 2, m, 1) for m in (*maps[-3::-1], width)))


def build(
    config: Config,
    x_shape: Sequence[int] | None = None,
    *,
    platform: str = "gpu",
    axis_name: str | None = None,
) -> ALI:
    """Make the three networks that a config describes.

    Args:
      config: reads `latent_dim`, `dtype`, `lowering`, `dataset.shape`, `condition`, and the three networks'.
      x_shape: the shape of one x, (H, W, C) or (D,), as the data have it; None: `config.dataset.shape`.
      platform: what the program will be compiled for; with `config.lowering = "auto"` it chooses the form of
        the convolutions (`ali_jax.networks.convolutions`).
      axis_name: the named axis over which batch statistics are synchronised under pmap or shard_map; None in
        a single program over a mesh.

    Returns:
      The modules, without parameters: `init` or `init_state` makes those.

    Raises:
      ValueError: a name, a field or a value that no network has; an image size that the layers do not fit.
    """
    shape = _data_shape(config, x_shape)
    sections = {role: _section(config, role) for role in Networks._fields}
    _follow_size(sections, shape)
    _check_fit(sections, shape)
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.dtype is {config.dtype!r}; it must be float32 or bfloat16.")
    shared = {
        "dtype": jnp.dtype(config.dtype),
        "lowering": convolutions.lowering_for(platform, config.lowering),
        "axis_name": axis_name,
        "embedding": config.condition.embedding,
        "embedding_learned": config.condition.learned,
    }
    made = Networks(
        encoder=_make("encoder", sections["encoder"], latent_dim=config.latent_dim, **shared),
        decoder=_make("decoder", sections["decoder"], x_shape=shape, **shared),
        discriminator=_make("discriminator", sections["discriminator"], **shared),
    )
    return Networks(
        *(_Frozen(m) if role in config.frozen else m for role, m in zip(made._fields, made, strict=True))
    )


def _data_shape(config: Config, x_shape: Sequence[int] | None) -> tuple[int, ...]:
    stated = tuple(config.dataset.shape)
    found = stated if x_shape is None else tuple(x_shape)
    if stated and found != stated:
        raise ValueError(
            f"The networks of this experiment fit data of shape {_by(stated)} (config.dataset.shape); the "
            f"data are {_by(found)}. Resize them, or use experiments/images.py, which follows the size."
        )
    if not found:
        raise ValueError("The shape of the data is unknown: set config.dataset.shape, e.g. to (32, 32, 3).")
    if len(found) not in (1, 3) or min(found) < 1:
        raise ValueError(f"Data must have the shape (H, W, C) or (D,); this is {found}.")
    return found


def _section(config: Config, role: str) -> dict[str, Any]:
    """Return one network's keys, those that the named class has no field for only where they are defaults."""
    given, defaults = config[role].to_dict(), base()[role].to_dict()
    cls = _network_class(given["name"], role)
    fields = {field.name for field in dataclasses.fields(cls)} | {"name", "width"}
    for key, value in given.items():
        if key not in fields and value != defaults.get(key):
            hint = did_you_mean(key, sorted(fields))
            raise ValueError(f"config.{role}.{key} is set, but {cls.__name__} has no such field.{hint}")
    section = {key: _frozen(value) for key, value in given.items() if key in fields}
    _check_values(role, section)
    return section


def _check_values(role: str, section: Mapping[str, Any]) -> None:
    """Raise a ValueError for the first value that no network can use; whether layers fit is not looked at."""
    for key, value in section.items():
        if key in _RULES and not _RULES[key].holds(value):
            raise ValueError(f"config.{role}.{key} is {value!r}; {_RULES[key].text}.")
    # Maxout is for the network that says of how many pieces.
    activations = ("relu", "leaky_relu", "maxout") if "pieces" in section else ("relu", "leaky_relu")
    for key, choices in (("activation", activations), ("posterior", POSTERIORS), ("output", OUTPUTS)):
        if key in section:
            _check_choice(f"config.{role}.{key}", section[key], choices)


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    text: str


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_layer(layer: Any) -> bool:
    if not isinstance(layer, tuple):
        return _is_count(layer)
    return len(layer) in (3, 4) and all(map(_is_count, layer[:3])) and _is_count((*layer, 0)[3], 0)


def _is_number(value: Any, least: float = -math.inf) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= least


def _is_clip(value: Any) -> bool:
    return value == () or (all(map(_is_number, value)) and len(value) == 2 and value[0] < value[1])


def _is_frequencies(value: Any) -> bool:
    return value == () or (len(value) == 2 and _is_count(value[0]) and _is_number(value[1], 0))


def _each(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the test of a setting that is one value, or a tuple with one per layer."""
    return lambda value: all(map(holds, value if isinstance(value, tuple) else (value,)))


_LAYERS = _Rule(
    _each(_is_layer),
    "each layer must be a positive width, or (kernel, stride, maps) or (kernel, stride, maps, padding) of "
    "positive numbers, where the padding may be 0; for example ((4, 2, 64), (4, 1, 128, 1), 256)",
)
_WIDTHS = _Rule(_each(_is_count), "it must be positive widths, for example (512, 512)")
_NORMS = _Rule(_each(lambda value: isinstance(value, bool)), "it must be True or False, for all or per layer")
_RATES = _Rule(_each(lambda value: _is_number(value, 0) and value < 1), "a rate must lie in [0, 1)")
_FINITE = _Rule(_is_number, "it must be finite")
_NOT_NEGATIVE = _Rule(lambda value: _is_number(value, 0), "it must be finite and not negative")

# What the keys of a network's section may be, beside the choices of `_check_values`.
_RULES = {
    "layers": _LAYERS,
    "x_layers": _LAYERS,
    "pair_layers": _LAYERS,
    "z_layers": _WIDTHS,
    "joint_layers": _WIDTHS,
    "batch_norm": _NORMS,
    "x_batch_norm": _NORMS,
    "x_dropout": _RATES,
    "x_dropout_after": _RATES,
    "z_dropout": _RATES,
    "joint_dropout": _RATES,
    "slope": _NOT_NEGATIVE,
    "init_std": _NOT_NEGATIVE,
    "log_sigma_bias": _FINITE,
    "log_sigma_init": _FINITE,
    "log_sigma_clip": _Rule(_is_clip, "it must be (), or (low, high) with low < high"),
    "frequencies": _Rule(_is_frequencies, "it must be (), or (count, std), such as (64, 3.0)"),
    "width": _Rule(lambda value: _is_count(value, 0), "it must not be negative"),
    "num_classes": _Rule(_is_count, "it must be positive"),
    "packing": _Rule(_is_count, "it must be positive"),
    "pieces": _Rule(_is_count, "it must be positive"),
}


def _network_class(name: str, role: str) -> type[nn.Module]:
    classes = {
        key: value
        for key, value in globals().items()
        if not key.startswith("_") and isinstance(value, type) and value.__module__ == __name__
    }
    if name not in classes:
        raise ValueError(
            f"config.{role}.name is {name!r}; ali_jax.networks has {', '.join(sorted(classes))}."
        )
    return classes[name]


def _follow_size(sections: Mapping[str, dict[str, Any]], shape: tuple[int, ...]) -> None:
    """Where a width is set, replace the empty table of layers by one that follows the image size."""
    for role, key, table in (
        ("encoder", "layers", pyramid),
        ("decoder", "layers", inverted_pyramid),
        ("discriminator", "x_layers", pyramid),
    ):
        width = sections[role].pop("width")
        if not width:
            continue
        if sections[role][key]:
            raise ValueError(f"config.{role} sets both width and {key}: give one of them.")
        if len(shape) != 3 or shape[0] != shape[1]:
            raise ValueError(f"config.{role}.width is for square images; the data are {_by(shape)}.")
        sections[role][key] = table(shape[0], width, what=role)


def _check_fit(sections: Mapping[str, dict[str, Any]], shape: tuple[int, ...]) -> None:
    """Refuse data that the tables of layers do not fit, and say which do."""
    tables = {
        "encoder": sections["encoder"]["layers"],
        "discriminator": sections["discriminator"].get("x_layers", ()),
        "discriminator.pair_layers": sections["discriminator"].get("pair_layers", ()),
    }
    convolutional = [role for role, table in tables.items() if is_convolutional(table)]
    if sections["encoder"].get("frequencies") and "encoder" in convolutional:
        raise ValueError("config.encoder.frequencies are for perceptrons; its layers are convolutions.")
    decoder = sections["decoder"]["layers"]
    if not convolutional and not is_convolutional(decoder):
        return
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(f"Convolutional networks need square images; the data are {_by(shape)}.")
    made = layers.output_size(1, decoder, transpose=True) if is_convolutional(decoder) else shape[0]
    if made != shape[0]:
        raise ValueError(
            f"The decoder's layers make images of {made}x{made}; the data are {_by(shape)}. Resize them "
            f"to {made}x{made}, or use experiments/images.py, whose networks follow the size."
        )
    for role in convolutional:
        if layers.output_size(shape[0], tables[role]) < 1:
            raise ValueError(f"The images, {_by(shape)}, are smaller than the layers of config.{role} need.")


def _make(role: str, section: dict[str, Any], **given: Any) -> nn.Module:
    cls = _network_class(section["name"], role)
    fields = {field.name for field in dataclasses.fields(cls)}
    arguments = {key: value for key, value in {**section, **given}.items() if key in fields and key != "name"}
    return cls(**arguments)


def _frozen(value: Any) -> Any:
    """Turn lists into tuples, at any depth: Flax fields must be hashable."""
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)
