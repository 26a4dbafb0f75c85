"""ali_jax: Adversarially Learned Inference (Dumoulin et al., ICLR 2017) as pure functions in JAX and Flax.

ali = Networks(encoder, decoder, discriminator)          # three Flax modules
state = init_state(ali, tx, key, batch)
state, metrics = train_step(ali, tx, losses.ali, (), state, batch)
x_hat = reconstruct(ali, state.variables, x)
"""

from ali_jax import losses, penalties
from ali_jax.model import (
    decode,
    discriminate,
    draw_noise,
    encode,
    features,
    forward,
    init,
    interpolate,
    posterior,
    reconstruct,
    sample,
)
from ali_jax.networks import Decoder, Discriminator, Encoder, build
from ali_jax.train import (
    game_gradients,
    init_state,
    make_optimizer,
    make_penalties,
    make_train_step,
    train_step,
)
from ali_jax.types import (
    ALI,
    Batch,
    Logits,
    Loss,
    Losses,
    Networks,
    Noise,
    Pairs,
    Penalty,
    Report,
    TrainState,
    Variables,
)

__version__ = "0.1.0"

__all__ = [
    "ALI",
    "Batch",
    "Decoder",
    "Discriminator",
    "Encoder",
    "Logits",
    "Loss",
    "Losses",
    "Networks",
    "Noise",
    "Pairs",
    "Penalty",
    "Report",
    "TrainState",
    "Variables",
    "build",
    "decode",
    "discriminate",
    "draw_noise",
    "encode",
    "features",
    "forward",
    "game_gradients",
    "init",
    "init_state",
    "interpolate",
    "losses",
    "make_optimizer",
    "make_penalties",
    "make_train_step",
    "penalties",
    "posterior",
    "reconstruct",
    "sample",
    "train_step",
]
