"""Find images that do not belong to the training data, at a false-alarm rate chosen in advance.

    python examples/anomaly_detection.py [--digit K] [--steps N]

The training leaves out one digit, which the model then has to find. Editors that support cells (`# %%`) can
run them one by one.
"""

# %% Data: normal rows to train on, to calibrate with and to count false alarms on; anomalous rows
import argparse
from pathlib import Path

import numpy as np

from ali_jax import data, game
from ali_jax.metrics.detection import auroc
from ali_jax.program.command import load_config
from ali_jax.tools.anomaly import AnomalyScorer
from ali_jax.tools.trained import model_of

parser = argparse.ArgumentParser(description="Anomaly detection with ALI.")
parser.add_argument("--digit", type=int, default=0, help="the digit that is left out")
parser.add_argument("--steps", type=int, default=2_000, help="training steps")
given, _ = parser.parse_known_args()

digits = data.load("digits")
rows = [split.rows(np.arange(len(split))) for split in (digits.train, digits.test)]
images, label = (np.concatenate([getattr(row, name) for row in rows]) for name in ("x", "label"))
normal, odd = images[label != given.digit], images[label == given.digit]
train, held_out, new = np.split(np.random.default_rng(0).permutation(normal), [1_000, 1_300])

# %% Train on normal rows only
config = load_config(str(Path(__file__).resolve().parent.parent / "experiments" / "digits.py"))
config.num_steps, config.steps_per_call, config.evaluators = given.steps, min(250, given.steps), ()
config.log_every = config.checkpoint_every = config.evaluate_every = given.steps
parts = data.ArraySplit(train), data.ArraySplit(held_out)
trained = game.prepare(config, data.Dataset("normal digits", *parts, divisor=digits.divisor))
state = game.fit(trained)

# %% Calibrate with normal rows that had no influence on the training, then judge new rows
scorer = AnomalyScorer(model_of(trained, state), false_alarm_rate=0.05).fit(held_out)
print("false alarms", np.mean(scorer.predict(new) == -1), "of", len(new))
print("found", np.mean(scorer.predict(odd) == -1), "of", len(odd))

# %% How well the score separates the two kinds, independent of the threshold
ranking = auroc(*(-scorer.score_samples(x) for x in (new, odd)))
print(f"AUROC {ranking.value:.3f} [{ranking.low:.3f}, {ranking.high:.3f}]")
