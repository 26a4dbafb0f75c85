"""Train ALI on a linear-Gaussian model, whose posterior and log density ratio are known exactly.

    python -m benchmarks.known_answer [--fault sign|shared_noise|untrained_encoder]

Data are x = W z + b + tau eta with x in three dimensions and z in two. W has orthogonal columns, so the
posterior is a normal distribution with independent coordinates, which the encoder can represent. Three parts:

    frozen    the decoder is the true one and frozen; the encoder learns
    learnt    all three networks learn; the reference is the posterior of the learnt decoder
    logit     an encoder with a known mismatch and the decoder are frozen; only D learns, with R1 of
              several weights

KL(encoder || posterior) is estimated from the encoder's mean and sigma and, independently, from its codes. A
planted fault must make the command fail: the generator's loss with the wrong sign, the same noise for all
dimensions of a code, or an encoder that is never trained.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ali_jax import losses, model, penalties, train
from ali_jax.metrics.two_sample import holm
from ali_jax.networks import Discriminator, Encoder
from ali_jax.types import ALI, Array, Batch, Logits, Loss, Losses, Metrics, Networks, TrainState, Variables
from benchmarks import gaussian
from benchmarks.compare import markdown
from benchmarks.gaussian import Gaussian, LinearGaussian

FAULTS = ("sign", "shared_noise", "untrained_encoder")
TRUTH = LinearGaussian(
    weights=np.array([[1.0, 0.4], [-0.5, 0.8], [0.8, 0.0]], np.float32),  # orthogonal columns
    bias=np.array([0.3, -0.2, 0.5], np.float32),
    tau=0.6,
)
BATCH_SIZE = 128
STEPS = 4_000
GAMMA = 0.1  # R1 while encoder and decoder learn
GAMMAS = (0.0, 0.01, 0.1, 1.0)  # R1 of the frozen games
SHIFT, STRETCH = 0.5, 1.4  # of the mismatched encoder's mean and of its sigma
ROWS, CODES = 500, 99  # for the estimates: number of x, and of codes per x
LARGEST_KL = 0.05  # nats; that of an untrained encoder is at least 1
SMALLEST_P = 1e-4  # of the calibration tests, after Holm's correction


class Decoder(nn.Module):
    """The linear-Gaussian decoder; without the PRNG stream `noise` it returns the mean."""

    x_shape: tuple[int]

    @nn.compact
    def __call__(self, z: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map codes [B, Z] to data [B, D]."""
        weights = self.param("weights", nn.initializers.normal(0.5), (*self.x_shape, z.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, self.x_shape)
        log_tau = self.param("log_tau", nn.initializers.zeros, ())
        mean = z @ weights.T + bias[None]
        if not self.has_rng("noise"):
            return mean
        return mean + jnp.exp(log_tau) * jax.random.normal(self.make_rng("noise"), mean.shape)


class SharedNoiseEncoder(Encoder):
    """The fault "shared_noise": all dimensions of a code use the noise of the first."""

    def __call__(self, x: Array, epsilon: Array, y: Array | None = None, *, train: bool = False) -> Array:
        """Map data [B, D] and noise [B, Z], of which only the first column is used, to codes [B, Z]."""
        return super().__call__(x, jnp.broadcast_to(epsilon[:, :1], epsilon.shape), y, train=train)


class Finding(NamedTuple):
    """A number and its allowed range."""

    name: str
    value: float
    low: float = -np.inf
    high: float = np.inf

    @property
    def passes(self) -> bool:
        """Tell whether the number is in range; NaN is not."""
        return self.low <= self.value <= self.high


def make_networks(fault: str | None = None) -> ALI:
    """Make the networks: linear encoder and decoder, a perceptron as discriminator."""
    dimension, size = TRUTH.weights.shape
    encoder = SharedNoiseEncoder if fault == "shared_noise" else Encoder
    return Networks(
        encoder(size, (), init_std=0.1, log_sigma_clip=(-4.0, 1.0)),
        Decoder((dimension,)),
        Discriminator(joint_layers=(64, 64), slope=0.2, init_std=0.0),
    )


def wrong_sign(logits: Logits, batch: Batch) -> tuple[Losses, Metrics]:
    """Return ALI's losses with the generator's negated: the fault "sign"."""
    found, metrics = losses.ali(logits, batch)
    return found._replace(generator=-found.generator), metrics


def true_decoder() -> dict[str, Array]:
    """Return the true model as parameters of `Decoder`."""
    return {
        "weights": jnp.asarray(TRUTH.weights),
        "bias": jnp.asarray(TRUTH.bias),
        "log_tau": jnp.log(jnp.float32(TRUTH.tau)),
    }


def mismatched_encoder() -> dict[str, dict[str, Array]]:
    """Return parameters of `Encoder` for the exact posterior with shifted mean and stretched sigma."""
    exact = gaussian.posterior(TRUTH, np.eye(3) + TRUTH.bias[None])
    sigma = STRETCH * np.sqrt(np.diag(exact.covariance))
    bias = SHIFT - TRUTH.bias @ exact.mean
    parts = {"mu": (exact.mean, bias), "log_sigma": (np.zeros_like(exact.mean), np.log(sigma))}
    return {
        name: {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}
        for name, (kernel, b) in parts.items()
    }


def draw_data(key: Array, n: int) -> tuple[Array, Array]:
    """Draw z [n, Z] from the prior and x [n, D] from the true model; return (x, z)."""
    key_z, key_eta = jax.random.split(key)
    z = jax.random.normal(key_z, (n, TRUTH.weights.shape[1]))
    eta = jax.random.normal(key_eta, (n, len(TRUTH.bias)))
    return z @ TRUTH.weights.T + TRUTH.bias[None] + TRUTH.tau * eta, z


class Game:
    """Networks and their training, compiled once for all weights of the penalty."""

    def __init__(self, ali: ALI, loss: Loss, *, frozen: Sequence[str], steps: int) -> None:
        self.ali, self.loss, self.frozen, self.steps = ali, loss, frozen, steps
        rate = optax.cosine_decay_schedule(4e-3, steps, 0.01)
        players: dict[Any, Any] = {
            "moving": optax.adam(rate, b1=0.5, b2=0.99),
            "frozen": optax.set_to_zero(),
        }
        labels = Networks(*("frozen" if name in frozen else "moving" for name in Networks._fields))
        self.tx = optax.multi_transform(players, labels)
        self._run = jax.jit(self._scan)

    def fit(self, gamma: float, *, seed: int = 0, encoder: Any = None, decoder: Any = None) -> Variables:
        """Train from `seed`, starting from the parameters given; return the averaged variables."""
        key = jax.random.PRNGKey(seed)
        x, _ = draw_data(key, 2)
        state = train.init_state(self.ali, self.tx, key, Batch(x), ema=True)
        params = state.variables.params
        params = params._replace(encoder=encoder or params.encoder, decoder=decoder or params.decoder)
        variables = state.variables._replace(params=params)
        found = self._run(state._replace(variables=variables, ema=variables), gamma)
        assert found.ema is not None
        return found.ema

    def _scan(self, state: TrainState, gamma: Array) -> TrainState:
        def penalty(*arguments: Any) -> tuple[Losses, Metrics]:
            found, metrics = penalties.r1(*arguments, gamma=1.0)
            return found._replace(discriminator=gamma * found.discriminator), metrics

        def step(state: TrainState, _: None) -> tuple[TrainState, None]:
            key = jax.random.fold_in(jax.random.fold_in(state.key, 2**31 - 3), state.step)
            x, _z = draw_data(key, BATCH_SIZE)
            state, _metrics = train.train_step(
                self.ali, self.tx, self.loss, (penalty,), state, Batch(x), ema_decay=0.995
            )
            return state, None

        return jax.lax.scan(step, state, length=self.steps)[0]


def inference_findings(
    name: str, fault: str | None = None, *, frozen: Sequence[str] = ("decoder",), steps: int = STEPS
) -> list[Finding]:
    """Train an encoder and compare it with the exact posterior of its decoder."""
    frozen = (*frozen, "encoder") if fault == "untrained_encoder" else frozen
    ali = make_networks(fault)
    loss = wrong_sign if fault == "sign" else losses.ali
    game = Game(ali, loss, frozen=frozen, steps=steps)
    variables = game.fit(GAMMA, decoder=true_decoder() if "decoder" in frozen else None)
    learnt = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables.params.decoder)
    decoder = LinearGaussian(learnt["weights"], learnt["bias"], float(np.exp(learnt["log_tau"])))

    key_x, key_codes, key_z, key_noise, key_again = jax.random.split(jax.random.PRNGKey(1), 5)
    x, _ = draw_data(key_x, ROWS)
    exact = gaussian.posterior(decoder, np.asarray(x))
    mean, log_sigma = (np.asarray(moment, np.float64) for moment in model.posterior(ali, variables, x))
    z = jax.random.normal(key_z, (ROWS, ali.encoder.latent_dim))
    x_tilde = model.decode(ali, variables, z, key=key_noise)
    p_values = gaussian.calibration(
        decoder, np.asarray(x_tilde), np.asarray(z), draw_codes(ali, variables, key_again, x_tilde)
    )
    adjusted = holm(np.array(list(p_values.values())))
    return [
        Finding(
            f"{name}: KL by moments", gaussian.kl_of_moments(mean, np.exp(log_sigma), exact), 0, LARGEST_KL
        ),
        Finding(
            f"{name}: KL by codes",
            gaussian.kl_of_codes(draw_codes(ali, variables, key_codes, x), exact),
            -0.01,
            LARGEST_KL,
        ),
        *(
            Finding(f"{name}: calibration p, {what}", p, SMALLEST_P)
            for what, p in zip(p_values, adjusted, strict=True)
        ),
    ]


def draw_codes(ali: ALI, variables: Variables, key: Array, x: Array) -> np.ndarray:
    """Draw CODES codes for each x [N, D]; return [CODES, N, Z]."""
    codes = model.encode(ali, variables, jnp.tile(x, (CODES, 1)), key=key)
    return np.asarray(codes, np.float64).reshape(CODES, len(x), -1)


def logit_findings(*, gammas: Sequence[float] = GAMMAS, steps: int = STEPS) -> list[Finding]:
    """Train only D on a known mismatch and compare its logit with the exact log ratio on new pairs."""
    ali = make_networks()
    encoder, decoder = mismatched_encoder(), true_decoder()
    game = Game(ali, losses.ali, frozen=("encoder", "decoder"), steps=steps)
    p = gaussian.decoder_joint(TRUTH)
    data = Gaussian(p.mean[:3], p.covariance[:3, :3])
    mu, sigma = encoder["mu"], jnp.exp(encoder["log_sigma"]["bias"])
    q = gaussian.encoder_joint(data, np.asarray(mu["kernel"]), np.asarray(mu["bias"]), np.asarray(sigma))
    fits = []
    for gamma in gammas:
        variables = game.fit(gamma, encoder=encoder, decoder=decoder)
        key_q, key_p, key_code = jax.random.split(jax.random.PRNGKey(2), 3)
        (x, _), (x_tilde, z) = draw_data(key_q, 5_000), draw_data(key_p, 5_000)
        z_hat = model.encode(ali, variables, x, key=key_code)
        both = jnp.concatenate([x, x_tilde]), jnp.concatenate([z_hat, z])
        logits = np.asarray(model.discriminate(ali, variables, *both))
        ratios = gaussian.log_ratio(q, p, np.asarray(jnp.concatenate(both, axis=1), np.float64))
        fits.append(gaussian.logit_fit(logits, ratios))
    slopes = [fit.slope for fit in fits]
    return [
        Finding("logit: correlation, no penalty", fits[0].correlation, 0.97),
        Finding("logit: slope, no penalty", slopes[0], 0.9, 1.1),
        *(
            Finding(f"logit: slope, R1 gamma {gamma:g}", slope, 0.0, before)
            for gamma, slope, before in zip(gammas[1:], slopes[1:], slopes[:-1], strict=True)
        ),
    ]


def table(findings: Sequence[Finding]) -> str:
    """Return the findings in Markdown."""
    rows = [
        [f.name, f"{f.value:.4g}", f"{f.low:.4g} to {f.high:.4g}", "pass" if f.passes else "FAIL"]
        for f in findings
    ]
    return markdown([["what", "value", "allowed", "verdict"], ["---"] * 4, *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 0 if all findings pass, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.known_answer")
    parser.add_argument("--fault", choices=FAULTS, help="what to break")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    inference = partial(inference_findings, fault=given.fault, steps=given.steps)
    findings = [
        *inference("frozen"),
        *inference("learnt", frozen=()),
        *logit_findings(steps=given.steps),
    ]
    print(table(findings))
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0 if all(finding.passes for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
