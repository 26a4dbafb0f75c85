"""Every key that the program reads: its default, its rule and its meaning, once each in `TABLE`.

An experiment starts from `base()` and states what its source states. The keys are locked: a misspelt one is
an error. `docs/reference/config.md` is made from the table by `reference`. This module does not import JAX.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from ml_collections import ConfigDict

from ali_jax import rules
from ali_jax.names import did_you_mean

FORMAT = 2  # of a run's folder and of its checkpoints; 1 had no format number and did not describe its data

Config: TypeAlias = Any  # a locked ConfigDict with the keys of `base()`, which a type checker cannot know

# Keys, or whole sections, that may change when a run is resumed: what is recorded and when, and where the
# data lie. They do not change what is computed.
FREE = (
    "steps_per_call",
    "log_every",
    "checkpoint_every",
    "evaluate_every",
    "keep_checkpoints",
    "evaluators",
    "evaluation",
    "report",
    "trackers",
    "dataset.path",
    "dataset.directory",
    "dataset.feed",
    "dataset.device_bytes",
)

# Sections whose keys are the fields or arguments of what they name. They may have more keys than `base`.
OPEN = ("encoder", "decoder", "discriminator", "penalties")


class Group(NamedTuple):
    """The heading of the keys that follow."""

    title: str
    about: str


class Key(NamedTuple):
    """A config key: its dotted name, its default, what it may be, and what it means."""

    name: str
    default: Any
    rule: rules.Rule
    meaning: str


def _residual(role: str) -> tuple[Key, ...]:
    """Return the keys that all residual networks have."""
    # fmt: off
    return (
        Key(f"{role}.maps", (), rules.widths,
            "Of a residual network: maps of its stages, from the image to the grid; () = they follow "
            "`width`."),
        Key(f"{role}.blocks", 1, rules.count, "Of a residual network: blocks of a stage."),
        Key(f"{role}.expansion", 1, rules.count,
            "Of a residual network: maps within a block, as a multiple of the stage's."),
        Key(f"{role}.patch", 1, rules.one_or_two,
            "Of a residual network: 1 for a first stage at the image's own size, 2 for one at half of it."),
        Key(f"{role}.blur", True, rules.flag,
            "Of a residual network: whether maps are blurred where their size changes."),
    )
    # fmt: on


# A line or two per key, in the order of `base`.
# fmt: off
TABLE = (
    Group("The run", "How long it trains, on what machine, and how often it records."),
    Key("seed", 0, rules.seed, "Seed of everything random: weights, noise, order of the data."),
    Key("batch_size", 100, rules.count, "Training examples per step, over all devices together."),
    Key("num_steps", 10_000, rules.count, "Updates of both players."),
    Key("steps_per_call", 100, rules.count,
        "Updates per call of the compiled program. It must divide each `..._every` below that is less "
        "than `num_steps`."),
    Key("log_every", 100, rules.count, "Steps between rows of `metrics.jsonl`."),
    Key("checkpoint_every", 1_000, rules.count, "Steps between checkpoints."),
    Key("evaluate_every", 0, rules.count_or_zero, "Steps between evaluations; 0 = only at the end."),
    Key("keep_checkpoints", 2, rules.count, "How many of the newest checkpoints are kept."),
    Key("latent_dim", 64, rules.count, "Z, the number of latent dimensions."),
    Key("dtype", "float32", rules.one_of("float32", "bfloat16"),
        "Type in which the networks compute. Parameters and optimiser state are always float32."),
    Key("ema_decay", 0.0, rules.fraction,
        "Decay of an exponential moving average of the networks, with warm-up; 0 = none. Where there is "
        "one, evaluation uses it."),
    Key("ema_half_life", 0.0, rules.not_negative,
        "Half-life of that average in training images, instead of its decay: 2^(-batch_size / half-life); "
        "0 = `ema_decay`."),
    Key("parallel", "mesh", rules.one_of("mesh", "pmap"),
        "How several devices share a batch: one program over a mesh, or `jax.pmap`."),
    Key("lowering", "auto", rules.lowering,
        "Form of the convolutions and of Adam: XLA's own, the one that is fast on a CPU or on a GPU, or "
        "auto, which decides by platform. It changes the speed, not what is computed. gpu has further forms, "
        "which `ali_jax.networks.convolutions` describes."),
    Key("gradient", "auto", rules.one_of("auto", "one_pass", "two_pullbacks"),
        "How both players' gradients go through D. auto takes one pass where that is exact."),
    Key("loss", "ali", rules.named_in("ali_jax.losses"), "The losses of both players."),
    Key("labelled_weight", 1.0, rules.not_negative,
        'Weight of the labelled term of `loss = "semi_supervised"`.'),
    Key("instance_noise", 0.0, rules.not_negative,
        "Standard deviation of noise added to the x that D sees. It falls linearly to 0 at `num_steps`."),
    Key("frozen", (), rules.roles,
        'Networks that are not trained, such as `("decoder",)`. They run as in evaluation.'),
    Key("init_from", "", rules.text,
        "Folder of a run, or of its export, from whose trained networks this one starts; averaged weights "
        "where it has them."),
    Key("init_networks", ("decoder",), rules.some_roles,
        'Which networks `init_from` gives: for more training, `("encoder", "decoder", "discriminator")`.'),
    Key("init_member", 0, rules.count_or_zero,
        "Which member's networks, where that run is a population and this one is not."),

    Group("The data", "What is trained and tested on, and how it reaches the device."),
    Key("dataset.name", "digits", rules.named_in("ali_jax.data"),
        "The data set: one of this package's or of TFDS."),
    Key("dataset.path", "", rules.text,
        "Your own data: a folder, zip or tar of images, a Parquet file or a folder of them, an `.npz`, a "
        "folder of SVHN's `.mat` files, or `hf:NAME`, a data set of the Hugging Face hub."),
    Key("dataset.directory", "", rules.text, 'Where TFDS keeps its data; "" = its default.'),
    Key("dataset.train_split", "train", rules.text,
        "The training split, such as `extra` or `train[:45000]`. Your own files have train, test and perhaps "
        "validation."),
    Key("dataset.test_split", "test", rules.text,
        "The split that evaluators test on. Your own files without test use validation."),
    Key("dataset.conditional", False, rules.flag,
        "Whether the networks are given y: the attributes of the data or, without any, the class."),
    Key("dataset.stack", 0, rules.stack,
        "With 3, each x is three random grey-scale images, one per channel; 0 = no stacks."),
    Key("dataset.labelled", 0, rules.count_or_zero,
        "How many labels semi-supervised training may use, the same number of each class."),
    Key("dataset.shape", (), rules.shape, "Shape of one x; () = as the data have it."),
    Key("dataset.feed", "auto", rules.one_of("auto", "device", "host"),
        "Where training data stay: on the device, or streamed from the host. auto decides by size."),
    Key("dataset.device_bytes", 4 * 2**30, rules.count_or_zero,
        "Largest training set that auto keeps on the device, in bytes."),
    Key("dataset.dequantize", 0.0, rules.not_negative,
        "Half width of uniform noise added to the x of training batches."),
    Key("dataset.scale", 1.0, rules.positive,
        "Factor on vectors and points, and on the pixels of your own images; what gets brighter than white "
        "becomes white."),
    Key("dataset.background", "white", rules.grey,
        "What is behind the transparent pixels of images, and beside images that `fit` pads."),
    Key("dataset.resize", (), rules.size,
        "Height and width to which images are brought; (S,), or `--config.dataset.resize=S`, for squares; "
        "() = all have one size, and keep it."),
    Key("dataset.fit", "crop", rules.one_of("crop", "pad", "stretch"),
        "How `resize` treats images of another shape: it crops them about the centre, pads them with "
        "`background`, or stretches them."),

    Key("dataset.flip", False, rules.flag,
        "Whether each image of a training batch is mirrored, left to right, half of the time."),

    Group("Augmentation",
          "Random changes of the x that D sees, of data and of samples alike; see `ali_jax.augmentation`. "
          "Encoder and penalties see x as it is."),
    Key("augment.translation", 0.0, rules.probability,
        "Probability that an image is moved by up to an eighth of its sides. For equal joints to follow from "
        "equal augmented ones, it must be below 0.5, as the two others."),
    Key("augment.cutout", 0.0, rules.probability,
        "Probability that a rectangle of half the sides becomes grey."),
    Key("augment.colour", 0.0, rules.probability,
        "Probability that brightness, saturation and contrast change."),
    Key("augment.final", 1.0, rules.not_negative,
        "Factor on these probabilities at `num_steps`; they change linearly."),

    Group("The encoder",
          "`name` is a class of `ali_jax.networks`, the other keys are its fields. A class of your own "
          "may have more keys."),
    Key("encoder.name", "Encoder", rules.named_in("ali_jax.networks"), "The class."),
    Key("encoder.layers", (), rules.layers, "Convolutions, then widths of dense layers."),
    Key("encoder.activation", "leaky_relu", rules.one_of("relu", "leaky_relu"),
        "Activation of every layer but the last."),
    Key("encoder.slope", 0.01, rules.not_negative, "Slope of leaky_relu below 0."),
    Key("encoder.batch_norm", (True,), rules.flags, "Batch normalisation."),
    Key("encoder.init_std", 0.01, rules.not_negative,
        "Standard deviation of the initial weights; 0 = He initialisation."),
    Key("encoder.posterior", "gaussian", rules.one_of("gaussian", "noise", "deterministic"),
        "How z is drawn: mu(x) + sigma(x) epsilon; f(x, epsilon); or mu(x), as in BiGAN."),
    Key("encoder.log_sigma_clip", (), rules.clip, "Limits of log sigma; () = none."),
    Key("encoder.log_sigma_bias", 0.0, rules.finite, "Initial bias of log sigma."),
    Key("encoder.log_sigma_init", 1.0, rules.finite, "Factor on the initial weights of log sigma."),
    Key("encoder.center", False, rules.flag, "Whether the network sees 2x - 1 instead of x."),
    Key("encoder.frequencies", (), rules.frequencies,
        "Random Fourier features of x, for perceptrons; () = none."),
    Key("encoder.width", 0, rules.count_or_zero,
        "Maps of the first layer, where the layers are to follow the image size; 0 = `layers`."),
    *_residual("encoder"),

    Group("The decoder", "As the encoder; its layers are transposed convolutions."),
    Key("decoder.name", "Decoder", rules.named_in("ali_jax.networks"), "The class."),
    Key("decoder.layers", (), rules.layers, "Transposed convolutions, or widths of dense layers."),
    Key("decoder.activation", "leaky_relu", rules.one_of("relu", "leaky_relu"),
        "Activation of every layer but the last."),
    Key("decoder.slope", 0.01, rules.not_negative, "Slope of leaky_relu below 0."),
    Key("decoder.batch_norm", (True,), rules.flags, "Batch normalisation."),
    Key("decoder.init_std", 0.01, rules.not_negative,
        "Standard deviation of the initial weights; 0 = He initialisation."),
    Key("decoder.output", "sigmoid", rules.one_of("sigmoid", "linear"),
        "Last activation: sigmoid for data in [0, 1], linear for others."),
    Key("decoder.width", 0, rules.count_or_zero,
        "Maps of the last layer, where the layers are to follow the image size; 0 = `layers`."),
    *_residual("decoder"),

    Group("The discriminator",
          "D(x) and D(z) are joined by D(x, z), which ends in a linear layer of its own."),
    Key("discriminator.name", "Discriminator", rules.named_in("ali_jax.networks"), "The class."),
    Key("discriminator.x_layers", (), rules.layers, "Layers of D(x)."),
    Key("discriminator.z_layers", (), rules.widths, "Layers of D(z)."),
    Key("discriminator.joint_layers", (), rules.widths, "Layers of D(x, z), before its last linear one."),
    Key("discriminator.activation", "leaky_relu", rules.one_of("relu", "leaky_relu", "maxout"),
        "Activation of every layer but the last."),
    Key("discriminator.slope", 0.01, rules.not_negative, "Slope of leaky_relu below 0."),
    Key("discriminator.pieces", 2, rules.count, "Linear pieces of maxout."),
    Key("discriminator.x_batch_norm", (True,), rules.flags, "Batch normalisation in D(x)."),
    Key("discriminator.x_dropout", (0.0,), rules.fractions, "Dropout on the inputs of D(x)'s layers."),
    Key("discriminator.x_dropout_after", (0.0,), rules.fractions,
        "Dropout between D(x)'s layers and their activations."),
    Key("discriminator.z_dropout", (0.0,), rules.fractions, "Dropout on the inputs of D(z)'s layers."),
    Key("discriminator.z_bias", False, rules.flag, "Whether D(z) has biases."),
    Key("discriminator.joint_dropout", (0.0,), rules.fractions,
        "Dropout on the inputs of D(x, z)'s layers. Per layer it takes one rate more, for the last "
        "linear one."),
    Key("discriminator.x_noise", (0.0,), rules.deviations,
        "Standard deviation of Gaussian noise on the inputs of D(x)'s layers, in training."),
    Key("discriminator.joint_noise", (0.0,), rules.deviations,
        "The same on the inputs of D(x, z)'s layers. Per layer it takes one number more, for the last linear "
        "one."),
    Key("discriminator.init_std", 0.01, rules.not_negative,
        "Standard deviation of the initial weights; 0 = He initialisation."),
    Key("discriminator.center", False, rules.flag, "Whether the network sees 2x - 1 instead of x."),
    Key("discriminator.width", 0, rules.count_or_zero,
        "Maps of D(x)'s first layer, where its layers are to follow the image size; 0 = `x_layers`."),
    Key("discriminator.x_pool", False, rules.flag, "Whether the maps of D(x) are averaged over space."),
    Key("discriminator.blind", False, rules.flag, "Whether D does not see z, which makes ALI a GAN."),
    Key("discriminator.num_classes", 1, rules.count,
        'Logits per pair: one per class for `loss = "semi_supervised"`, else 1.'),
    Key("discriminator.spectral_norm", False, rules.flag,
        "Whether each kernel is divided by its largest singular value."),
    Key("discriminator.packing", 1, rules.count,
        "Pairs that D judges at once (PacGAN). It must divide the batch, under pmap that of a device."),
    Key("discriminator.z_everywhere", False, rules.flag,
        "Whether a linear map of z is added before every nonlinearity, as in BiGAN."),
    Key("discriminator.unary_scores", False, rules.flag,
        "Whether D also scores x and z alone, for `penalties.unary_scores`."),
    Key("discriminator.pair_layers", (), rules.layers,
        "Layers of D(x, x'), for `penalties.adversarial_cycle`; () = none."),
    *_residual("discriminator"),
    Key("discriminator.head", "projection", rules.one_of("projection", "concatenation"),
        "How a residual D joins D(x) and D(z): by a bilinear form, or by a perceptron of `joint_layers`."),

    Group("Conditions", "How the networks take y, where `dataset.conditional` is on."),
    Key("condition.size", 0, rules.count_or_zero, "A, the length of y; 0 = as the data have it."),
    Key("condition.embedding", 0, rules.count_or_zero, "Width of a linear embedding of y; 0 = y itself."),
    Key("condition.learned", False, rules.flag,
        "Whether each network learns its own embedding; otherwise one fixed random projection."),

    Group("Penalties",
          "Terms added to the losses: each section names a function of `ali_jax.penalties` or of "
          "`ali_jax.class_penalties` and holds its arguments. A weight of 0 turns a term off."),
    Key("penalties.r1.gamma", 0.0, rules.not_negative, "Weight of the gradient penalty on D."),
    Key("penalties.r1.gamma_z", -1.0, rules.finite,
        "Weight of its part in z; negative = the same as `gamma`."),
    Key("penalties.r1.gamma_final", -1.0, rules.finite,
        "Weight at `num_steps`, reached geometrically; negative = it stays constant."),
    Key("penalties.r1.schedule", "geometric", rules.one_of("geometric", "cosine"),
        "How the weight gets there: by the same factor each step, or along half a cosine."),
    Key("penalties.r1.at", "encoder", rules.one_of("encoder", "decoder", "both", "prior"),
        "At which pairs: (x, z_hat), (x_tilde, z), both of them, or x beside an independent z."),
    Key("penalties.r1.every", 1, rules.count,
        "Steps from one penalty to the next, whose weight is that many times as large: lazy regularisation. "
        "It must divide `steps_per_call` and `num_steps`."),
    Key("penalties.r1.masks", "own", rules.one_of("own", "game"),
        "Masks of D's dropout, if it has any: drawn anew, for a call of D of its own, or those of the game."),
    Key("penalties.cycle_x.weight", 0.0, rules.not_negative,
        "Weight of |x - G_x(z_hat)|^2, summed over x (ALICE)."),
    Key("penalties.cycle_z.weight", 0.0, rules.not_negative, "Weight of |z - G_z(G_x(z))|^2, summed over z."),
    Key("penalties.cycle_z.sampled", False, rules.flag,
        "Whether that code is a sample of q(z | x_tilde); otherwise the code at epsilon = 0."),
    Key("penalties.adversarial_cycle.weight", 0.0, rules.not_negative,
        "Weight of ALICE's game of (x, x) against (x, x_hat). It needs `discriminator.pair_layers`."),
    Key("penalties.unary_scores.weight", 0.0, rules.not_negative,
        "Weight of BigBiGAN's hinges of x and z alone. It needs `discriminator.unary_scores`."),
    Key("penalties.elbo.weight", 0.0, rules.not_negative,
        "Weight of a variational autoencoder's loss. Use it with `loss = \"none\"`."),
    Key("penalties.elbo.sigma", 1.0, rules.positive, "Standard deviation of its likelihood, in units of x."),
    Key("penalties.manifold.weight", 0.0, rules.not_negative,
        "Weight of the squared change of D's logits for a small step in the decoder's latent space."),
    Key("penalties.manifold.size", 0.1, rules.positive, "Length of that step."),
    Key("penalties.manifold.at", "prior", rules.one_of("prior", "encoder", "both"),
        "Where it begins: at codes of the prior, at the encoder's codes of data, or at both."),
    Key("penalties.manifold.ramp", (0.0, 0.0), rules.ramp,
        "Shares of `num_steps` between which the weight rises linearly from 0; (0, 0) = it is full at once."),
    Key("penalties.manifold.stride", 1, rules.count,
        "Every how many-th row of a batch is used. With the loss `semi_supervised`, 2 leaves out those with "
        "labels."),
    Key("penalties.virtual_adversarial.weight", 0.0, rules.not_negative,
        "Weight of the divergence of D's classes at x + r from those at x, for the worst small r (VAT)."),
    Key("penalties.virtual_adversarial.radius", 2.0, rules.positive,
        "Length of r over all of x, in units of x."),
    Key("penalties.virtual_adversarial.ramp", (0.0, 0.0), rules.ramp, "As `penalties.manifold.ramp`."),
    Key("penalties.virtual_adversarial.stride", 1, rules.count, "As `penalties.manifold.stride`."),
    Key("penalties.entropy.weight", 0.0, rules.not_negative,
        "Weight of the entropy of D's classes at data, in nats."),
    Key("penalties.entropy.ramp", (0.0, 0.0), rules.ramp, "As `penalties.manifold.ramp`."),
    Key("penalties.entropy.stride", 1, rules.count, "As `penalties.manifold.stride`."),
    Key("penalties.feature_matching.weight", 0.0, rules.not_negative,
        "Weight of the squared distance between D's mean features of the encoder's and of the decoder's "
        "pairs, which encoder and decoder minimise."),
    Key("penalties.feature_matching.layer", "joint", rules.text,
        "Submodule of D whose output they are: `joint`, its last hidden layer, or `x`, the output of D(x)."),
    Key("penalties.feature_matching.stride", 1, rules.count,
        "As `penalties.manifold.stride`, of the encoder's pairs."),

    Group("The optimiser", "Adam for each player; the generator is the encoder and the decoder together."),
    Key("optimizer.generator.learning_rate", 1e-4, rules.positive, "Learning rate."),
    Key("optimizer.generator.b1", 0.5, rules.fraction, "Decay of the first moment."),
    Key("optimizer.generator.b2", 0.999, rules.fraction, "Decay of the second moment."),
    Key("optimizer.generator.eps", 1e-8, rules.positive, "Added to the root of the second moment."),
    Key("optimizer.discriminator.learning_rate", 1e-4, rules.positive, "Learning rate."),
    Key("optimizer.discriminator.b1", 0.5, rules.fraction, "Decay of the first moment."),
    Key("optimizer.discriminator.b2", 0.999, rules.fraction, "Decay of the second moment."),
    Key("optimizer.discriminator.eps", 1e-8, rules.positive, "Added to the root of the second moment."),
    Key("optimizer.constant_fraction", 1.0, rules.not_negative,
        "Share of `num_steps` at the full learning rate; a cosine follows. 1 = no schedule."),
    Key("optimizer.final_fraction", 0.0, rules.not_negative,
        "Share of the learning rate that is left at the end of the cosine."),
    Key("optimizer.b2_final", -1.0, rules.below_one,
        "Decay of both second moments at `num_steps`, reached from `b2` along half a cosine; negative = they "
        "stay constant."),
    Key("optimizer.packed_size", 0, rules.count_or_zero,
        "Parameters of at most this many elements, such as 16384, share one vector in Adam's state: fewer "
        "kernels on a GPU. It does not change what is computed. 0 = none."),

    Group("Populations", "Several runs that are trained at once, as one program."),
    Key("population.seeds", 0, rules.count_or_zero,
        "Number of members, whose seeds are `seed`, `seed` + 1, and so on; 0 = a single run."),
    Key("population.vary", (), rules.variations,
        "Config keys in which the members differ, beside the seed, each with one number per member."),

    Group("Evaluation", "What is measured and written at the end, and every `evaluate_every` steps."),
    Key("evaluators", ("samples", "reconstructions"), rules.texts,
        "Names of evaluators from `ali_jax.evaluate`."),
    Key("report", True, rules.flag, "Whether `report.html` is written at the end."),
    Key("trackers", (), rules.trackers,
        "Experiment trackers that the run also reports to: `(\"wandb\",)` for Weights & Biases."),
    Key("evaluation.num_samples", 10_000, rules.count,
        "Samples that `class_kl` draws, and the largest number that the distances use."),
    Key("evaluation.grid", (10, 10), rules.grid, "Rows and columns of pictures."),
    Key("evaluation.num_pairs", 4, rules.count, "Rows of interpolations, one pair of images each."),
    Key("evaluation.num_interpolation_steps", 11, rules.count, "Images in a row of interpolations."),
    Key("evaluation.num_codes", 10, rules.count,
        "Codes sampled per image, over which `label_error_sampled` averages."),
    Key("evaluation.controls", True, rules.flag,
        "Whether `probes` and `hidden_probe` also probe pixels, principal components and the untrained "
        "encoder."),
    Key("evaluation.svm_labels", 1000, rules.count,
        "Labelled examples of `l2_svm`, the same number of each class."),
    Key("evaluation.svm_draws", 100, rules.count,
        "Draws of those examples that its test error is averaged over."),
    Key("evaluation.ladder_rows", 300, rules.count, "Test rows of `reconstruction_ladder`."),
    Key("evaluation.ladder_steps", 100, rules.count, "Steps of Adam on their codes."),
    Key("evaluation.features", "auto", rules.one_of("auto", "classifier", "inception", "dinov2", "random"),
        "What `precision_recall` and `frechet_distance` take features from: the reference classifier, "
        "Inception-v3, DINOv2 or a random network; auto takes the classifier where the data have classes, "
        "else the random network."),
    Key("evaluation.inception_weights", "", rules.text,
        "An `.npz` with the weights of Inception-v3; see `ali_jax.metrics.inception`."),
    Key("evaluation.dinov2_weights", "", rules.text,
        "A `.safetensors` with the weights of DINOv2; see `ali_jax.metrics.dinov2`."),
)
# fmt: on

KEYS = {row.name: row for row in TABLE if isinstance(row, Key)}


def base() -> Config:
    """Return the locked default configuration; change values, not keys."""
    config: dict[str, Any] = {}
    for name, key in KEYS.items():
        *sections, last = name.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = key.default
    return ConfigDict(config).lock()


def stable_recipe(config: Config) -> None:
    """Set, in place, values that train stably where the paper has no recipe, with or without convolutions.

    No batch norm and He initialisation in all three networks, centred inputs of encoder and discriminator;
    biases in D(z) and slope 0.2 in D; a log sigma that starts near -1 and is clipped to (-6, 0.5); Adam with
    b1 = 0 and b2 = 0.99; R1 annealed from 1 to 0.1; averaged parameters. The experiment sets layers, learning
    rates and numbers of steps.
    """
    config.ema_decay = 0.999
    for network in (config.encoder, config.decoder, config.discriminator):
        network.init_std = 0.0  # He
    config.encoder.batch_norm = config.decoder.batch_norm = config.discriminator.x_batch_norm = (False,)
    config.encoder.activation = config.decoder.activation = "relu"
    config.encoder.center = config.discriminator.center = True
    config.encoder.log_sigma_clip = (-6.0, 0.5)
    config.encoder.log_sigma_bias = -1.0
    config.encoder.log_sigma_init = 0.1
    config.discriminator.z_bias = True
    config.discriminator.slope = 0.2
    config.penalties.r1.gamma = 1.0
    config.penalties.r1.gamma_final = 0.1
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.b1 = 0.0
        adam.b2 = 0.99


def semi_supervised_recipe(config: Config, maps: int, *, generator_maps: int = 128) -> None:
    """Set, in place, the networks and the optimiser of semi-supervised ALI.

    `maps` is the width of D(x), `generator_maps` that of the encoder's first layer; all others follow.

    The code of the paper's experiment is unpublished; it was made from OpenAI's improved-gan script for 32x32
    images. From that script: nine convolutions in D(x) with a mean over space, dropout of 0.2 on the input
    and of 0.5 after each halving, a decoder that starts with 512 maps at 4x4, Adam with rate 3e-4 and b1 =
    0.5, constant for two thirds of the steps and then falling, averaged parameters. Ours: D(z), an encoder
    that mirrors the decoder, kernels of 4x4 instead of 5x5, He initialisation of D instead of weight
    normalisation, and a cosine instead of a linear decay.
    """
    config.ema_decay = 0.9999
    config.loss = "semi_supervised"
    config.latent_dim = 100
    g = generator_maps
    config.encoder.layers = ((4, 2, g, 1), (4, 2, 2 * g, 1), (4, 2, 4 * g, 1), (4, 1, 4 * g))
    config.encoder.activation = "relu"
    config.decoder.layers = ((4, 1, 4 * g), (4, 2, 2 * g, 1), (4, 2, g, 1), (4, 2, g // 2, 1))
    config.decoder.activation = "relu"
    config.discriminator.x_layers = (
        *((3, 1, maps, 1), (3, 1, maps, 1), (3, 2, maps, 1)),
        *((3, 1, 2 * maps, 1), (3, 1, 2 * maps, 1), (3, 2, 2 * maps, 1)),
        *((3, 1, 2 * maps), (1, 1, 2 * maps), (1, 1, 2 * maps)),
    )
    config.discriminator.x_pool = True
    config.discriminator.x_batch_norm = (False,)
    config.discriminator.x_dropout = (0.2, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0)
    config.discriminator.z_layers = (2 * maps, 2 * maps)
    config.discriminator.z_bias = True
    config.discriminator.joint_layers = (4 * maps,)
    config.discriminator.slope = 0.2
    config.discriminator.init_std = 0.0  # He
    config.encoder.init_std = config.decoder.init_std = 0.05
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.learning_rate = 3e-4
    config.optimizer.constant_fraction = 2 / 3


def residual_recipe(config: Config, *, small: bool = False) -> None:
    """Set, in place, the residual networks of `ali_jax.networks` and the game of R3GAN (Huang et al., 2024).

    Relativistic pairs; a gradient penalty at both kinds of pairs; Adam with b1 = 0; and along half a cosine,
    over all of training, rate and penalty fall to a tenth and b2 rises from 0.9 to 0.99. To that a joint game
    adds a log sigma that starts near -1 and is clipped to (-6, 0.5), and ALICE's cycle on x with the weak
    weight of 20 over the number of dimensions of x.

    Args:
      config: the experiment's, which states its data and their shape; it sets the number of steps.
      small: networks for two CPU cores instead of a GPU.
    """
    config.loss = "relativistic_pairs"
    config.batch_size = 64
    config.steps_per_call = 50
    config.log_every = 250
    config.checkpoint_every = 2_500
    config.latent_dim = 64
    config.ema_half_life = 44_000.0
    for network, name in (
        (config.encoder, "ResidualEncoder"),
        (config.decoder, "ResidualDecoder"),
        (config.discriminator, "ResidualDiscriminator"),
    ):
        network.name = name
        network.slope = 0.2
        network.width, network.patch = (16, 2) if small else (64, 1)
        network.blocks = network.expansion = 1 if small else 2
    config.encoder.layers = config.discriminator.x_layers = (256,)
    config.discriminator.z_layers = (256, 256)
    config.encoder.center = config.discriminator.center = True
    config.encoder.log_sigma_clip = (-6.0, 0.5)
    config.encoder.log_sigma_bias = -1.0
    config.encoder.log_sigma_init = 0.1
    config.penalties.r1.gamma = 0.2
    config.penalties.r1.gamma_final = 0.02
    config.penalties.r1.at = "both"
    config.penalties.r1.schedule = "cosine"
    config.penalties.cycle_x.weight = 20 / math.prod(config.dataset.shape)
    for adam in (config.optimizer.generator, config.optimizer.discriminator):
        adam.learning_rate = 1e-3
        adam.b1 = 0.0
        adam.b2 = 0.9
    config.optimizer.b2_final = 0.99
    config.optimizer.constant_fraction = 0.0
    config.optimizer.final_fraction = 0.1
    config.evaluators = (
        "samples",
        "reconstructions",
        "interpolations",
        "reconstruction_error",
        "class_balance",
        "posterior",
        "memorisation",
        "near_duplicates",
        "precision_recall",
    )


def average_decay(config: Config) -> float:
    """Return the decay per step of the averaged parameters; 0: there are none."""
    if config.ema_half_life:
        return 2.0 ** (-config.batch_size / config.ema_half_life)
    return config.ema_decay


def flat(config: Config, prefix: str = "") -> dict[str, Any]:
    """Return the values by their dotted keys, such as `optimizer.generator.b1`."""
    values = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return values


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return an unlocked copy with other values by dotted key, of any type: also JAX's tracers."""
    copy = ConfigDict(config.to_dict(), type_safe=False)
    for key, value in values.items():
        *sections, last = key.split(".")
        section: Any = copy
        for name in sections:
            section = section[name]
        section[last] = value
    return copy


def to_json(config: Config) -> str:
    """Return the configuration as JSON text, with the format of a run's folder; tuples become lists."""
    return json.dumps({"format": FORMAT, **config.to_dict()}, indent=2) + "\n"


def from_json(text: str) -> Config:
    """Return the locked configuration from the text of `to_json`, of this or an earlier version.

    Keys that the text lacks, since they are newer, get their defaults.

    Raises:
      ValueError: the text is not a JSON object, or has a later format, unknown keys or values of other types.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The configuration is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError("The configuration is not a JSON object.")
    version = values.pop("format", 1)
    check_format(version)
    if not values:
        raise ValueError("The configuration lacks seed, batch_size and every other key.")
    try:
        config = ConfigDict(_with_defaults(_tuples(values)))
        _check_known(flat(config))
    except _UnknownKey as error:
        raise ValueError(
            f"{error} Another version of ali_jax wrote this format {version} (this one writes format "
            f"{FORMAT}): use that version, or start a new run."
        ) from None
    check_keys(config)
    return config.lock()


def check_format(version: Any) -> None:
    """Raise a ValueError unless a run or a checkpoint of this format can be read."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"Its format is {version!r}, which is no number of a format: the file is damaged.")
    if version > FORMAT:
        raise ValueError(
            f"It has format {version}, and this version of ali_jax reads formats up to {FORMAT}: use the "
            "version that wrote it, or a later one."
        )


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested values, with the defaults of keys of `base` that they lack."""
    complete = dict(values)
    for name, default in base().to_dict().items():
        if isinstance(default, dict):
            complete[name] = _with_default_section(name, values.get(name, {}), default)
        else:
            complete.setdefault(name, default)
    return complete


def _with_default_section(name: str, values: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"config.{name} is {values!r}; it must be a section with keys.")
    complete = {**defaults, **values}
    for key, default in defaults.items():
        if isinstance(default, dict):
            complete[key] = _with_default_section(f"{name}.{key}", values.get(key, {}), default)
    return complete


class _UnknownKey(ValueError):
    """A configuration has a key that `base` has not."""


def check_keys(config: Config) -> None:
    """Raise a ValueError unless the keys are those of `base`, with values of the same types."""
    given = flat(config)
    _check_known(given)
    for key, value in given.items():
        if key in KEYS and not _has_type_of(value, default := KEYS[key].default):
            kind = type(default).__name__
            raise ValueError(f"config.{key} is {value!r}; it must be of type {kind}, as in {default!r}.")
    if missing := [key for key in KEYS if key not in given]:
        raise ValueError(f"The configuration lacks {', '.join(missing)}: start from ali_jax.config.base().")


def _check_known(given: Mapping[str, Any]) -> None:
    for key in given:
        if key not in KEYS and key.partition(".")[0] not in OPEN:
            raise _UnknownKey(f"There is no config key {key!r}.{did_you_mean(key, KEYS)}")


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, each with its old and its new value; None where it is absent."""
    a, b = _tuples(flat(old)), _tuples(flat(new))
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def conflicts(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the differences that forbid to resume a run of `old` with `new`.

    The keys in `FREE` may differ, and num_steps may grow if no schedule depends on it.
    """
    changed = differences(old, new)
    if not schedules(old) and new.num_steps > old.num_steps:
        changed.pop("num_steps", None)
    return {key: values for key, values in changed.items() if not is_free(key, FREE)}


def schedules(config: Config) -> list[str]:
    """Return the keys of the schedules that depend on `num_steps`, in any member of a population."""
    r1, varied = config.penalties.r1, {key for key, _ in config.population.vary}
    penalised = max(r1.gamma, r1.gamma_z) > 0 or varied & {"penalties.r1.gamma", "penalties.r1.gamma_z"}
    annealed = r1.gamma_final >= 0 or "penalties.r1.gamma_final" in varied
    uses = {
        "optimizer.constant_fraction": config.optimizer.constant_fraction < 1,
        "optimizer.b2_final": config.optimizer.b2_final >= 0,
        "instance_noise": config.instance_noise > 0,
        "augment.final": config.augment.final != 1 and augmented(config),
        "penalties.r1.gamma_final": penalised and annealed,
        **{f"penalties.{name}.ramp": _is_ramped(config, name) for name in config.penalties},
    }
    return [key for key, used in uses.items() if used]


def _is_ramped(config: Config, penalty: str) -> bool:
    """Whether a penalty is on, in any member of a population, and its weight rises over the steps."""
    section, weight = config.penalties[penalty], f"penalties.{penalty}.weight"
    is_on = section.get("weight", 0) > 0 or weight in {key for key, _ in config.population.vary}
    return is_on and max(section.get("ramp", (0.0,))) > 0


def augmented(config: Config) -> dict[str, float]:
    """Return the probabilities of the augmentations that are on, by name."""
    return {name: p for name, p in config.augment.items() if name != "final" and p > 0}


def is_free(key: str, free: Iterable[str]) -> bool:
    """Whether a dotted key is in `free`, or in a section that is."""
    return any(key == name or key.startswith(name + ".") for name in free)


def validate(config: Config) -> None:
    """Raise a ValueError for the first value that no run can use.

    Names of losses, evaluators, networks and data sets are looked up where they are used.
    """
    for key, value in flat(config).items():
        check_value(key, value)
    for check in (_check_frozen, _check_labelled, _check_stack, _check_intervals, _check_every):
        check(config)


def check_value(key: str, value: Any) -> None:
    """Raise a ValueError if a value breaks the rule of its dotted key; unknown keys have no rule."""
    if key in KEYS and not KEYS[key].rule.holds(_tuples(value)):
        raise ValueError(f"config.{key} is {value!r}; it must be {KEYS[key].rule.allowed}.")


def _check_frozen(config: Config) -> None:
    if "decoder" in config.frozen and not (config.init_from and "decoder" in config.init_networks):
        raise ValueError(
            f"config.frozen is {config.frozen!r}: a decoder that is not trained needs config.init_from, the "
            "folder of the run that trained it, and a place among config.init_networks."
        )


def _check_labelled(config: Config) -> None:
    semi, labelled = config.loss == "semi_supervised", config.dataset.labelled
    if semi != bool(labelled):
        raise ValueError(
            f"config.loss is {config.loss!r} and config.dataset.labelled is {labelled}: the loss "
            "'semi_supervised' needs labelled rows, for example --config.dataset.labelled=1000; other losses "
            "do not use them."
        )


def _check_stack(config: Config) -> None:
    if config.dataset.stack and (config.dataset.conditional or config.dataset.labelled):
        raise ValueError(
            f"config.dataset.stack is {config.dataset.stack}, and stacks have too many classes for conditions"
            " or few labels: config.dataset.conditional must be False and config.dataset.labelled must be 0."
        )


def _check_intervals(config: Config) -> None:
    per_call = config.steps_per_call
    for key in ("log_every", "checkpoint_every", "evaluate_every"):
        if config[key] < config.num_steps and config[key] % per_call:
            raise ValueError(
                f"config.{key} is {config[key]}, not a multiple of config.steps_per_call = {per_call}. "
                f"Change one of them, e.g. --config.steps_per_call={math.gcd(config[key], per_call)}."
            )


def _check_every(config: Config) -> None:
    every = config.penalties.get("r1", {}).get("every", 1)
    common = math.gcd(config.steps_per_call, config.num_steps)
    if common % every:
        possible = [n for n in range(2, every) if common % n == 0]
        hint = f"Set it to {possible[-1]}, or change" if possible else "Change"
        raise ValueError(
            f"config.penalties.r1.every is {every}; it must divide config.steps_per_call = "
            f"{config.steps_per_call} and config.num_steps = {config.num_steps}. {hint} these."
        )


def _has_type_of(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, (list, tuple) if isinstance(default, tuple) else type(default))


def _tuples(value: Any) -> Any:
    """Turn lists into tuples, at any depth of lists and dicts."""
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def reference() -> str:
    """Return `docs/reference/config.md`: a table of the keys of every group."""
    parts = [
        "# Configuration",
        "Every key, with its default. Set one in an experiment's file (`config.batch_size = 64`) or on the "
        "command line (`--config.batch_size=64`). A value that breaks its rule is refused before anything "
        "starts, with the message `config.KEY is VALUE; it must be RULE.`",
        "This page is made from `ali_jax/config.py`; to make it anew:",
        "```sh\npython -m ali_jax.config > docs/reference/config.md\n```",
    ]
    for row in TABLE:
        if isinstance(row, Group):
            parts += [
                f"## {row.title}",
                row.about,
                "| key | default | must be | meaning |\n|---|---|---|---|",
            ]
        else:
            meaning = row.meaning.replace("|", r"\|")
            parts[-1] += f"\n| `{row.name}` | `{row.default!r}` | {row.rule.allowed} | {meaning} |"
    free = ", ".join(f"`{key}`" for key in FREE)
    parts += [
        "## What may change when a run is resumed",
        f"{free}. `num_steps` may grow, if no schedule uses it.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
