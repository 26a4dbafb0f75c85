"""Every key that the program reads, its default, and what it means.

An experiment starts from `base()` and states what its source states; the keys are locked, so that a
misspelt one is an error. This module does not import JAX.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from ali_jax.names import did_you_mean

Config: TypeAlias = Any  # a locked ConfigDict with the keys of `base()`, which a type checker cannot know

# What a run may change between two sittings: what is recorded and when, and where the data lie; not what is
# computed. A name stands for a key or for a whole section.
FREE = (
    "steps_per_call",
    "log_every",
    "checkpoint_every",
    "evaluate_every",
    "keep_checkpoints",
    "evaluators",
    "evaluation",
    "report",
    "dataset.path",
    "dataset.directory",
    "dataset.feed",
    "dataset.device_bytes",
)

# Sections whose keys are the fields or arguments of whatever they name; they may have more keys than `base`.
OPEN = ("encoder", "decoder", "discriminator", "penalties")

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "parallel": ("mesh", "pmap"),
    "lowering": ("auto", "native", "cpu"),
    "gradient": ("auto", "one_pass", "two_pullbacks"),
    "dataset.feed": ("auto", "device", "host"),
}


def base() -> Config:
    """Return the locked default configuration; change values, not keys."""
    config = ConfigDict()
    config.seed = 0  # everything random follows from it: weights, noise, order of the data
    config.batch_size = 100  # images per step over all devices
    config.num_steps = 10_000  # updates of both players
    config.steps_per_call = 100  # updates per dispatch; divides the *_every below that are < num_steps
    config.log_every = 100  # steps between lines of metrics.jsonl
    config.checkpoint_every = 1_000  # steps between checkpoints
    config.evaluate_every = 0  # steps between evaluations; 0 = only at the end
    config.keep_checkpoints = 2  # how many of the newest are kept
    config.latent_dim = 64  # Z
    config.dtype = "float32"  # compute type of the networks: float32 | bfloat16; state is always float32
    config.ema_decay = 0.0  # of the averaged variables, with warm-up; 0 = off. Evaluation uses them where on
    config.parallel = "mesh"  # mesh: one program over all devices; pmap: the named axis
    config.lowering = "auto"  # convolutions, and the order of Adam: auto (by platform) | native | cpu
    config.gradient = "auto"  # auto (one pass where exact) | one_pass | two_pullbacks
    config.loss = "ali"  # a function of ali_jax.losses
    config.labelled_weight = 1.0  # of the labelled term in config.loss = "semi_supervised"
    config.instance_noise = 0.0  # std of noise on the x that D sees; it falls linearly to 0 at num_steps
    config.frozen = ()  # networks that are not trained, such as ("decoder",); they run as in evaluation
    config.init_from = ""  # the folder of a run whose trained decoder this one starts from
    config.init_member = 0  # which one, where that run is a population and this one is not

    config.dataset = ConfigDict()
    config.dataset.name = "digits"  # a function of ali_jax.data, or a TFDS name it lists
    config.dataset.path = ""  # the user's own data: .npz, directory of images, or of SVHN .mat files
    config.dataset.directory = ""  # where TFDS keeps its data; "" = its default
    config.dataset.train_split = "train"  # e.g. extra, train[:45000]; files that lack it: their train, test
    config.dataset.test_split = "test"
    config.dataset.conditional = False  # whether networks are given y: the data's attributes, else the class
    config.dataset.stack = 0  # 3: an x is three random grey-scale images, one per channel; 0: no stacks
    config.dataset.labelled = 0  # labels that are kept, as many of each class, for semi-supervised training
    config.dataset.shape = ()  # of one x: (H, W, C) or (D,); () = as the data say
    config.dataset.feed = "auto"  # device: resident; host: streamed; auto: by size
    config.dataset.device_bytes = 4 * 2**30  # the largest training set that auto keeps on the device
    config.dataset.dequantize = 0.0  # half width of uniform noise added to x of the training batches
    config.dataset.scale = 1.0  # factor on data that are no images (mixtures)

    # The three networks. `name` is a class of ali_jax.networks, the other keys are its fields: a layer is
    # (kernel, stride, maps[, padding]) or, in a multi-layer perceptron, a width.
    config.encoder = ConfigDict()
    config.encoder.name = "Encoder"
    config.encoder.layers = ()
    config.encoder.activation = "leaky_relu"  # relu | leaky_relu
    config.encoder.slope = 0.01  # of leaky_relu
    config.encoder.batch_norm = (True,)  # one for all layers, or one per layer
    config.encoder.init_std = 0.01  # of the weights; 0 = He initialisation
    config.encoder.posterior = (
        "gaussian"  # mu + sigma epsilon | noise: f(x, epsilon) | deterministic: mu, as BiGAN
    )
    config.encoder.log_sigma_clip = ()  # (low, high)
    config.encoder.log_sigma_bias = 0.0  # initial value
    config.encoder.log_sigma_init = 1.0  # factor on the initial weights of log sigma
    config.encoder.center = False  # networks see 2x - 1
    config.encoder.frequencies = ()  # (count, std) of random Fourier features on a perceptron's x
    config.encoder.width = 0  # instead of layers: they follow the image size, from this many maps

    config.decoder = ConfigDict()
    config.decoder.name = "Decoder"
    config.decoder.layers = ()
    config.decoder.activation = "leaky_relu"
    config.decoder.slope = 0.01
    config.decoder.batch_norm = (True,)
    config.decoder.init_std = 0.01
    config.decoder.output = "sigmoid"  # sigmoid | linear
    config.decoder.width = 0

    config.discriminator = ConfigDict()
    config.discriminator.name = "Discriminator"
    config.discriminator.x_layers = ()  # D(x)
    config.discriminator.z_layers = ()  # D(z)
    config.discriminator.joint_layers = ()  # D(x, z), before the last linear layer
    config.discriminator.activation = "leaky_relu"  # relu | leaky_relu | maxout
    config.discriminator.slope = 0.01
    config.discriminator.pieces = 2  # of maxout
    config.discriminator.x_batch_norm = (True,)
    config.discriminator.x_dropout = (0.0,)  # on the input of the layers: one rate for all, or one per layer
    config.discriminator.x_dropout_after = (0.0,)  # between a layer and its activation, likewise
    config.discriminator.z_dropout = (0.0,)
    config.discriminator.z_bias = False
    config.discriminator.joint_dropout = (
        0.0,
    )  # one rate for all, or one more than joint_layers: the logit's too
    config.discriminator.init_std = 0.01
    config.discriminator.center = False
    config.discriminator.width = 0
    config.discriminator.x_pool = False  # average D(x)'s maps over space
    config.discriminator.blind = False  # D does not see z: a GAN
    config.discriminator.num_classes = 1  # K > 1: one logit per class, for config.loss = "semi_supervised"
    config.discriminator.spectral_norm = False  # divide each kernel by its largest singular value
    config.discriminator.packing = 1  # pairs that D judges at once; divides the batch (per device under pmap)
    config.discriminator.z_everywhere = False  # a linear map of z before every nonlinearity, as in BiGAN
    config.discriminator.unary_scores = False  # scores of x and of z alone, for penalties.unary_scores
    config.discriminator.pair_layers = ()  # D(x, x'), for penalties.adversarial_cycle

    config.condition = ConfigDict()  # how networks take y
    config.condition.size = 0  # A; 0 = as the data say
    config.condition.embedding = 0  # width of a linear embedding, as the authors' 256; 0 = y itself
    config.condition.learned = False  # each network learns its own; else one fixed random projection

    # Terms added to the losses: name of a function of ali_jax.penalties -> its arguments.
    config.penalties = ConfigDict()
    config.penalties.r1 = ConfigDict()
    config.penalties.r1.gamma = 0.0  # weight of the gradient penalty on D; 0 = off
    config.penalties.r1.gamma_z = -1.0  # of its z part; negative = gamma
    config.penalties.r1.gamma_final = -1.0  # geometric annealing over num_steps; negative = constant
    config.penalties.r1.at = "encoder"  # encoder: (x, z_hat) | decoder: (x_tilde, z) | both | prior: (x, z)
    config.penalties.cycle_x = ConfigDict()
    config.penalties.cycle_x.weight = 0.0  # of |x - G_x(z_hat)|^2, summed over x (ALICE); 0 = off
    config.penalties.cycle_z = ConfigDict()
    config.penalties.cycle_z.weight = 0.0  # of |z - G_z(G_x(z))|^2, summed over z; 0 = off
    config.penalties.cycle_z.sampled = (
        False  # the code is a sample of q(z | x_tilde), else that at epsilon = 0
    )
    config.penalties.adversarial_cycle = ConfigDict()
    config.penalties.adversarial_cycle.weight = 0.0  # of ALICE's (x, x) against (x, x_hat); needs pair_layers
    config.penalties.unary_scores = ConfigDict()
    config.penalties.unary_scores.weight = 0.0  # of BigBiGAN's hinges; needs discriminator.unary_scores
    config.penalties.elbo = ConfigDict()
    config.penalties.elbo.weight = 0.0  # of a variational autoencoder's loss; with config.loss = "none" alone
    config.penalties.elbo.sigma = 1.0  # deviation of its likelihood, in units of x

    config.optimizer = ConfigDict()  # Adam, as in optax
    for player in ("generator", "discriminator"):  # generator: encoder and decoder
        adam = config.optimizer[player] = ConfigDict()
        adam.learning_rate = 1e-4
        adam.b1 = 0.5
        adam.b2 = 0.999
        adam.eps = 1e-8
    config.optimizer.constant_fraction = 1.0  # of num_steps at the full learning rate, then cosine
    config.optimizer.final_fraction = 0.0  # of the learning rate, reached at the end of the cosine

    config.population = ConfigDict()  # runs that are trained at once
    config.population.seeds = 0  # how many, with the seeds seed, seed + 1, ...; 0 = a single run
    config.population.vary = ()  # in what they differ besides: (("optimizer.generator.b1", (0.2, 0.8)), ...)

    config.evaluators = ("samples", "reconstructions")  # functions of ali_jax.evaluate
    config.report = True  # whether report.html is written at the end
    config.evaluation = ConfigDict()
    config.evaluation.num_samples = 10_000  # of class_kl, and at most of the Frechet distances
    config.evaluation.grid = (10, 10)  # rows, columns of pictures
    config.evaluation.num_pairs = 4  # rows of interpolations
    config.evaluation.num_interpolation_steps = 11
    config.evaluation.num_codes = 10  # sampled per image, over which label_error_sampled averages
    config.evaluation.svm_labels = 1000  # labelled examples of l2_svm, as many of every class
    config.evaluation.svm_draws = 100  # draws of them that its test error is averaged over
    config.evaluation.ladder_rows = 300  # test rows of the reconstruction ladder
    config.evaluation.ladder_steps = 100  # of Adam on their codes
    config.evaluation.inception_weights = (
        ""  # .npz file for inception_distance; see ali_jax.metrics.inception
    )
    return config.lock()


def stable_recipe(config: Config) -> None:
    """Set what trains perceptrons and convolutional networks stably where the paper has no recipe, in place.

    No normalisation, He initialisation and centred inputs in all three networks; biases in D(z) and slope 0.2
    in D; the encoder's log sigma starts near -1 and is clipped to (-6, 0.5); Adam with b1 = 0 and b2 = 0.99;
    R1 annealed from 1 to 0.1; averaged parameters. Layers, learning rates and lengths are the experiment's.
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


def semi_supervised_recipe(config: Config, maps: int) -> None:
    """Set the networks and the optimiser of semi-supervised ALI, in place; `maps` is D's first width.

    As in OpenAI's improved-gan script for 32x32 images, from which the paper's unpublished experiment was
    made: D(x) of nine convolutions with a mean over space, dropout of 0.2 on its input and 0.5 after each
    halving, a decoder from 512 maps at 4x4, Adam with 3e-4 and b1 = 0.5, constant for two thirds of the steps
    and then falling, averaged parameters. Ours: the tower for z, an encoder that mirrors the decoder, kernels
    of 4x4 where theirs are 5x5, He initialisation of D instead of weight normalisation, and a cosine where
    theirs is a line.
    """
    config.ema_decay = 0.9999
    config.loss = "semi_supervised"
    config.latent_dim = 100
    config.encoder.layers = ((4, 2, 128, 1), (4, 2, 256, 1), (4, 2, 512, 1), (4, 1, 512))
    config.encoder.activation = "relu"
    config.decoder.layers = ((4, 1, 512), (4, 2, 256, 1), (4, 2, 128, 1), (4, 2, 64, 1))
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


def flat(config: Config, prefix: str = "") -> dict[str, Any]:
    """Return the values by their dotted keys, such as `optimizer.generator.b1`."""
    values = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return values


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy with other values by dotted keys, of any type: JAX's tracers too."""
    copy = ConfigDict(config.to_dict(), type_safe=False)
    for key, value in values.items():
        *sections, last = key.split(".")
        section: Any = copy
        for name in sections:
            section = section[name]
        section[last] = value
    return copy


def to_json(config: Config) -> str:
    """Return the configuration as JSON text; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Return the locked configuration of a text that `to_json` made.

    Raises:
      ValueError: the text is no JSON object, or its keys are not those of `base`.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The configuration is no JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError("The configuration is no JSON object.")
    config = ConfigDict(_tuples(values))
    check_keys(config)
    return config.lock()


def check_keys(config: Config) -> None:
    """Raise a ValueError unless the configuration has the keys of `base`, with values of their types."""
    defaults, given = flat(base()), flat(config)
    for key, value in given.items():
        if key not in defaults and key.partition(".")[0] not in OPEN:
            raise ValueError(f"There is no config key {key!r}.{did_you_mean(key, defaults)}")
        if key in defaults and not _has_type_of(value, defaults[key]):
            kind = type(defaults[key]).__name__
            raise ValueError(
                f"config.{key} is {value!r}; it must be of type {kind}, as in {defaults[key]!r}."
            )
    if missing := [key for key in defaults if key not in given]:
        raise ValueError(f"The configuration lacks {', '.join(missing)}: start from ali_jax.config.base().")


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, each with its old and its new value (None where it is absent)."""
    a, b = _tuples(flat(old)), _tuples(flat(new))
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def conflicts(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return those differences with which a run of `old` cannot go on as one of `new`.

    The keys in `FREE` may differ, and num_steps may grow where no schedule depends on it.
    """
    scheduled = old.optimizer.constant_fraction < 1 or old.instance_noise > 0 or _anneals(old)
    found = differences(old, new)
    if not scheduled and new.num_steps > old.num_steps:
        found.pop("num_steps", None)
    return {key: values for key, values in found.items() if not is_free(key, FREE)}


def _anneals(config: Config) -> bool:
    """Tell whether the gradient penalty is on and falls, in any member of a population."""
    r1, varied = config.penalties.r1, {key for key, _ in config.population.vary}
    on = max(r1.gamma, r1.gamma_z) > 0 or varied & {"penalties.r1.gamma", "penalties.r1.gamma_z"}
    return bool(on) and (r1.gamma_final >= 0 or "penalties.r1.gamma_final" in varied)


def is_free(key: str, free: Iterable[str]) -> bool:
    """Tell whether a dotted key is among `free` or in a section that is."""
    return any(key == name or key.startswith(name + ".") for name in free)


def validate(config: Config) -> None:
    """Raise a ValueError for the first value that no run can use; named functions are checked where used."""
    values = flat(config)
    for key in (
        "batch_size",
        "num_steps",
        "steps_per_call",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "latent_dim",
        "evaluation.num_samples",
        "evaluation.num_pairs",
        "evaluation.num_interpolation_steps",
        "evaluation.num_codes",
        "evaluation.svm_labels",
        "evaluation.svm_draws",
        "evaluation.ladder_rows",
        "evaluation.ladder_steps",
    ):
        _require(0 < values[key] < 2**31, key, values[key], "it must be positive and below 2^31")
    for player in ("generator", "discriminator"):
        for key in ("learning_rate", "eps"):
            name = f"optimizer.{player}.{key}"
            _require(0 < values[name] < float("inf"), name, values[name], "it must be positive")
        for key in ("b1", "b2"):
            name = f"optimizer.{player}.{key}"
            _require(0 <= values[name] < 1, name, values[name], "it must lie in [0, 1)")
    for key in (
        "evaluate_every",
        "dataset.labelled",
        "condition.size",
        "condition.embedding",
        "population.seeds",
        "init_member",
        "labelled_weight",
        "dataset.dequantize",
        "dataset.device_bytes",
        "instance_noise",
        "penalties.r1.gamma",
        "penalties.cycle_x.weight",
        "penalties.cycle_z.weight",
        "penalties.adversarial_cycle.weight",
        "penalties.unary_scores.weight",
        "penalties.elbo.weight",
        "optimizer.constant_fraction",
        "optimizer.final_fraction",
    ):
        _require(0 <= values[key] < float("inf"), key, values[key], "it must not be negative")
    _require(0 <= config.ema_decay < 1, "ema_decay", config.ema_decay, "it must lie in [0, 1)")
    _require(0 <= config.seed < 2**32, "seed", config.seed, "it must lie in [0, 2^32)")
    for key in ("dataset.scale", "penalties.elbo.sigma"):
        _require(0 < values[key] < float("inf"), key, values[key], "it must be positive")
    for key, allowed in CHOICES.items():
        _require(values[key] in allowed, key, values[key], f"it must be one of {', '.join(allowed)}")
    grid = tuple(config.evaluation.grid)
    _require(
        len(grid) == 2 and all(isinstance(n, int) and n > 0 for n in grid),
        "evaluation.grid",
        grid,
        "it must be two positive numbers, rows and columns",
    )
    shape = tuple(config.dataset.shape)
    _require(
        all(isinstance(n, int) and n > 0 for n in shape),
        "dataset.shape",
        shape,
        "it must be positive numbers",
    )
    names = tuple(config.evaluators)
    _require(all(isinstance(n, str) for n in names), "evaluators", names, "it must be names of evaluators")
    frozen = tuple(config.frozen)
    roles = ("encoder", "decoder", "discriminator")
    _require(set(frozen) <= set(roles), "frozen", frozen, f"it may name {', '.join(roles)}")
    _require(
        "decoder" not in frozen or bool(config.init_from),
        "frozen",
        frozen,
        "a decoder that is not trained needs config.init_from, the folder of the run that trained it",
    )
    _check_labelled(config)
    _check_stack(config)
    _check_intervals(config)


def _check_labelled(config: Config) -> None:
    semi, labelled = config.loss == "semi_supervised", config.dataset.labelled
    if semi != bool(labelled):
        raise ValueError(
            f"config.loss is {config.loss!r} and config.dataset.labelled {labelled}: the loss "
            "'semi_supervised' needs labelled rows, for example --config.dataset.labelled=1000, and no other "
            "loss uses them."
        )


def _check_stack(config: Config) -> None:
    stack = config.dataset.stack
    _require(stack in (0, 3), "dataset.stack", stack, "it must be 3, one image per channel, or 0")
    if stack and (config.dataset.conditional or config.dataset.labelled):
        raise ValueError(
            f"config.dataset.stack is {stack}, but stacks have too many classes to be conditions or to be "
            "learnt from few labels: config.dataset.conditional must be False and config.dataset.labelled 0."
        )


def _check_intervals(config: Config) -> None:
    per_call = config.steps_per_call
    for key in ("log_every", "checkpoint_every", "evaluate_every"):
        if config[key] < config.num_steps and config[key] % per_call:
            raise ValueError(
                f"config.{key} is {config[key]}, no multiple of config.steps_per_call, {per_call}: set one "
                f"of them anew, e.g. --config.steps_per_call={math.gcd(config[key], per_call)}."
            )


def _require(holds: bool, key: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ValueError(f"config.{key} is {value!r}; {allowed}.")


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
