"""Anomaly detection with a trained model: scores, and thresholds with a chosen false-alarm rate.

`AnomalyScorer` is an outlier detector of scikit-learn; `egbad`, `alad` and `ladder_error` are its scores as
pure functions. Models that are given conditions have `anomaly_scores` of the kind `ladder` alone: whether a
row is unusual for its own condition.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ali_jax import model
from ali_jax.metrics import conformal, ladder
from ali_jax.metrics.blocks import map_fixed_blocks
from ali_jax.networks.convolutions import compiler_options, platform_of
from ali_jax.tools.estimator import ALIEstimator, flattened
from ali_jax.tools.trained import Model
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
            "kind='alad' reads a discriminator of pairs (x, x_hat), trained along with the model, and this "
            f"model has none: choose one of {', '.join(name for name in SCORES if name != 'alad')}, or train "
            "with config.discriminator.pair_layers and config.penalties.adversarial_cycle.weight."
        )
    _check_unpacked(ali, "alad")
    x_hat = model.reconstruct(ali, variables, x)
    return _absolute(_pair_features(ali, variables, x, x) - _pair_features(ali, variables, x, x_hat))


def ladder_error(
    ali: ALI, variables: Variables, x: Array, y: Array | None = None, *, steps: int = 20
) -> ladder.Fit:
    """Refine the mean codes of x [N, *X] by `steps` Adam steps; return the best codes and errors [N]."""
    decode = functools.partial(model.decode, ali, variables, y=y)
    return ladder.refine(decode, x, model.encode(ali, variables, x, y), steps=steps)


def anomaly_scores(
    trained: Model, X: Any, y: Any = None, *, kind: str = "ladder", weight: float = 0.9, steps: int = 20
) -> np.ndarray:
    """Return the anomaly scores [N] of rows, by a trained model: the higher, the more anomalous.

    The arguments are those of `AnomalyScorer`. `y` are the conditions of a model that is given some, as in
    `Model.encode`; of the scores only `ladder` takes such models.
    """
    x = trained.rows(X)
    conditions = trained.condition_rows(y, len(x))
    if conditions is not None and kind != "ladder":
        raise ValueError(f"kind is {kind!r}, and this model is given conditions: take kind='ladder'.")
    if kind == "ladder":
        run = _compiled(_ladder_scores, platform_of(trained.variables))
        scores = map_fixed_blocks(
            lambda x, y: run(trained.ali, trained.variables, x, steps, y), x, conditions
        )
    elif kind in ("egbad", "egbad_logit"):
        scores = _over_rows(_egbad_scores, trained, x, kind == "egbad", weight)
    elif kind == "alad":
        scores = _over_rows(_alad_scores, trained, x, None)
    else:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(SCORES)}.")
    return scores.astype(np.float64)


def _over_rows(function: Callable[..., Array], trained: Model, x: np.ndarray, *options: Any) -> np.ndarray:
    """Apply a compiled function of (ali, variables, x, *options) to rows in blocks."""
    run = _compiled(function, platform_of(trained.variables))
    return map_fixed_blocks(lambda block: run(trained.ali, trained.variables, block, *options), x)


class AnomalyScorer(OutlierMixin, BaseEstimator):
    """Detect anomalous rows with a model of normal rows, at a false-alarm rate chosen in advance.

    Args:
      estimator: what models the normal rows. An `ALIEstimator` is cloned and trained on one half of the rows
        of `fit`; the other half sets the threshold. What is trained already leaves all rows to the
        threshold: a model of `ali_jax.load`, or that model or an `ALIEstimator` in scikit-learn's
        `FrozenEstimator`. None: an `ALIEstimator` with its defaults.
      kind: of score. `egbad`: reconstruction and feature matching; `egbad_logit`: reconstruction and D's
        logit; `ladder`: the reconstruction error after a few gradient steps on the encoder's code;
        `alad`: features of a discriminator of pairs of data, for models trained with one.
      weight: of the reconstruction in the two EGBAD scores.
      steps: number of gradient steps of `ladder`.
      false_alarm_rate: alpha, the probability that `predict` calls a normal row anomalous. It takes at least
        1 / alpha - 1 rows for the threshold.
      random_state: seed or generator of the halves and of the training.

    Rows are as the estimator takes them. Scores are in the units of its networks.

    Attributes of a fitted scorer:
      estimator_: the trained model.
      calibration_scores_: [n] sorted anomaly scores of the rows that set the threshold.
      offset_: the threshold on `score_samples`.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        kind: str = "ladder",
        weight: float = 0.9,
        steps: int = 20,
        false_alarm_rate: float = 0.05,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.kind = kind
        self.weight = weight
        self.steps = steps
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "AnomalyScorer":
        """Model normal rows and set the threshold; `y` is ignored.

        For a model that is trained already, the rows must have had no influence on its training: training
        rows have smaller errors than new ones and would give more false alarms than stated.
        """
        del y
        estimator = _unwrapped(self.estimator)
        if _is_trained(estimator):
            self.estimator_, calibration = estimator, X
            if not isinstance(estimator, Model):
                flattened(self, X, reset=True)
        else:
            calibration = self._train_on_half(X)
        conformal.allowed_exceedances(len(calibration), self.false_alarm_rate)
        scores = np.sort(-self._scores(calibration))
        self.offset_ = -conformal.threshold(scores, self.false_alarm_rate)
        self.calibration_scores_ = scores
        return self

    def _train_on_half(self, X: Any) -> np.ndarray:
        """Train a clone of the estimator on a random half of the rows; return the other half."""
        rows, shape, _ = flattened(self, X, reset=True, fewest=4)
        rows = np.asarray(X) if len(shape) > 1 else rows
        random = check_random_state(self.random_state)
        order, half = random.permutation(len(rows)), len(rows) // 2
        conformal.allowed_exceedances(len(rows) - half, self.false_alarm_rate)
        estimator: Any = ALIEstimator() if self.estimator is None else clone(self.estimator)
        if estimator.random_state is None:
            estimator.set_params(random_state=random.randint(2**31 - 1))
        self.estimator_ = estimator.fit(rows[order[:half]])
        return rows[order[half:]]

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the negated anomaly scores [N] of rows: the higher, the more normal."""
        check_is_fitted(self)
        return self._scores(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return [N], `score_samples` minus the threshold: negative is anomalous."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return [N]: -1 where the p-value is at most `false_alarm_rate`, else 1."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> np.ndarray:
        """Return the split-conformal p-values [N] of rows: small is anomalous."""
        scores = -self.score_samples(X)
        return conformal.p_values(self.calibration_scores_, scores)

    def pixel_map(self, X: Any) -> np.ndarray:
        """Return |x - x_hat| as [N, H, W], averaged over channels, or for vectors as [N, D].

        x_hat is the reconstruction that the score uses.
        """
        check_is_fitted(self)
        return _over_rows(_pixel_map, *self._model_and_rows(X), self.steps if self.kind == "ladder" else 0)

    def _scores(self, X: Any) -> np.ndarray:
        trained, x = self._model_and_rows(X)
        return -anomaly_scores(trained, x, kind=self.kind, weight=self.weight, steps=self.steps)

    def _model_and_rows(self, X: Any) -> tuple[Model, np.ndarray]:
        """Return the trained model, and rows as its networks take them."""
        estimator = self.estimator_
        if isinstance(estimator, Model):
            return estimator, estimator.rows(X)
        rows, shape, _ = flattened(self, X, reset=False)
        return estimator.model_, estimator.rows(np.asarray(X) if len(shape) > 1 else rows)


def _unwrapped(estimator: Any) -> Any:
    """Return the model in a FrozenEstimator of one; all else as it is."""
    inner = getattr(estimator, "estimator", None)
    return inner if isinstance(inner, Model) and clone(estimator) is estimator else estimator


def _is_trained(estimator: Any) -> bool:
    """Whether an estimator is a trained model; raise a ValueError for one that cannot model rows."""
    if isinstance(estimator, Model):
        if estimator.conditions:
            raise ValueError("This model is given conditions; AnomalyScorer takes models without.")
        return True
    if estimator is None or isinstance(estimator, ALIEstimator):
        return False
    if isinstance(getattr(estimator, "estimator", None), ALIEstimator) and clone(estimator) is estimator:
        check_is_fitted(estimator.estimator)
        return True
    raise ValueError(
        f"estimator is a {type(estimator).__name__}: give an ALIEstimator, one that is trained as "
        "FrozenEstimator(estimator), or a model of ali_jax.load."
    )


def _egbad_scores(ali: ALI, variables: Variables, x: Array, match_features: bool, weight: float) -> Array:
    return egbad(ali, variables, x, weight=weight, match_features=match_features)


def _alad_scores(ali: ALI, variables: Variables, x: Array, options: None) -> Array:
    del options
    return alad(ali, variables, x)


def _ladder_scores(ali: ALI, variables: Variables, x: Array, steps: int, y: Array | None) -> Array:
    return ladder_error(ali, variables, x, y, steps=steps).error


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
            "not have: take kind='egbad_logit' or 'ladder'."
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
            "(config.discriminator.packing): take kind='ladder'."
        )


def _absolute(difference: Array) -> Array:
    """Return the sum of absolute values of each row [N]."""
    return jnp.sum(jnp.abs(difference).reshape(len(difference), -1), axis=1)


@functools.cache
def _compiled(function: Callable[..., Array], platform: str) -> Callable[..., Array]:
    """Compile a function of (ali, variables, x, option, ...) with static ali and option."""
    return jax.jit(function, static_argnums=(0, 3), compiler_options=compiler_options(platform))
