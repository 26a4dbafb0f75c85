"""A lower bound on the Jensen-Shannon divergence of the two joints, which ALI minimises.

For any discriminator D, the expectation of log 2 minus its cross-entropy on held-out pairs is at most
JSD(q(x, z), p(x, z)), with equality for log D/(1 - D) = log q/p. The critic is a new discriminator that is
trained on pairs of the final model: the one of the game was trained on those of a model still changing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ali_jax.metrics.blocks import map_blocks
from ali_jax.networks.convolutions import Lowering, compiler_options, lowering_for, platform_of
from ali_jax.networks.layers import Bias, Dense, Layer, Stack
from ali_jax.types import Array, Pairs, PyTree

Critic: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x [N, *X], z [N, Z] -> logits [N]

BATCH_SIZE = 128  # of either kind
STEPS = 4_000
CHECK_EVERY = 100  # steps between evaluations on the validation pairs
PATIENCE = 10  # evaluations without improvement after which training stops
LEARNING_RATE = 1e-3


class Divergence(NamedTuple):
    """The performance of a critic on held-out pairs."""

    accuracy: float  # 1/2 for a critic that sees no difference
    jensen_shannon: float  # nats; in expectation a lower bound, at most log 2; negative for a bad critic
    standard_error: float  # of jensen_shannon, over the held-out pairs


def jensen_shannon_bound(q: np.ndarray, p: np.ndarray) -> Divergence:
    """Return log 2 - 1/2 (mean softplus(-s_q) + mean softplus(s_p)) for logits q [N] and p [M].

    q are those of (x, z_hat), p those of (x_tilde, z), and the critic must not have been trained on these
    pairs. A logit of 0 counts half in the accuracy.
    """
    right = [np.mean(np.sign(s) + 1) / 2 for s in (q, -p)]
    losses = [np.logaddexp(0, -s.astype(np.float64)) for s in (q, -p)]
    variance = sum(np.var(loss, ddof=1) / len(loss) for loss in losses) / 4
    bound = np.log(2) - sum(np.mean(loss) for loss in losses) / 2
    return Divergence(float(np.mean(right)), float(bound), float(np.sqrt(variance)))


def joint_divergence(
    train: Pairs, validation: Pairs, held_out: Pairs, *, seed: int = 0, steps: int = STEPS
) -> Divergence:
    """Train a critic on `train`, stop it by `validation`, and bound the divergence with it on `held_out`.

    The three contain numpy arrays and must not share any x or z, else the bound is not valid. The result
    is NaN if any of them is not finite.
    """
    if not all(np.isfinite(array).all() for array in jax.tree.leaves((train, validation, held_out))):
        return Divergence(np.nan, np.nan, np.nan)
    critic = train_critic(train, validation, seed=seed, steps=steps)
    logits = (critic(x, _codes(held_out, z)) for x, z in _kinds(held_out))
    return jensen_shannon_bound(*logits)


def train_critic(train: Pairs, validation: Pairs, *, seed: int = 0, steps: int = STEPS) -> Critic:
    """Train a discriminator on pairs [N, ...] and return its logits as a function of x and z, y appended.

    Adam with cosine decay, 128 pairs of either kind a step. The parameters with the lowest cross-entropy
    on the validation pairs are used. x is standardised by the data's mean and deviation per element. The
    network is a perceptron on x and z, after two convolutions for images of 16 pixels or more.
    """
    platform = platform_of()
    jit = functools.partial(jax.jit, compiler_options=compiler_options(platform))
    mean, std = (f(train.x, axis=0, keepdims=True, dtype=np.float64) for f in (np.mean, np.std))
    network = _Network(_x_layers(train.x.shape[1:]), lowering_for(platform))

    def logits(params: PyTree, x: Array, z: Array) -> Array:
        standard = (x - mean.astype(np.float32)) / np.maximum(std, 1e-2 * std.max()).astype(np.float32)
        output: Any = network.apply({"params": params}, standard, z)
        return output

    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    key_init, key_rows = jax.random.split(jax.random.key(seed))

    def step(params: PyTree, opt_state: PyTree, data: list[tuple[Array, Array]], i: Array) -> tuple:
        rows = jax.random.randint(jax.random.fold_in(key_rows, i), (2, BATCH_SIZE), 0, len(data[0][0]))
        (x, z_hat), (x_tilde, z) = ((x[r], z[r]) for (x, z), r in zip(data, rows, strict=True))

        def loss(params: PyTree) -> Array:
            s = logits(params, jnp.concatenate([x, x_tilde]), jnp.concatenate([z_hat, z]))
            return jnp.mean(jax.nn.softplus(-s[:BATCH_SIZE])) + jnp.mean(jax.nn.softplus(s[BATCH_SIZE:]))

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    data = [(jnp.asarray(x), jnp.asarray(_codes(train, z))) for x, z in _kinds(train)]
    apply, run = jit(logits), jit(step)
    params = jit(lambda key, x, z: network.init(key, x, z)["params"])(key_init, *(a[:1] for a in data[0]))
    best, opt_state = _Best(params, -np.inf, 0), optimizer.init(params)
    for i in range(steps):  # a loop: XLA:CPU runs gradients of convolutions slowly inside a scan
        params, opt_state = run(params, opt_state, data, i)
        if (i + 1) % CHECK_EVERY == 0:
            critic = functools.partial(map_blocks, functools.partial(apply, params))
            score = jensen_shannon_bound(*(critic(x, _codes(validation, z)) for x, z in _kinds(validation)))
            best = best.updated(params, score.jensen_shannon)
            if best.age == PATIENCE:
                break
    return functools.partial(map_blocks, functools.partial(apply, best.params))


class _Best(NamedTuple):
    """The best parameters so far, and the number of evaluations since."""

    params: PyTree
    bound: float
    age: int

    def updated(self, params: PyTree, bound: float) -> "_Best":
        return _Best(params, bound, 0) if bound > self.bound else self._replace(age=self.age + 1)


class _Network(nn.Module):
    """The logit [B] of standardised x [B, *X] and z [B, Z], each after a layer of its own, as x is larger."""

    x_layers: tuple[Layer, ...]
    lowering: Lowering
    width: int = 256

    @nn.compact
    def __call__(self, x: Array, z: Array) -> Array:
        h_x = Stack(self.x_layers, init_std=0.0, lowering=self.lowering, name="x")(x, train=True)
        towers = [
            Stack((self.width,), init_std=0.0, name=name)(h.reshape(len(h), -1), train=True)
            for name, h in (("from_x", h_x), ("from_z", z.astype(x.dtype)))
        ]
        h = Stack((self.width,), init_std=0.0, name="joint")(jnp.concatenate(towers, axis=-1), train=True)
        return Bias((1,))(Dense(1)(h))[:, 0]


def _x_layers(shape: tuple[int, ...]) -> tuple[Layer, ...]:
    return ((4, 2, 32), (4, 2, 64)) if len(shape) == 3 and min(shape[:2]) >= 16 else ()


def _kinds(pairs: Pairs) -> list[tuple[Any, Any]]:
    """Return x and z of the encoder's and of the decoder's pairs."""
    return [(pairs.x, pairs.z_hat), (pairs.x_tilde, pairs.z)]


def _codes(pairs: Pairs, z: Any) -> np.ndarray:
    """Return z [N, Z], with the conditions appended if there are any."""
    return np.asarray(z) if pairs.y is None else np.concatenate([z, pairs.y], axis=1)
