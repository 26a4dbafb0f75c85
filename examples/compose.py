"""Compose the pure functions: a model, its game, one training loop, and what can be asked of the result.

    python examples/compose.py [--steps N]

No config is read. Cells (`# %%`) can be run one by one in an editor that knows them.
"""

# %% What is used: networks of the package; modules of one's own do as well (docs/your_networks.md)
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
