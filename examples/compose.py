"""Compose the pure functions: networks, a training step, a loop, and the uses of the result.

    python examples/compose.py [--steps N]

No config is read. Editors that support cells (`# %%`) can run them one by one.
"""

# %% The networks are the package's; your own Flax modules work as well
import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ali_jax import (
    Batch,
    Decoder,
    Discriminator,
    Encoder,
    Networks,
    data,
    discriminate,
    encode,
    init_state,
    interpolate,
    losses,
    penalties,
    posterior,
    reconstruct,
    sample,
    train_step,
)

parser = argparse.ArgumentParser(description="ALI from its pure functions.")
parser.add_argument("--steps", type=int, default=3_000, help="training steps")
given, _ = parser.parse_known_args()

# %% Three networks
x_shape, latent_dim, wide = (8, 8, 1), 16, (128, 128)
plain = {"init_std": 0.0, "center": True}  # He initialisation; networks see 2x - 1
sigma = {"log_sigma_bias": -1.0, "log_sigma_init": 0.1, "log_sigma_clip": (-6.0, 0.5)}
encoder = Encoder(latent_dim, wide, batch_norm=False, **sigma, **plain)
decoder = Decoder(x_shape, wide, batch_norm=False, init_std=0.0)
discriminator = Discriminator(wide, wide, wide, slope=0.2, x_batch_norm=False, z_bias=True, **plain)
ali = Networks(encoder, decoder, discriminator)

# %% The game: an optimiser per player, a loss, a penalty, and one compiled step
adam = partial(optax.adam, b1=0.0, b2=0.99)
tx = optax.multi_transform({"G": adam(1e-3), "D": adam(1.5e-3)}, Networks("G", "G", "D"))
terms = (partial(penalties.r1, gamma=1.0),)
step = jax.jit(partial(train_step, ali, tx, losses.ali, terms, ema_decay=0.999))

# %% Train: the loop carries only the state; a step derives its key from the state's key and step number
digits = data.load("digits")
x = digits.train.rows(np.arange(len(digits.train))).x / np.float32(digits.divisor)  # [1400, 8, 8, 1]
state = init_state(ali, tx, jax.random.PRNGKey(0), Batch(jnp.asarray(x[:500])), ema=True)
rng = np.random.default_rng(0)
for i in range(given.steps):
    state, metrics = step(state, Batch(x[rng.integers(len(x), size=64)]))
    if (i + 1) % 500 == 0 or i + 1 == given.steps:
        print(i + 1, {name: round(float(value), 3) for name, value in metrics.items()})

# %% Use it: codes and their spread, reconstructions, samples, interpolations, verdicts of D
variables = state.ema
assert variables is not None
held = digits.test.rows(np.arange(100)).x / np.float32(digits.divisor)
z = encode(ali, variables, held)  # [100, 16], mean codes
_, log_sigma = posterior(ali, variables, held)
x_hat = reconstruct(ali, variables, held)
x_tilde = sample(ali, variables, jax.random.PRNGKey(1), 100)
path = interpolate(ali, variables, held[:4], held[4:8], 11)  # [4, 11, 8, 8, 1]
logits = discriminate(ali, variables, held, z)  # [100], above 0: D takes the pair for the encoder's
print("median sigma", float(jnp.exp(jnp.median(log_sigma))))
print("squared error per pixel", float(jnp.mean(jnp.square(x_hat - held))))
print("of a random pair", float(np.mean(np.square(held - held[::-1]))))
print("D calls the encoder's", float(jnp.mean(logits > 0)))
print("shapes", x_tilde.shape, path.shape)
