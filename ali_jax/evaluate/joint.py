"""Evaluators of the two joints and their parts: q(x, z) against p(x, z), q(z) against p(z), q(z | x), D."""

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax import model
from ali_jax.data import Dataset, unit
from ali_jax.evaluate.needs import TWO_TEST_ROWS, Need, needs
from ali_jax.evaluate.rows import distinct_test_rows, picture_rows, test_rows, train_rows
from ali_jax.evaluate.running import compiled, draw_pairs, judge, over_rows, platform_of
from ali_jax.metrics import two_sample
from ali_jax.metrics.divergence import joint_divergence as divergence_of_pairs
from ali_jax.types import ALI, Array, Batch, Report, Variables

CRITIC_PAIRS = 20_000  # of either kind, of which the critic learns; fewer train rows are taken several times
BATCH_NORM_ROWS = 100  # of the batch whose statistics are compared with the running ones


@needs(TWO_TEST_ROWS, Need("two train rows or more", lambda data, _: len(data.train) < 2))
def joint_divergence(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Bound the Jensen-Shannon divergence of q(x, z) and p(x, z), which ALI minimises, by a fresh critic.

    joint_jsd           lower bound in nats, of log 2 at most; 0 where the joints are equal
    joint_jsd_se        its standard error
    joint_accuracy      of the critic; 1/2 where it sees no difference

    It is trained on 20,000 pairs of either kind with x of train, stopped by a fifth of the train rows that it
    does not learn from, and judged on one sampled code of each test row, at most 10,000 (n_test).
    """
    train, test = train_rows(dataset), test_rows(dataset)
    aside = np.arange(len(train.x)) % 5 == 0
    learnt = np.flatnonzero(~aside)
    index = learnt[np.arange(CRITIC_PAIRS) * len(learnt) // CRITIC_PAIRS]
    parts = (jax.tree.map(lambda array, at=at: array[at], train) for at in (index, np.flatnonzero(aside)))
    pairs = [
        draw_pairs(ali, variables, k, rows, dataset.divisor)
        for k, rows in zip(jax.random.split(key, 3), (*parts, test), strict=True)
    ]
    found = divergence_of_pairs(*pairs)
    scalars = {
        "joint_jsd": found.jensen_shannon,
        "joint_jsd_se": found.standard_error,
        "joint_accuracy": found.accuracy,
        "n_test": float(len(test.x)),
    }
    return Report(scalars, {})


@needs(
    TWO_TEST_ROWS,
    Need(
        "as many test rows as the discriminator judges at once (config.discriminator.packing)",
        lambda data, ali: len(data.test) < model.packing(ali),
    ),
)
def discriminator_use_of_z(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how much D looks at z, on both kinds of pairs of each distinct test row, at most 2,000.

    d_logit_change  mean |s(x, z) - s(x, z')|, z' shuffled within each kind of pairs; 0 if D ignores z
    d_auc           of D, telling the two kinds of pairs apart; 1/2 at the game's solution
    d_auc_drop      what that loses when z is shuffled

    Of K logits their logsumexp counts; a pack of pairs, which is of one kind, has one logit.
    """
    pairs = draw_pairs(ali, variables, key, distinct_test_rows(dataset), dataset.divisor)
    rng = _generator(key)
    logits = [
        judge(ali, variables, x, z[order], pairs.y)
        for x, z in ((pairs.x, pairs.z_hat), (pairs.x_tilde, pairs.z))
        for order in (np.arange(len(z)), two_sample.derangement(rng, len(z)))
    ]
    found = {f"d_{name}": value for name, value in two_sample.use_of_z(*logits)._asdict().items()}
    return Report({**found, "n_pairs": float(len(logits[0]) * model.packing(ali))}, {})


@needs(TWO_TEST_ROWS)
def code_distribution(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Compare q(z) with p(z) as `metrics.two_sample.code_statistics` does.

    code_mmd, code_energy  squared MMD and energy distance of codes from prior draws, both with expectation 0
                           where q(z) = p(z)
    code_neighbor          share of rows whose nearest neighbour is of their own sample; 1/2 where q(z) = p(z)
    code_ks                largest Kolmogorov-Smirnov distance of one dimension from N(0, 1)
    code_mmd_p, code_energy_p, code_neighbor_p, code_ks_p
                           their p-values; at a fixed n the distance is the finding
    code_mean_error, code_covariance_error
                           |mean| / sqrt(Z) and |covariance - I|_F / Z
    code_mean_error_floor, code_covariance_error_floor
                           what true draws of the prior have at this n
    code_width, code_width_min, code_width_max
                           standard deviation of q(z | x), of all dimensions, the narrowest, the widest; near
                           1: that dimension says nothing about x

    One sampled code of each distinct test row, at most 2,000 (n_codes), with as many draws of the prior.
    """
    key_codes, key_other, key_prior = jax.random.split(key, 3)
    rows = distinct_test_rows(dataset)
    z_hat, other = (
        over_rows(model.encode, ali, variables, rows, dataset.divisor, key=k) for k in (key_codes, key_other)
    )
    z = np.asarray(jax.random.normal(key_prior, z_hat.shape))
    scalars = two_sample.code_statistics(z_hat, other, z, _generator(key))
    return Report({**scalars, "n_codes": float(len(z))}, {})


@needs(
    Need(
        "a Gaussian encoder, with `moments(x, y, *, train)`; this one is none",
        lambda _, ali: not model.has_gaussian_encoder(ali),
        of_data=False,
    )
)
def posterior(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure posterior_sigma, the encoder's median sigma over at most 10,000 test rows and all dimensions.

    Nothing is drawn from `key`. Raises ValueError for an encoder that is no Gaussian.
    """
    del key
    test = test_rows(dataset)
    _, log_sigma = over_rows(model.posterior, ali, variables, test, dataset.divisor)
    return Report({"posterior_sigma": float(np.exp(np.median(log_sigma))), "n_test": float(len(test.x))}, {})


def batch_norm(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how far running batch statistics disagree with those of a batch of 100.

    batch_norm_gap_encoder, batch_norm_gap_decoder
        mean squared difference between the outputs in training mode and in evaluation, over the variance of
        the latter; 0 where a network has no batch norm, and small where the running statistics have settled
    """
    rows = picture_rows(dataset, key, BATCH_NORM_ROWS)
    batch = Batch(jnp.asarray(unit(rows.x, dataset.divisor)), None if rows.y is None else jnp.asarray(rows.y))
    run = compiled(_in_both_modes, platform_of(variables))
    pairs = jax.tree.map(np.asarray, run(ali, variables, key, batch))
    gaps = [np.mean(np.square(a - b)) / max(np.mean(b.var(axis=0)), 1e-12) for a, b in pairs]
    scalars = dict(zip(("batch_norm_gap_encoder", "batch_norm_gap_decoder"), map(float, gaps), strict=True))
    return Report({**scalars, "n_batch_norm": float(len(rows.x))}, {})


def _in_both_modes(ali: ALI, variables: Variables, key: Array, batch: Batch) -> tuple:
    """Return codes and samples of the same noise, each in training mode and in evaluation, flat."""
    params, batch_stats = variables
    noise = model.draw_noise(ali, key, batch.x.shape[0])
    pairs, _ = model.generate(ali, params, batch_stats, batch, noise)
    held = model.collections(params.encoder, batch_stats.encoder)
    z_hat = ali.encoder.apply(held, batch.x, noise.epsilon, batch.y, train=False)
    x_tilde = model.decode(ali, variables, noise.z, batch.y)
    flat = [a.reshape(a.shape[0], -1) for a in (pairs.z_hat, z_hat, pairs.x_tilde, x_tilde)]
    return (flat[0], flat[1]), (flat[2], flat[3])


def _generator(key: Array) -> np.random.Generator:
    """Return numpy's generator for what is drawn on the host."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
