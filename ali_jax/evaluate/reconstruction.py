"""Evaluators of reconstructions: their error, and how much of it the encoder and the decoder cause."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ali_jax import model
from ali_jax.data import Dataset, unit
from ali_jax.evaluate.declare import TWO_TEST_ROWS, evaluator
from ali_jax.evaluate.numbers import N_TEST, Number, count
from ali_jax.evaluate.rows import test_rows
from ali_jax.evaluate.running import compiled, over_rows, platform_of
from ali_jax.metrics import reconstruction
from ali_jax.metrics.blocks import map_blocks
from ali_jax.metrics.ladder import Ladder, code_error, ladder
from ali_jax.types import ALI, Array, Report, Variables

LADDER_SAMPLES = 10  # of each row's posterior
LADDER_ROWS_PER_BLOCK = 100
LADDER_STARTS = 2  # random codes of each row from which a better one is sought


@evaluator(
    needs=(TWO_TEST_ROWS,),
    numbers=(
        Number(
            "reconstruction_mse",
            "mean squared error per pixel of reconstructions from the mean code, x in [0, 1]",
            headline="reconstruction error",
            scale=("reconstruction_mse_random_pair", "for a random pair"),
        ),
        Number("reconstruction_mse_sampled", "the same error of reconstructions from a sampled code"),
        Number(
            "reconstruction_mse_random_pair",
            "the same error between two different test images",
            control=True,
        ),
        N_TEST,
    ),
)
def reconstruction_error(ali: ALI, variables: Variables, key: Array, dataset: Dataset) -> Report:
    """Measure the error of reconstructions of at most 10,000 test rows."""
    test = test_rows(dataset)
    errors = functools.partial(
        over_rows,
        *(model.reconstruct, ali, variables, test, dataset.divisor),
        read=reconstruction.row_errors,
    )
    scalars = {
        "reconstruction_mse": float(np.mean(errors())),
        "reconstruction_mse_sampled": float(np.mean(errors(key=key))),
        "reconstruction_mse_random_pair": reconstruction.random_pair_error(test.x, divisor=dataset.divisor),
        "n_test": float(len(test.x)),
    }
    return Report(scalars, {})


@evaluator(
    needs=(TWO_TEST_ROWS,),
    numbers=(
        Number("ladder_random_pair", "mean squared error per pixel of two different test rows", control=True),
        Number("ladder_sample", "error from a sampled code"),
        Number("ladder_mean", "error from the mean code"),
        Number("ladder_best_of_k", "error from the best of 10 sampled codes"),
        Number("ladder_refined", "error from the best code of ladder_steps Adam steps, from the mean code"),
        Number("ladder_searched", "error from the best code of as many steps, from two codes of the prior"),
        Number(
            "ladder_decoder_gap",
            "error from the best of these codes: an upper bound of the decoder's share of ladder_mean",
        ),
        Number("ladder_encoder_gap", "the rest of ladder_mean: a lower bound of the encoder's share"),
        Number(
            "ladder_code",
            "error of z -> x -> z, per dimension, z ~ N(0, I): 2 for a random pair, 1 for a code of zeros",
        ),
        count("n_ladder", "test rows used"),
    ),
)
def reconstruction_ladder(
    ali: ALI,
    variables: Variables,
    key: Array,
    dataset: Dataset,
    *,
    ladder_rows: int = 300,
    ladder_steps: int = 100,
) -> Report:
    """Measure how much of the reconstruction error the encoder and the decoder cause.

    Errors are mean squared errors per pixel, for x in [0, 1], on the first `ladder_rows` of the test rows
    that evaluators use, with their conditions.
    """
    test = jax.tree.map(lambda array: array[:ladder_rows], test_rows(dataset))
    run = compiled(_climb, platform_of(variables), static=(0, 5))

    def on_block(index: np.ndarray, x: np.ndarray, y: np.ndarray | None) -> tuple[Ladder, Array]:
        key_block = jax.random.fold_in(key, index[0])
        return run(ali, variables, key_block, unit(x, dataset.divisor), y, ladder_steps)

    errors, code = map_blocks(on_block, np.arange(len(test.x)), test.x, test.y, size=LADDER_ROWS_PER_BLOCK)
    scalars = {f"ladder_{name}": float(np.mean(error)) for name, error in errors._asdict().items()}
    scalars |= {
        "ladder_random_pair": reconstruction.random_pair_error(test.x, divisor=dataset.divisor),
        "ladder_decoder_gap": float(np.mean(np.asarray(errors.decoder_gap))),
        "ladder_code": float(np.mean(code)),
        "n_ladder": float(len(test.x)),
    }
    scalars["ladder_encoder_gap"] = scalars["ladder_mean"] - scalars["ladder_decoder_gap"]
    return Report(scalars, {})


def _climb(
    ali: ALI, variables: Variables, key: Array, x: Array, y: Array | None, steps: int
) -> tuple[Ladder, Array]:
    """Return the ladder of x [N, *X], and the errors [N] of z -> x -> z for as many draws of the prior."""
    key_samples, key_starts, key_prior = jax.random.split(key, 3)
    encode = functools.partial(model.encode, ali, variables, y=y)
    decode = functools.partial(model.decode, ali, variables, y=y)
    samples = jnp.stack([encode(x, key=k) for k in jax.random.split(key_samples, LADDER_SAMPLES)])
    starts = jax.random.normal(key_starts, (LADDER_STARTS, len(x), model.latent_dim(ali)))
    z = jax.random.normal(key_prior, starts.shape[1:])
    return ladder(decode, x, encode(x), samples, starts, steps=steps), code_error(encode, decode, z)
