"""The declaration of an evaluator: what it needs of data and model, and which numbers it reports."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from ali_jax.data import Dataset, Split, known_labels
from ali_jax.evaluate.numbers import Number
from ali_jax.evaluate.rows import is_given_y
from ali_jax.types import ALI, Array, Report, Variables

Evaluator = Callable[..., Report]
EvaluatorT = TypeVar("EvaluatorT", bound=Evaluator)


class Need(NamedTuple):
    """Something that a data set or a model must have."""

    what: str  # completes "The evaluator ... needs"
    is_missing: Callable[[Dataset, Any], bool]  # of the data and the model
    of_data: bool = True  # or else of the model, or of the options
    remedy: str = "leave it out of config.evaluators"


class Declaration(NamedTuple):
    """What an evaluator says about itself."""

    needs: tuple[Need, ...]  # checked in this order
    numbers: tuple[Number, ...]  # empty where it only draws pictures
    needs_of_options: Callable[..., tuple[Need, ...]]  # further needs, of its options by name


def _no_further_needs(**_: object) -> tuple[Need, ...]:
    return ()


def evaluator(
    *,
    needs: tuple[Need, ...] = (),
    numbers: tuple[Number, ...] = (),
    needs_of_options: Callable[..., tuple[Need, ...]] = _no_further_needs,
) -> Callable[[EvaluatorT], EvaluatorT]:
    """Make an evaluator of a function `(ali, variables, key, dataset, *, ...) -> Report`.

    It raises a ValueError for data or a model that lack one of `needs`, or of the needs that follow from its
    options, and reports no number that is not among `numbers`.
    """
    declaration = Declaration(needs, numbers, needs_of_options)
    names = {number.name for number in numbers}

    def declare(function: EvaluatorT) -> EvaluatorT:
        @functools.wraps(function)
        def declared(
            ali: ALI, variables: Variables, key: Array, dataset: Dataset, **options: object
        ) -> Report:
            check_needs(declared, dataset, ali, options)
            report = function(ali, variables, key, dataset, **options)
            undeclared = sorted(report.scalars.keys() - names)
            assert not undeclared, (
                f"{function.__name__} reports numbers that it does not declare: {undeclared}"
            )
            return report

        vars(declared)["declaration"] = declaration
        return cast(EvaluatorT, declared)

    return declare


def declaration_of(function: Callable[..., object]) -> Declaration | None:
    """Return what an evaluator declares, or None for a function that is not an evaluator."""
    return getattr(function, "declaration", None)


def check_needs(
    function: Evaluator, dataset: Dataset, ali: ALI, options: Mapping[str, Any] | None = None
) -> None:
    """Raise a ValueError if data, model or options lack something that the evaluator needs.

    Options that the evaluator does not take are ignored.
    """
    declaration = declaration_of(function)
    if declaration is None:
        return
    for need in (*declaration.needs, *declaration.needs_of_options(**(options or {}))):
        if need.is_missing(dataset, ali):
            shape = "x".join(map(str, dataset.test.shape))
            lacking = (
                f", and the data set {dataset.name!r} (x: {shape}; test rows: {len(dataset.test)}) does not "
                "have them"
            )
            raise ValueError(
                f"The evaluator {function.__name__!r} needs {need.what}{lacking if need.of_data else ''}: "
                f"{need.remedy}."
            )


def is_planar(dataset: Dataset) -> bool:
    """Tell whether the data are points in the plane, which are drawn as scatter plots."""
    return dataset.test.shape == (2,)


def is_no_image(dataset: Dataset) -> bool:
    """Tell whether x is anything but an image [H, W, C]."""
    return len(dataset.test.shape) != 3


def _is_unlabelled(split: Split) -> bool:
    """Tell whether no row has a label, where that is known without reading the rows."""
    label = known_labels(split)
    return label is not None and not (label >= 0).any()


IMAGES = Need("images", lambda data, _: is_no_image(data))
PICTURES = Need("images or points in the plane", lambda data, _: is_no_image(data) and not is_planar(data))
TWO_TEST_ROWS = Need("two test rows or more", lambda data, _: len(data.test) < 2)
LABELS = Need(
    "labels of two classes or more, in train and in test",
    lambda data, _: data.num_classes < 2 or _is_unlabelled(data.train) or _is_unlabelled(data.test),
)
SINGLE_IMAGES = Need(
    "classes of single images (those of stacks are for 'stacked_modes')",
    lambda data, _: data.parts is not None,
)
CLASSES = (LABELS, SINGLE_IMAGES)  # for evaluators that classify images or count classes
NO_CONDITIONS = Need(
    "a model that is not given y: an encoder that is told the class shows it in its codes, whatever it has "
    "learnt (config.dataset.conditional)",
    lambda data, _: is_given_y(data),
    of_data=False,
)
CODES_OF_CLASSES = (*CLASSES, NO_CONDITIONS)  # for evaluators of what codes say about the classes
STACKS = Need("stacks of images (config.dataset.stack=3)", lambda data, _: data.parts is None)
CLASS_CONDITIONS = Need(
    "classes as conditions (config.dataset.conditional)",
    lambda data, _: not data.num_classes or len(data.attributes) != data.num_classes,
)
