"""Run scikit-learn's `check_estimator` on both estimators, whole: python tests/estimator_checks.py.

It takes a minute or two with a cold cache, and prints what passed, the seconds, and how many trainings were
compiled. The suite runs the same checks on tiny networks, without those that compile for a number of features
of their own (`test_estimator`).
"""

import os
import tempfile
import time
import warnings
from collections import Counter


def main() -> None:
    """Check both estimators; a check that fails raises."""
    with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings():
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        warnings.simplefilter("ignore")
        from sklearn.utils.estimator_checks import check_estimator

        from ali_jax.tools import estimator
        from ali_jax.tools.anomaly import AnomalyScorer

        ali = estimator.ALIEstimator(num_steps=50)
        for checked in (ali, AnomalyScorer(ali, false_alarm_rate=0.5)):
            began, before = time.monotonic(), estimator._programs.cache_info().currsize
            found = Counter(result["status"] for result in check_estimator(checked, on_skip=None))
            compiled = estimator._programs.cache_info().currsize - before
            print(f"{type(checked).__name__}: {dict(found)} in {time.monotonic() - began:.0f} s; ", end="")
            print(f"{compiled} trainings compiled")


if __name__ == "__main__":
    main()
