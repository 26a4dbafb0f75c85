"""The variants in JAX: `ours`, which trains like the program, and `flax_textbook`, a first implementation.

Both use random data, uint8 images or points, so no files are needed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from ali_jax import data, networks, train
from ali_jax.config import Config, from_json
from ali_jax.game import compile, parts
from ali_jax.networks import layers
from ali_jax.types import Batch, Networks, Penalty, PyTree, TrainState

ROWS = 1024  # of the random data set
_DIVISOR = 255.0  # of its pixels
BATCHES = 4  # of `flax_textbook`: made in advance and used in turn


class Ours:
    """The variant `ours`: `make_train_step` with data on the device and many steps per dispatch."""

    def __init__(self, config: Config, batch_size: int, penalties: Sequence[Penalty] | None = None) -> None:
        """Make networks, feed and step on the first device, as `game` and `loop` do.

        `penalties`, if given, are used instead of the config's.
        """
        self.config = config
        self.unit = config.steps_per_call
        self._mesh = Mesh(jax.devices()[:1], (compile.AXIS,))
        platform = compile.platform_of(self._mesh)
        self._ali = networks.build(config, platform=platform)
        self._tx = parts.make_optimizer(config, platform=platform)
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._feed = data.make_feed(
            data.ArraySplit(_rows(config), None, None, 0),
            batch_size=batch_size,
            seed=config.seed,
            divisor=_DIVISOR,
            dequantize=config.dataset.dequantize,
            kind="device",
            sharding=self._replicated,
            batch_sharding=NamedSharding(self._mesh, PartitionSpec(None, compile.AXIS)),
        )
        step = compile.make_train_step(
            self._ali,
            self._tx,
            parts.make_loss(config),
            parts.make_penalties(config) if penalties is None else penalties,
            feed=self._feed,
            steps=self.unit,
            mesh=self._mesh,
            ema_decay=config.ema_decay,
            gradient=config.gradient,
        )
        self._step: Callable[[TrainState, PyTree], tuple[TrainState, Any]] = step
        self._state: Any = None
        self._taken = 0

    def compile(self) -> None:
        """Compile the call in advance; on a CPU it may be several programs, which the warm-up compiles."""
        if compile.platform_of(self._mesh) == "cpu":
            return
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._replicated),
            jax.eval_shape(self._init),
        )
        jitted: Any = self._step  # off a CPU it is the jitted function itself
        self._step = jitted.lower(state, self._feed.load(0, self.unit)).compile()

    def start(self) -> dict[str, Any]:
        """Initialise and run one call."""
        self._state, self._taken = jax.device_put(jax.jit(self._init)(), self._replicated), 0
        self.run(self.unit)
        counts = [_size(params) for params in self._state.variables.params]
        return {"device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}", "parameters": counts}

    def run(self, steps: int) -> float:
        """Train like the loop: dispatch call after call, and wait for the last."""
        metrics: Any = None
        for _ in range(steps // self.unit):
            self._state, metrics = self._step(self._state, self._feed.load(self._taken, self.unit))
            self._taken += self.unit
        return float(metrics["loss/discriminator"])

    def stop(self) -> None:
        """Let go of the state."""
        self._state = None

    def _init(self) -> TrainState:
        rows = data.scaled(Batch(jnp.asarray(_rows(self.config)[:100])), _DIVISOR)
        return train.init_state(
            self._ali, self._tx, jax.random.PRNGKey(0), rows, ema=self.config.ema_decay > 0
        )


class TextbookStack(nn.Module):
    """The layers of `ali_jax.networks.layers.Stack`, from Flax's own modules."""

    table: tuple[layers.Layer, ...]
    activation: Callable[[jax.Array], jax.Array]
    batch_norm: Any = False
    dropout: Any = 0.0
    dropout_after: Any = 0.0
    bias: bool = True
    transpose: bool = False
    init_std: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        """Map [B, ...] to the maps or features of the table's last layer."""
        count = len(self.table)
        settings = (
            layers.per_layer(value, count, "layers")
            for value in (self.batch_norm, self.dropout, self.dropout_after)
        )
        for layer, norm, rate, rate_after in zip(self.table, *settings, strict=True):
            h = nn.Dropout(rate, deterministic=not train)(h)
            h = self._linear(layer, self.bias and not norm)(h if isinstance(layer, tuple) else _flat(h))
            if norm:
                h = nn.BatchNorm(not train, momentum=0.95, epsilon=1e-4, dtype=self.dtype)(h)
            h = nn.Dropout(rate_after, deterministic=not train)(h)
            h = self.activation(h)
        return h

    def _linear(self, layer: layers.Layer, bias: bool) -> nn.Module:
        shared = {
            "use_bias": bias,
            "kernel_init": layers.initializer(self.init_std),
            "dtype": self.dtype,
        }
        if isinstance(layer, int):
            return nn.Dense(layer, **shared)
        kernel, stride, maps, padding = (*layer, 0)[:4]
        pad = kernel - 1 - padding if self.transpose else padding
        make = nn.ConvTranspose if self.transpose else nn.Conv
        return make(maps, (kernel, kernel), (stride, stride), padding=[(pad, pad)] * 2, **shared)


class TextbookEncoder(nn.Module):
    """z = mu(x) + sigma(x) epsilon, or z = f(x, epsilon)."""

    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, epsilon: jax.Array, *, train: bool) -> jax.Array:
        """Map data [B, *X] and noise [B, Z] to codes [B, Z]."""
        config = self.config.encoder
        noise = config.posterior == "noise"
        stack = TextbookStack(config.layers, batch_norm=config.batch_norm, **_shared(self.config, "encoder"))
        h = _flat(stack(jnp.concatenate([x, epsilon], -1) if noise else x, train=train))
        outputs = self.config.latent_dim * (1 if noise else 2)
        out = nn.Dense(outputs, kernel_init=layers.initializer(config.init_std))(h)
        if noise:
            return out
        mu, log_sigma = jnp.split(out, 2, axis=-1)
        return mu + jnp.exp(log_sigma) * epsilon


class TextbookDecoder(nn.Module):
    """x_tilde = G_x(z), with an output bias per pixel and channel."""

    config: Any

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        """Map codes [B, Z] to data [B, *X]."""
        config, shape = self.config.decoder, self.config.dataset.shape
        spatial = any(isinstance(layer, tuple) for layer in config.layers)
        shared = _shared(self.config, "decoder")
        stack = TextbookStack(config.layers, batch_norm=config.batch_norm, transpose=True, **shared)
        h = stack(z[:, None, None] if spatial else z, train=train)
        init = layers.initializer(config.init_std)
        h = nn.Dense(shape[-1], use_bias=False, kernel_init=init)(h)  # a 1x1 convolution, where h is an image
        logits = h + self.param("untied", nn.initializers.zeros, (1, *shape))
        return jax.nn.sigmoid(logits) if config.output == "sigmoid" else logits


class TextbookDiscriminator(nn.Module):
    """The logit of "(x, z) comes from the encoder"."""

    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, z: jax.Array, *, train: bool) -> jax.Array:
        """Map data [B, *X] and codes [B, Z] to logits [B]."""
        config, shared = self.config.discriminator, _shared(self.config, "discriminator")
        h_x = TextbookStack(
            config.x_layers,
            batch_norm=config.x_batch_norm,
            dropout=config.x_dropout,
            dropout_after=config.x_dropout_after,
            **shared,
        )(x, train=train)
        h_z = TextbookStack(config.z_layers, dropout=config.z_dropout, bias=config.z_bias, **shared)(
            z, train=train
        )
        rates = layers.per_layer(config.joint_dropout, len(config.joint_layers) + 1, "joint_dropout")
        h = jnp.concatenate([_flat(h_x), _flat(h_z)], axis=-1)
        h = TextbookStack(config.joint_layers, dropout=rates[:-1], **shared)(h, train=train)
        h = nn.Dropout(rates[-1], deterministic=not train)(h)
        return nn.Dense(1, kernel_init=layers.initializer(config.init_std))(h)[:, 0]


class FlaxTextbook:
    """The variant `flax_textbook`: one jit and one forward pass per player, fed by the host."""

    unit = 1

    def __init__(self, config: Config, batch_size: int) -> None:
        """Make modules and optimisers."""
        frozen = FrozenConfigDict(config)
        classes = (TextbookEncoder, TextbookDecoder, TextbookDiscriminator)
        self._modules = {name: cls(frozen) for name, cls in zip(Networks._fields, classes, strict=True)}
        self._adam = {}
        for player in ("generator", "discriminator"):
            adam = config.optimizer[player]
            self._adam[player] = optax.adam(adam.learning_rate, b1=adam.b1, b2=adam.b2, eps=adam.eps)
        self._latent_dim, self._batch_size = config.latent_dim, batch_size
        rows = np.random.default_rng(0).random((BATCHES, batch_size, *config.dataset.shape), np.float32)
        self._batches = list(rows)
        self._steps = [jax.jit(partial(self._step, player)) for player in ("discriminator", "generator")]
        self._state: Any = None
        self._taken = 0

    def compile(self) -> None:
        """Do nothing: the warm-up compiles."""

    def start(self) -> dict[str, Any]:
        """Initialise and take the first steps."""
        self._state, self._taken = jax.jit(self.init)(jax.random.PRNGKey(0)), 0
        self.run(2)
        counts = [_size(self._state[0][name]) for name in Networks._fields]
        return {"device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}", "parameters": counts}

    def run(self, steps: int) -> float:
        """Train, wait, and return D's last loss."""
        loss = jnp.zeros(())
        for _ in range(steps):
            x = self._batches[self._taken % BATCHES]
            for i, step in enumerate(self._steps):
                key = jax.random.fold_in(jax.random.PRNGKey(i), self._taken)
                self._state, found = step(self._state, key, x)
                loss = found if i == 0 else loss
            self._taken += 1
        jax.block_until_ready(self._state)
        return float(loss)

    def stop(self) -> None:
        """Let go of the state."""
        self._state = None

    def init(self, key: jax.Array) -> Any:
        """Return parameters and statistics by network, and optimiser states by player."""
        x, z = jnp.asarray(self._batches[0][:1]), jnp.zeros((1, self._latent_dim))
        arguments = {"encoder": (x, z), "decoder": (z,), "discriminator": (x, z)}
        held = {
            name: module.init(key, *arguments[name], train=False) for name, module in self._modules.items()
        }
        params = {name: h["params"] for name, h in held.items()}
        stats = {name: h.get("batch_stats", {}) for name, h in held.items()}
        opt_state = {player: self._adam[player].init(_of(player, params)) for player in self._adam}
        return params, stats, opt_state

    def _step(self, player: str, state: Any, key: jax.Array, x: jax.Array) -> tuple[Any, jax.Array]:
        """Update one player from a forward pass of its own."""
        params, stats, opt_state = state

        def loss(moved: PyTree) -> tuple[jax.Array, PyTree]:
            return self._loss(player, {**params, **moved}, stats, key, x)

        own = _of(player, params)
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(own)
        updates, moments = self._adam[player].update(grads, opt_state[player], own)
        moved: Any = optax.apply_updates(own, updates)
        return ({**params, **moved}, stats, {**opt_state, player: moments}), value

    def _loss(
        self, player: str, params: PyTree, stats: PyTree, key: jax.Array, x: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        key_z, key_epsilon, key_dropout = jax.random.split(key, 3)
        z = jax.random.normal(key_z, (self._batch_size, self._latent_dim))
        epsilon = jax.random.normal(key_epsilon, z.shape)
        moved = {}

        def apply(name: str, *arguments: jax.Array) -> jax.Array:
            outputs, held = self._modules[name].apply(
                {"params": params[name], "batch_stats": stats[name]},
                *arguments,
                train=True,
                rngs={"dropout": key_dropout},
                mutable=["batch_stats"],
            )
            moved[name] = held.get("batch_stats", {})
            return outputs

        x_tilde, z_hat = apply("decoder", z), apply("encoder", x, epsilon)
        logits = apply("discriminator", jnp.concatenate([x, x_tilde]), jnp.concatenate([z_hat, z]))
        sign = 1 if player == "discriminator" else -1
        q, p = jnp.split(sign * logits, 2)
        return jnp.mean(jax.nn.softplus(-q)) + jnp.mean(jax.nn.softplus(p)), moved


def make(task: Mapping[str, Any]) -> Ours | FlaxTextbook:
    """Make the trainer of a worker's task."""
    config = from_json(json.dumps(task["config"]))
    return {"ours": Ours, "flax_textbook": FlaxTextbook}[task["variant"]](config, task["batch_size"])


def _rows(config: Config) -> np.ndarray:
    shape = (ROWS, *config.dataset.shape)
    generator = np.random.default_rng(0)
    if len(shape) == 4:
        return generator.integers(256, size=shape, dtype=np.uint8)
    return generator.standard_normal(shape, np.float32)


def _shared(config: Any, role: str) -> dict[str, Any]:
    section = config[role]
    activations = {
        "relu": nn.relu,
        "leaky_relu": lambda h: nn.leaky_relu(h, section.slope),
        "maxout": lambda h: h.reshape(*h.shape[:-1], -1, section.pieces).max(axis=-1),
    }
    return {
        "activation": activations[section.activation],
        "init_std": section.init_std,
        "dtype": jnp.dtype(config.dtype),
    }


def _flat(h: jax.Array) -> jax.Array:
    return h.reshape(h.shape[0], -1)


def _of(player: str, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    names = ("discriminator",) if player == "discriminator" else ("encoder", "decoder")
    return {name: params[name] for name in names}


def _size(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
