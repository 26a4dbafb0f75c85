"""Find images that do not belong to the training data, at a false-alarm rate that is chosen beforehand.

    python examples/anomaly_detection.py [--digit K] [--steps N]

One digit is left out of the training and is what has to be found. docs/anomaly.md says what the threshold
means. Cells (`# %%`) can be run one by one in an editor that knows them.
"""

# %% Data: normal rows to train on, to calibrate on and to count false alarms on; odd ones
import argparse
from pathlib import Path

import numpy as np

from ali_jax import data, game
from ali_jax.metrics.detection import auroc
from ali_jax.program.command import load_config
from ali_jax.tools.anomaly import AnomalyScorer

parser = argparse.ArgumentParser(description="Anomaly detection with ALI.")
parser.add_argument("--digit", type=int, default=0, help="the digit that is left out")
parser.add_argument("--steps", type=int, default=2_000, help="training steps")
given, _ = parser.parse_known_args()

digits = data.load("digits")
rows = [split.rows(np.arange(len(split))) for split in (digits.train, digits.test)]
images, label = (np.concatenate([getattr(row, name) for row in rows]) for name in ("x", "label"))
normal, odd = images[label != given.digit], images[label == given.digit]
train, held_out, new = np.split(np.random.default_rng(0).permutation(normal), [1_000, 1_300])

# %% Train on normal rows alone
config = load_config(str(Path(__file__).resolve().parent.parent / "experiments" / "digits.py"))
config.num_steps, config.steps_per_call, config.evaluators = given.steps, min(250, given.steps), ()
config.log_every = config.checkpoint_every = config.evaluate_every = given.steps
parts = data.ArraySplit(train), data.ArraySplit(held_out)
trained = game.prepare(config, data.Dataset("normal digits", *parts, divisor=digits.divisor))
state = game.fit(trained)

# %% Calibrate on normal rows that had no part in the training, then judge new ones
divisor = np.float32(digits.divisor)
scorer = AnomalyScorer(trained.ali, state.ema, false_alarm_rate=0.05).fit(held_out / divisor)
print("false alarms", np.mean(scorer.predict(new / divisor) == -1), "of", len(new))
print("found", np.mean(scorer.predict(odd / divisor) == -1), "of", len(odd))

# %% How well the score separates the two, whatever the threshold
ranking = auroc(*(-scorer.score_samples(x / divisor) for x in (new, odd)))
print(f"AUROC {ranking.value:.3f} [{ranking.low:.3f}, {ranking.high:.3f}]")
