"""Evaluators of the joints q(x, z) and p(x, z): their divergence, q(z) against p(z), q(z | x), and D."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax import model
from ali_jax.data import Dataset, unit
from ali_jax.evaluate.declare import TWO_TEST_ROWS, Need, evaluator
from ali_jax.evaluate.numbers import N_TEST, Number, count
from ali_jax.evaluate.rows import distinct_test_rows, picture_rows, test_rows, train_rows
from ali_jax.evaluate.running import compiled, draw_pairs, judge, over_rows, platform_of
from ali_jax.metrics import two_sample
from ali_jax.metrics.divergence import joint_divergence as divergence_of_pairs
from ali_jax.types import ALI, Array, Batch, Report, Variables

CRITIC_PAIRS = 20_000  # of each kind, to train the critic; from fewer train rows some are used repeatedly
CRITIC_BYTES = 2**30  # of x of these pairs, at most: fewer pairs of images above 66x66 pixels in colour
BATCH_NORM_ROWS = 100  # of the batch whose statistics are compared with the running ones


@evaluator(
    needs=(TWO_TEST_ROWS, Need("two train rows or more", lambda data, _: len(data.train) < 2)),
    numbers=(
        Number("joint_jsd", "lower bound in nats, at most log 2; 0 where the joints are equal"),
        Number("joint_jsd_se", "standard error of joint_jsd"),
        Number("joint_accuracy", "accuracy of the critic; 1/2 where it sees no difference"),
        N_TEST,
    ),
)
def joint_divergence(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Bound the Jensen-Shannon divergence of q(x, z) and p(x, z), which ALI minimises, by a new critic.

    The critic is trained on 20,000 pairs of each kind with x from four fifths of train, and stopped early by
    the rest of train. It is scored on one sampled code of each test row, at most 10,000.
    """
    train, test = train_rows(dataset), test_rows(dataset)
    is_validation = np.arange(len(train.x)) % 5 == 0
    fit = np.flatnonzero(~is_validation)
    number = max(1, min(CRITIC_PAIRS, CRITIC_BYTES // (4 * math.prod(train.x.shape[1:]))))
    index = fit[np.arange(number) * len(fit) // number]
    parts = (
        jax.tree.map(lambda array, at=at: array[at], train) for at in (index, np.flatnonzero(is_validation))
    )
    pairs = [
        draw_pairs(ali, variables, k, rows, dataset.divisor)
        for k, rows in zip(jax.random.split(key, 3), (*parts, test), strict=True)
    ]
    bound = divergence_of_pairs(*pairs)
    scalars = {
        "joint_jsd": bound.jensen_shannon,
        "joint_jsd_se": bound.standard_error,
        "joint_accuracy": bound.accuracy,
        "n_test": float(len(test.x)),
    }
    return Report(scalars, {})


@evaluator(
    needs=(
        TWO_TEST_ROWS,
        Need(
            "as many test rows as the discriminator judges at once (config.discriminator.packing)",
            lambda data, ali: len(data.test) < model.packing(ali),
        ),
    ),
    numbers=(
        Number(
            "d_logit_change",
            "mean |s(x, z) - s(x, z')| for z' shuffled within each kind of pairs; 0 if D ignores z",
        ),
        Number("d_auc", "area under D's ROC curve for the two kinds of pairs; 1/2 at the game's solution"),
        Number("d_auc_drop", "how much of d_auc is lost when z is shuffled"),
        count("n_pairs", "pairs of each kind"),
    ),
)
def discriminator_use_of_z(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how much D uses z, on both kinds of pairs for each distinct test row, at most 2,000.

    Where D has K logits, s is their logsumexp. Where D judges packs of pairs, which are all of one kind, a
    pack has one logit.
    """
    pairs = draw_pairs(ali, variables, key, distinct_test_rows(dataset), dataset.divisor)
    rng = _generator(key)
    logits = [
        judge(ali, variables, x, z[order], pairs.y)
        for x, z in ((pairs.x, pairs.z_hat), (pairs.x_tilde, pairs.z))
        for order in (np.arange(len(z)), two_sample.derangement(rng, len(z)))
    ]
    scalars = {f"d_{name}": value for name, value in two_sample.use_of_z(*logits)._asdict().items()}
    return Report({**scalars, "n_pairs": float(len(logits[0]) * model.packing(ali))}, {})


@evaluator(
    needs=(TWO_TEST_ROWS,),
    numbers=(
        Number("code_mmd", "squared maximum mean discrepancy; its expectation is 0 where q(z) = p(z)"),
        Number("code_energy", "energy distance; its expectation is 0 where q(z) = p(z)"),
        Number(
            "code_neighbor",
            "share of rows whose nearest neighbour is of the same sample; 1/2 where q(z) = p(z)",
        ),
        Number("code_ks", "largest Kolmogorov-Smirnov distance of a single dimension from N(0, 1)"),
        *(
            Number(f"{test}_p", "p-value of the test; for a fixed n the distance says more")
            for test in ("code_mmd", "code_energy", "code_neighbor", "code_ks")
        ),
        Number("code_mean_error", "|mean| / sqrt(Z)"),
        Number("code_covariance_error", "|covariance - I|_F / Z"),
        *(
            Number(f"{name}_floor", "the same of draws from the prior, for the same n", control=True)
            for name in ("code_mean_error", "code_covariance_error")
        ),
        Number("code_width", "standard deviation of q(z | x), over all dimensions"),
        Number("code_width_min", "standard deviation of q(z | x) in the narrowest dimension"),
        Number(
            "code_width_max",
            "standard deviation of q(z | x) in the widest dimension; near 1 it says nothing about x",
        ),
        count("n_codes", "codes compared, and as many draws of the prior"),
    ),
)
def code_distribution(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Compare q(z) with p(z) by two-sample tests and moments, as `metrics.two_sample.code_statistics` does.

    One code of each distinct test row is sampled, at most 2,000. These are compared with as many draws of the
    prior.
    """
    key_codes, key_other, key_prior = jax.random.split(key, 3)
    rows = distinct_test_rows(dataset)
    z_hat, other = (
        over_rows(model.encode, ali, variables, rows, dataset.divisor, key=k) for k in (key_codes, key_other)
    )
    z = np.asarray(jax.random.normal(key_prior, z_hat.shape))
    scalars = two_sample.code_statistics(z_hat, other, z, _generator(key))
    return Report({**scalars, "n_codes": float(len(z))}, {})


@evaluator(
    needs=(
        Need(
            "a Gaussian encoder, with `moments(x, y, *, train)`; this one is none",
            lambda _, ali: not model.has_gaussian_encoder(ali),
            of_data=False,
        ),
    ),
    numbers=(
        Number("posterior_sigma", "the encoder's median sigma over test rows and dimensions"),
        N_TEST,
    ),
)
def posterior(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how wide the posterior q(z | x) of a Gaussian encoder is.

    At most 10,000 rows of test are used. `key` is not used.
    """
    del key
    test = test_rows(dataset)
    _, log_sigma = over_rows(model.posterior, ali, variables, test, dataset.divisor)
    return Report({"posterior_sigma": float(np.exp(np.median(log_sigma))), "n_test": float(len(test.x))}, {})


@evaluator(
    numbers=(
        *(
            Number(
                f"batch_norm_gap_{network}",
                "mean squared difference between the network's outputs in training mode and in evaluation, "
                "over the variance of the latter; 0 without batch norm",
            )
            for network in ("encoder", "decoder")
        ),
        count("n_batch_norm", "rows of the batch"),
    )
)
def batch_norm(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure how far the running batch statistics disagree with those of a batch of 100 test rows.

    The gaps are small once the running statistics have settled.
    """
    rows = picture_rows(dataset, key, BATCH_NORM_ROWS)
    batch = Batch(jnp.asarray(unit(rows.x, dataset.divisor)), None if rows.y is None else jnp.asarray(rows.y))
    run = compiled(_in_both_modes, platform_of(variables))
    pairs = jax.tree.map(np.asarray, run(ali, variables, key, batch))
    gaps = [np.mean(np.square(a - b)) / max(np.mean(b.var(axis=0)), 1e-12) for a, b in pairs]
    scalars = dict(zip(("batch_norm_gap_encoder", "batch_norm_gap_decoder"), map(float, gaps), strict=True))
    return Report({**scalars, "n_batch_norm": float(len(rows.x))}, {})


def _in_both_modes(ali: ALI, variables: Variables, key: Array, batch: Batch) -> tuple:
    """Return codes and samples, each as two arrays [N, D] of one noise: in training mode, in evaluation."""
    params, batch_stats = variables
    noise = model.draw_noise(ali, key, batch.x.shape[0])
    pairs, _ = model.generate(ali, params, batch_stats, batch, noise)
    encoder = model.collections(params.encoder, batch_stats.encoder)
    z_hat = ali.encoder.apply(encoder, batch.x, noise.epsilon, batch.y, train=False)
    x_tilde = model.decode(ali, variables, noise.z, batch.y)
    flat = [a.reshape(a.shape[0], -1) for a in (pairs.z_hat, z_hat, pairs.x_tilde, x_tilde)]
    return (flat[0], flat[1]), (flat[2], flat[3])


def _generator(key: Array) -> np.random.Generator:
    """Return NumPy's generator for draws on the host, seeded by a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
