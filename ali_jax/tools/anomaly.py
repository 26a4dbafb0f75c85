"""Anomaly detection with a trained model: scores, and thresholds with a chosen false-alarm rate.

`AnomalyScorer` follows scikit-learn's conventions for outlier detection; `egbad`, `alad` and `ladder_error`
are its scores as pure functions. Conditional models are not supported.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin

from ali_jax import model
from ali_jax.metrics import conformal, ladder
from ali_jax.metrics.blocks import map_blocks
from ali_jax.networks.convolutions import compiler_options, platform_of
from ali_jax.types import ALI, Array, PyTree, Variables

SCORES = ("egbad", "egbad_logit", "ladder", "alad")


def egbad(
    ali: ALI, variables: Variables, x: Array, *, weight: float = 0.9, match_features: bool = True
) -> Array:
    """Return the anomaly scores [N] of EGBAD (Zenati et al., 2018) for x [N, *X], with z the mean code of x.

        weight |x - G(z)|_1 + (1 - weight) L

    With `match_features` L is |f(x, z) - f(G(z), z)|_1, where f is D's last joint layer, before activation.
    Otherwise L is softplus(-s(x, z)), the cross-entropy of D's logit s with "from the encoder"; of K logits s
    is the logsumexp. Norms are sums.

    Raises:
      ValueError: `match_features` is set and D has no joint layer, or D judges several rows at once.
    """
    _check_unpacked(ali, "egbad")
    z = model.encode(ali, variables, x)
    x_hat = model.decode(ali, variables, z)
    if match_features:
        of_discriminator = _absolute(
            _joint_features(ali, variables, x, z) - _joint_features(ali, variables, x_hat, z)
        )
    else:
        of_discriminator = jax.nn.softplus(-model.encoder_logit(ali, variables, x, z))
    return weight * _absolute(x - x_hat) + (1 - weight) * of_discriminator


def alad(ali: ALI, variables: Variables, x: Array) -> Array:
    """Return the anomaly scores [N] of ALAD (Zenati et al., 2018, arXiv 1812.02288) for x [N, *X].

        |f(x, x) - f(x, x_hat)|_1,  x_hat from the mean code

    f is the last hidden layer, after its activation, of the discriminator of pairs of data that
    `penalties.adversarial_cycle` trains. The norm is a sum.

    Raises:
      ValueError: D has no such layer, or judges several rows at once.
    """
    if not getattr(ali.discriminator, "pair_layers", ()):
        raise ValueError(
            "score='alad' reads a discriminator of pairs (x, x_hat), trained along with the model, and this "
            f"model has none: choose one of {', '.join(name for name in SCORES if name != 'alad')}, or train "
            "with config.discriminator.pair_layers and config.penalties.adversarial_cycle.weight."
        )
    _check_unpacked(ali, "alad")
    x_hat = model.reconstruct(ali, variables, x)
    return _absolute(_pair_features(ali, variables, x, x) - _pair_features(ali, variables, x, x_hat))


def ladder_error(ali: ALI, variables: Variables, x: Array, *, steps: int = 20) -> ladder.Fit:
    """Refine the mean codes of x [N, *X] by `steps` Adam steps; return the best codes and errors [N]."""
    decode = functools.partial(model.decode, ali, variables)
    return ladder.refine(decode, x, model.encode(ali, variables, x), steps=steps)


class AnomalyScorer(OutlierMixin, BaseEstimator):
    """Detect anomalous rows with a model of normal rows.

    Args:
      ali: the networks.
      variables: their variables, trained on normal rows.
      score: `egbad`: reconstruction and feature matching; `egbad_logit`: reconstruction and D's logit;
        `ladder`: the reconstruction error after a few gradient steps on the encoder's code;
        `alad`: features of a discriminator of pairs of data, for models trained with one.
      weight: of the reconstruction in the two EGBAD scores.
      steps: number of gradient steps of `ladder`.
      false_alarm_rate: alpha, the probability that `predict` calls a normal row anomalous. It takes at least
        1 / alpha - 1 calibration rows.

    Rows are [N, *X] as the networks take them: finite floats, images [N, H, W, C] in [0, 1]. Others are a
    ValueError.

    Attributes of a fitted scorer:
      calibration_scores_: [n] sorted anomaly scores of the calibration rows.
      offset_: the threshold on `score_samples`.
    """

    def __init__(
        self,
        ali: ALI,
        variables: Variables,
        *,
        score: str = "ladder",
        weight: float = 0.9,
        steps: int = 20,
        false_alarm_rate: float = 0.05,
    ) -> None:
        self.ali = ali
        self.variables = variables
        self.score = score
        self.weight = weight
        self.steps = steps
        self.false_alarm_rate = false_alarm_rate

    def fit(self, normal: np.ndarray, y: Any = None) -> "AnomalyScorer":
        """Set the threshold with normal rows [n, *X] that had no influence on the training.

        Training rows have smaller errors than new ones, so a threshold set with them would give more false
        alarms than stated. `y` is ignored, as usual in scikit-learn.
        """
        conformal.allowed_exceedances(len(normal), self.false_alarm_rate)
        scores = np.sort(-self.score_samples(normal))
        self.offset_ = -conformal.threshold(scores, self.false_alarm_rate)
        self.calibration_scores_ = scores
        return self

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """Return the negated anomaly scores [N] of x [N, *X]: the higher, the more normal."""
        if self.score == "ladder":
            scores = self._over_rows(_ladder_scores, x, (self.steps,))
        elif self.score in ("egbad", "egbad_logit"):
            scores = self._over_rows(_egbad_scores, x, (self.score == "egbad", self.weight))
        elif self.score == "alad":
            scores = self._over_rows(_alad_scores, x, (None,))
        else:
            raise ValueError(f"score is {self.score!r}; it must be one of {', '.join(SCORES)}.")
        return -scores.astype(np.float64)

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """Return [N], `score_samples` minus the threshold: negative is anomalous."""
        self._check_fitted()
        return self.score_samples(x) - self.offset_

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return [N]: -1 where the p-value is at most `false_alarm_rate`, else 1."""
        return np.where(self.decision_function(x) < 0, -1, 1)

    def p_values(self, x: np.ndarray) -> np.ndarray:
        """Return the split-conformal p-values [N] of x [N, *X]: small is anomalous."""
        self._check_fitted()
        return conformal.p_values(self.calibration_scores_, -self.score_samples(x))

    def pixel_map(self, x: np.ndarray) -> np.ndarray:
        """Return |x - x_hat| as [N, H, W], averaged over channels, or for vectors as [N, D].

        x_hat is the reconstruction that the score uses.
        """
        steps = self.steps if self.score == "ladder" else 0
        return self._over_rows(_pixel_map, x, (steps,))

    def _over_rows(self, function: Callable[..., Array], x: np.ndarray, options: tuple) -> np.ndarray:
        _check_rows(np.asarray(x))
        platform = platform_of()
        run = _compiled(function, platform)
        return map_blocks(
            lambda block: run(self.ali, self.variables, block, *options), np.asarray(x, np.float32)
        )

    def _check_fitted(self) -> None:
        if not hasattr(self, "offset_"):
            raise ValueError("This AnomalyScorer has no threshold yet: call fit with held-out normal rows.")


def _check_rows(x: np.ndarray) -> None:
    """Raise a ValueError for rows that are not as the networks take them."""
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"The rows are {x.dtype}: give floats as the networks take them, with images scaled to [0, 1]."
        )
    broken = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if broken.size:
        raise ValueError(
            f"{broken.size} of {len(x)} rows have numbers that are not finite, the first in row {broken[0]}: "
            "leave these rows out or fill their gaps."
        )
    if x.ndim == 4 and x.size and not 0 <= x.min() <= x.max() <= 1:
        raise ValueError(
            f"The images lie between {x.min():.4g} and {x.max():.4g}, and the networks take [0, 1]: give "
            "x / 255 for bytes, (x + 1) / 2 for [-1, 1], and np.clip(x, 0, 1) where resizing went beyond."
        )


def _egbad_scores(ali: ALI, variables: Variables, x: Array, match_features: bool, weight: float) -> Array:
    return egbad(ali, variables, x, weight=weight, match_features=match_features)


def _alad_scores(ali: ALI, variables: Variables, x: Array, options: None) -> Array:
    del options
    return alad(ali, variables, x)


def _ladder_scores(ali: ALI, variables: Variables, x: Array, steps: int) -> Array:
    return ladder_error(ali, variables, x, steps=steps).error


def _pixel_map(ali: ALI, variables: Variables, x: Array, steps: int) -> Array:
    x_hat = model.decode(ali, variables, ladder_error(ali, variables, x, steps=steps).z)
    difference = jnp.abs(x - x_hat)
    return difference.mean(axis=-1) if x.ndim == 4 else difference


def _joint_features(ali: ALI, variables: Variables, x: Array, z: Array) -> Array:
    flax_variables = _of_discriminator(variables)
    _, sown = ali.discriminator.apply(flax_variables, x, z, None, train=False, mutable=["intermediates"])
    layers = sown.get("intermediates", {}).get("joint", {}).get("pre_activation", ())
    if not layers:
        raise ValueError(
            "egbad reads D's last joint layer, sown as joint/pre_activation, which this discriminator does "
            "not have: take score='egbad_logit' or 'ladder'."
        )
    return layers[-1]


def _pair_features(ali: ALI, variables: Variables, x: Array, x_prime: Array) -> Array:
    _, captured = ali.discriminator.apply(
        _of_discriminator(variables),
        x,
        x_prime,
        None,
        train=False,
        method="pair",
        capture_intermediates=lambda module, _: module.name == "pairs",
        mutable=["intermediates"],
    )
    outputs = captured.get("intermediates", {}).get("pairs", {}).get("__call__", ())
    if not outputs:
        raise ValueError(
            "alad reads the output of D's submodule `pairs`, which this discriminator does not have: choose "
            "another score."
        )
    return outputs[-1]


def _of_discriminator(variables: Variables) -> dict[str, PyTree]:
    return {
        "params": variables.params.discriminator,
        "batch_stats": variables.batch_stats.discriminator,
    }


def _check_unpacked(ali: ALI, score: str) -> None:
    if (m := model.packing(ali)) > 1:
        raise ValueError(
            f"{score} scores single rows, and this discriminator judges {m} at once "
            "(config.discriminator.packing): take score='ladder'."
        )


def _absolute(difference: Array) -> Array:
    """Return the sum of absolute values of each row [N]."""
    return jnp.sum(jnp.abs(difference).reshape(len(difference), -1), axis=1)


@functools.cache
def _compiled(function: Callable[..., Array], platform: str) -> Callable[..., Array]:
    """Compile a function of (ali, variables, x, option, ...) with static ali and option."""
    return jax.jit(function, static_argnums=(0, 3), compiler_options=compiler_options(platform))
