"""Rules for the values of a config: what is allowed, as a predicate and in words.

`ali_jax.config` states each key beside one of these rules. A predicate takes a value of any type, in which
lists have become tuples, and does not raise.
"""

import math
import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

LARGEST = sys.float_info.max  # finite numbers; `math.isfinite` raises for larger integers


class Rule(NamedTuple):
    """What a value may be."""

    holds: Callable[[Any], bool]
    allowed: str  # completes the message "it must be ..."


def one_of(*choices: str) -> Rule:
    """Allow these words."""
    return Rule(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


def named_in(module: str) -> Rule:
    """Allow a name that is looked up in a module where it is used, which lists the names it knows."""
    return Rule(_is_text, f"a name from {module}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_integer(value: Any, least: int = 0, below: float = math.inf) -> bool:
    return _is_a(Integral, value) and least <= value < below


def _is_positive_integer(value: Any) -> bool:
    return _is_a(int, value) and value > 0


def _is_number(value: Any, least: float = -LARGEST) -> bool:
    return _is_a(Real, value) and least <= value <= LARGEST


def _all_of(holds: Callable[[Any], bool], *lengths: int) -> Callable[[Any], bool]:
    """Return the predicate of a tuple whose entries hold, with one of these lengths (none: any length)."""
    return lambda value: (
        isinstance(value, tuple) and (not lengths or len(value) in lengths) and all(map(holds, value))
    )


def _each(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the predicate of a setting that is one value for all layers, or a tuple with one per layer."""
    return lambda value: all(map(holds, value if isinstance(value, tuple) else (value,)))


def _is_layer(layer: Any) -> bool:
    if not isinstance(layer, tuple):
        return _is_positive_integer(layer)
    return (
        len(layer) in (3, 4, 5)
        and (_is_positive_integer(layer[0]) or _all_of(_is_positive_integer, 2)(layer[0]))
        and all(map(_is_positive_integer, layer[1:3]))
        and all(map(_is_integer, layer[3:4]))
        and all(map(_all_of(lambda odd: _is_integer(odd, 0, 2), 2), layer[4:]))
    )


def _is_clip(value: Any) -> bool:
    return value == () or (_all_of(_is_number, 2)(value) and value[0] < value[1])


def _is_frequencies(value: Any) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2
    return value == () or (is_pair and _is_positive_integer(value[0]) and _is_number(value[1], 0))


def _is_variation(entry: Any) -> bool:
    is_pair = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
    return is_pair and entry[1] != () and _all_of(_is_number)(entry[1])


def _is_lowering(value: Any) -> bool:
    """Whether a word is one of the lowerings; `networks.convolutions` knows the forms that may follow gpu."""
    return _is_text(value) and (value in ("auto", "native", "cpu") or value.split("+")[0] == "gpu")


def _is_grey(value: Any) -> bool:
    return value in ("white", "black") or (_is_text(value) and value in map(str, range(256)))


ROLES = ("encoder", "decoder", "discriminator")

text = Rule(_is_text, "text")
texts = Rule(_all_of(_is_text), "a tuple of names")
flag = Rule(_is_flag, "True or False")
flags = Rule(_each(_is_flag), "True or False: one for all layers, (True,), or one per layer")

lowering = Rule(
    _is_lowering, "auto, native, cpu, gpu, or gpu with further forms, such as 'gpu+kernel_phases'"
)
grey = Rule(_is_grey, "white, black, or a grey level from 0 to 255 as text, such as '128'")

finite = Rule(_is_number, "finite")
positive = Rule(lambda value: _is_number(value, 0) and value > 0, "positive and finite")
not_negative = Rule(lambda value: _is_number(value, 0), "at least 0 and finite")
fraction = Rule(lambda value: _is_number(value, 0) and value < 1, "in [0, 1)")
below_one = Rule(lambda value: _is_number(value) and value < 1, "below 1 and finite")
probability = Rule(lambda value: _is_number(value, 0) and value <= 1, "in [0, 1]")
fractions = Rule(_each(fraction.holds), "rates in [0, 1): one for all layers, (0.2,), or one per layer")

deviations = Rule(
    _each(not_negative.holds), "numbers of at least 0: one for all layers, (0.3,), or one per layer"
)
ramp = Rule(
    lambda value: _all_of(probability.holds, 2)(value) and value[0] <= value[1],
    "two shares of num_steps in [0, 1], of which the first is not larger",
)

count = Rule(lambda value: _is_integer(value, 1, 2**31), "positive and below 2^31")
count_or_zero = Rule(_is_integer, "at least 0")
seed = Rule(lambda value: _is_integer(value, 0, 2**32), "in [0, 2^32)")
one_or_two = Rule(lambda value: _is_integer(value) and value in (1, 2), "1 or 2")
stack = Rule(lambda value: _is_integer(value) and value in (0, 3), "3, one image per channel, or 0")

grid = Rule(_all_of(_is_positive_integer, 2), "two positive numbers, rows and columns")
size = Rule(_all_of(_is_positive_integer, 0, 1, 2), "(), (S,) or (H, W) of positive numbers")
shape = Rule(_all_of(_is_positive_integer, 0, 1, 3), "(), (D,) or (H, W, C) of positive numbers")
roles = Rule(_all_of(lambda role: role in ROLES), f"a tuple of names among {', '.join(ROLES)}")
trackers = Rule(_all_of(lambda name: name == "wandb"), "('wandb',) or ()")
some_roles = Rule(
    lambda value: value != () and roles.holds(value), f"a tuple of one or more names among {', '.join(ROLES)}"
)
variations = Rule(
    _all_of(_is_variation),
    "pairs of a key and its numbers, one per member, such as (('optimizer.generator.b1', (0.2, 0.8)),)",
)

layers = Rule(
    _all_of(_is_layer),
    "layers, each a positive width, (kernel, stride, maps) or (kernel, stride, maps, padding) of positive "
    "numbers, where the padding may be 0; for example ((4, 2, 64), (4, 1, 128, 1), 256). For images "
    "that are not square a kernel may be (rows, columns) and span the whole map, and a fifth entry (rows, "
    "columns), 0 or 1 each, evens odd sides",
)
widths = Rule(_all_of(_is_positive_integer), "positive widths, for example (512, 512)")
clip = Rule(_is_clip, "(), or (low, high) with low < high")
frequencies = Rule(_is_frequencies, "(), or (count, std), such as (64, 3.0)")
