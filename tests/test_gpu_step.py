"""The training step as a GPU gets it: no convolution on zeros, and no more work than the layers need."""

import math
from typing import NamedTuple

import pytest
import small

from ali_jax import model
from ali_jax.networks.layers import output_size
from benchmarks import cudnn

PAPER = ("svhn", "cifar10", "celeba", "tiny_imagenet")
IMAGES = (*PAPER, "celeba_conditional", "images", "mnist", "stacked_mnist:convolutions", "svhn_semi")


def both_pairs(config):
    config.penalties.r1.at = "both"


def half_precision(config):
    config.dtype = "bfloat16"


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


def needed(config, ali, params):
    """Return the multiply-adds of a step, from the tables of layers."""
    encoder, decoder, judge = (
        [la.multiply_adds for la in layers] for layers in networks_of(config, ali, params)
    )
    # Forward, input gradients and kernel gradients. Nobody needs the encoder's gradient in the data.
    generators = 3 * sum(encoder) - encoder[0] + 3 * sum(decoder)
    # With two pullbacks D's own ends at its first layer, and the generator's needs no kernel gradients.
    judged = 4 * sum(judge) - judge[0] if model.couples(ali) else 3 * sum(judge)
    return config.batch_size * (generators + 2 * judged)


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


@pytest.mark.parametrize("name", PAPER)
def test_a_step_multiplies_no_more_than_its_layers_need(name):
    config, ali, params, found = step_on_gpu(name)
    assert sum(c.multiply_adds for c in found) == needed(config, ali, params)


def test_plain_convolutions_would_be_on_zeros():
    """What the other tests refuse is there: they can fail."""
    *_, found = step_on_gpu("svhn", lowering="native")
    assert len([c for c in found if c.is_on_zeros]) == 2
