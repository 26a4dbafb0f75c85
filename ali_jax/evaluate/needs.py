"""What evaluators need of a data set and of a model: stated above each of them, checked before it runs."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

from ali_jax.data import Dataset
from ali_jax.types import ALI, Array, Report, Variables

EvaluatorT = TypeVar("EvaluatorT", bound=Callable[..., Report])


class Need(NamedTuple):
    """Something that a data set, or a model, has or lacks."""

    what: str  # for the message: "... needs WHAT"
    is_missing: Callable[[Dataset, ALI], bool]
    of_data: bool = True  # or else of the model


def needs(*needed: Need) -> Callable[[EvaluatorT], EvaluatorT]:
    """Make an evaluator refuse data and models that lack something, by a ValueError that says what."""

    def with_check(evaluator: EvaluatorT) -> EvaluatorT:
        @functools.wraps(evaluator)
        def checked(
            ali: ALI, variables: Variables, key: Array, dataset: Dataset, **options: object
        ) -> Report:
            check(checked, dataset, ali)
            return evaluator(ali, variables, key, dataset, **options)

        vars(checked)["needed"] = needed
        return cast(EvaluatorT, checked)

    return with_check


def check(evaluator: Callable[..., Report], dataset: Dataset, ali: ALI) -> None:
    """Raise a ValueError if the data set or the model lacks what the evaluator needs."""
    for need in getattr(evaluator, "needed", ()):
        if need.is_missing(dataset, ali):
            shape = "x".join(map(str, dataset.test.shape))
            lacking = (
                f", and the data set {dataset.name!r} (x: {shape}; test rows: {len(dataset.test)}) does not "
                "have them"
            )
            raise ValueError(
                f"The evaluator {evaluator.__name__!r} needs {need.what}{lacking if need.of_data else ''}: "
                "leave it out of config.evaluators."
            )


def is_planar(dataset: Dataset) -> bool:
    """Tell whether the data are points in the plane, which pictures show as such."""
    return dataset.test.shape == (2,)


def _is_no_image(dataset: Dataset) -> bool:
    return len(dataset.test.shape) != 3


IMAGES = Need("images", lambda data, _: _is_no_image(data))
PICTURES = Need("images or points in the plane", lambda data, _: _is_no_image(data) and not is_planar(data))
TWO_TEST_ROWS = Need("two test rows or more", lambda data, _: len(data.test) < 2)
LABELS = Need("labels of two classes or more", lambda data, _: data.num_classes < 2)
SINGLE_IMAGES = Need(
    "classes of single images (those of stacks are for 'stacked_modes')",
    lambda data, _: data.parts is not None,
)
CLASSES = (LABELS, SINGLE_IMAGES)  # of what is told apart or counted by class
STACKS = Need("stacks of images (config.dataset.stack=3)", lambda data, _: data.parts is None)
CLASS_CONDITIONS = Need(
    "classes as conditions (config.dataset.conditional)",
    lambda data, _: not data.num_classes or len(data.attributes) != data.num_classes,
)
