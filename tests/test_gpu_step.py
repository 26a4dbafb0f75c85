"""The training step as a GPU gets it: no convolution on zeros, and no more work than the layers need."""

import functools
import math
from typing import NamedTuple

import pytest
import small

from ali_jax import model
from ali_jax.networks.layers import output_size
from benchmarks import cudnn

IMAGES = (
    "svhn",
    "cifar10",
    "celeba",
    "tiny_imagenet",
    "celeba_conditional",
    "images",
    "mnist",
    "stacked_mnist:convolutions",
    "svhn_semi",
)


def both_pairs(config):
    config.penalties.r1.at = "both"


def half_precision(config):
    config.dtype = "bfloat16"


@functools.cache
def step_on_gpu(name, edit=None, *, lowering="auto"):
    """Return config, networks, parameters and the convolutions of an experiment's step on a GPU."""
    config = small.experiment(name)
    config.lowering = lowering
    if edit is not None:
        edit(config)
    step = cudnn.step_of(config)
    return (
        config,
        step.ali,
        step.state.variables.params,
        cudnn.convolutions(step.function, step.state, step.batch),
    )


class Layer(NamedTuple):
    """A convolution of a table of layers that is not a matrix product, as those of 1x1 images are."""

    kernel: int
    stride: int
    small: int  # the side of its smaller image: the output or, transposed, the input
    multiply_adds: int  # per row


def layers_of(table, size, transpose, params):
    """Return the convolutions of a table whose input has this side, with the channels of their parameters."""
    layers = []
    for i, layer in enumerate(table):
        after = output_size(size, [layer], transpose=transpose)
        small = size if transpose else after
        kernel = params[f"layer_{i}"]["kernel"].shape
        if len(kernel) == 4 and min(small, kernel[0]) > 1:
            layers.append(Layer(kernel[0], layer[1], small, small**2 * math.prod(kernel)))
        size = after
    return layers


def networks_of(config, ali, params):
    """Return the convolutions of encoder, decoder and D(x)."""
    side = config.dataset.shape[0]
    return (
        layers_of(ali.encoder.layers, side, False, params.encoder["stack"]),
        layers_of(ali.decoder.layers, 1, True, params.decoder["Stack_0"]),
        layers_of(ali.discriminator.x_layers, side, False, params.discriminator["x"]),
    )


def needed(config, ali, params, *, phases=False):
    """Return the multiply-adds of a step, with or without gradients by phases, from the tables of layers."""

    def work(layers):
        """Return those of the forward pass, of one gradient of all layers, and of one of the first."""
        plain = [layer.multiply_adds for layer in layers]
        taps = [layer.stride * -(-layer.kernel // layer.stride) / layer.kernel for layer in layers]
        gradients = [n * t**2 for n, t in zip(plain, taps, strict=True)] if phases else plain
        return sum(plain), sum(gradients), gradients[0]

    encoder, decoder, judge = map(work, networks_of(config, ali, params))
    # Forward, input gradients and kernel gradients. Nobody needs the encoder's gradient in the data.
    generators = encoder[0] + 2 * encoder[1] - encoder[2]
    generators += (
        decoder[0] + 2 * decoder[1]
    )  # its forward pass is an input gradient, and the other way about
    # With two pullbacks D's own ends at its first layer, and the generator's needs no kernel gradients.
    twice = model.couples(ali) or config.discriminator.num_classes > 1
    judged = judge[0] + (3 * judge[1] - judge[2] if twice else 2 * judge[1])
    if config.penalties.r1.gamma:
        # The game's own pass again, which XLA merges with the game, and its gradient in the parameters.
        judged += 4 * judge[0]
    rows = config.batch_size * (2 if config.dataset.labelled else 1)  # as many labelled ones beside them
    return rows * (generators + 2 * judged)


@pytest.mark.parametrize("name", IMAGES)
def test_no_convolution_of_a_step_is_on_zeros(name):
    config, ali, params, found = step_on_gpu(name)
    layers = [layer for network in networks_of(config, ali, params) for layer in network]
    shapes = {(layer.kernel, layer.small) for layer in layers}
    assert not [c for c in found if c.is_on_zeros or c.grouped]
    for c in found:
        if c.kind == "forward" and not c.is_misplaced_gradient:
            assert c.window <= c.output or (c.window[0], c.output[0]) in shapes
    misplaced = {(layer.small, layer.kernel) for layer in layers if layer.stride > 1}
    assert {(c.window[0], c.output[0]) for c in found if c.is_misplaced_gradient} <= misplaced


@pytest.mark.parametrize(("name", "edit"), [("images", both_pairs), ("svhn", half_precision)])
def test_nor_with_penalties_at_both_pairs_nor_in_half_precision(name, edit):
    *_, found = step_on_gpu(name, edit)
    assert found
    assert not [c for c in found if c.is_on_zeros or c.grouped]


CASES = [(name, None) for name in IMAGES] + [("images", both_pairs), ("svhn_semi", half_precision)]


@pytest.mark.parametrize(("name", "edit"), CASES)
def test_a_step_multiplies_no_more_than_its_layers_need(name, edit):
    config, ali, params, found = step_on_gpu(name, edit)
    assert sum(c.multiply_adds for c in found) == needed(config, ali, params)


@pytest.mark.parametrize(
    ("lowering", "edit", "dilated"),
    [
        ("gpu", None, {"base", "window"}),
        ("gpu+kernel_phases", None, {"base"}),
        ("gpu+input_phases", None, {"window"}),
        ("gpu+kernel_phases+input_phases", both_pairs, set()),
    ],
)
def test_phases_take_dilation_out_of_gradients(lowering, edit, dilated):
    *_, found = step_on_gpu("images", edit, lowering=lowering)
    assert not [c for c in found if c.is_on_zeros or c.grouped]
    ways = {"base": "base_dilation", "window": "window_dilation"}
    assert {way for way, name in ways.items() if any(max(getattr(c, name)) > 1 for c in found)} == dilated


def test_gradients_by_phases_multiply_as_much_as_their_taps_say():
    """CelebA has strided kernels of 7x7 and 5x5, which become 4x4 and 3x3 taps of four phases each."""
    config, ali, params, found = step_on_gpu("celeba", lowering="gpu+kernel_phases+input_phases")
    assert sum(c.multiply_adds for c in found) == needed(config, ali, params, phases=True)


def test_maps_that_are_filled_up_are_those_of_the_images():
    """Of CIFAR-10's: 3 maps become 4 in the first layer of the encoder and in that of D."""
    config, ali, params, found = step_on_gpu("cifar10", lowering="gpu+padded_maps")
    first, _, judge = (layers[0].multiply_adds for layers in networks_of(config, ali, params))
    added = config.batch_size * (2 * first + 2 * 3 * judge) / 3  # D's with the generator's input gradient
    assert sum(c.multiply_adds for c in found) == needed(config, ali, params) + added
    assert not [c for c in found if c.is_on_zeros or c.grouped]


def test_plain_convolutions_would_be_on_zeros():
    """What the other tests refuse is there: they can fail."""
    *_, found = step_on_gpu("svhn", lowering="native")
    assert len([c for c in found if c.is_on_zeros]) == 2
