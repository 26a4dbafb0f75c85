"""The evaluators: a model and a data set in, a Report out.

All have the signature `(ali, variables, key, dataset, **options)`, configs name them, and
`ali_jax.evaluate.NAME` is the evaluator of that name. The options are those of `config.evaluation` that it
accepts. An evaluator declares its numbers above its function; `glossary` and `table` list them.

"Mean code" is the encoder's output at epsilon = 0. Evaluators use all rows of train or, of a larger split,
60,000 spread evenly over it; of test likewise 10,000. They report how many as n_train and n_test or, where
only labelled rows count, as n_train_labelled and n_test_labelled. `l2_svm` alone uses every labelled row, as
the paper does, and reports its counts under names of its own.

`registry` finds the evaluators in `classes`, `coverage`, `reconstruction`, `distances`, `manifolds`, `joint`
and `pictures`. These build on `declare` (needs and numbers of an evaluator), `rows` (the data), `running`
(the model, run over many rows) and `features` (feature extractors by name).
"""

from ali_jax.evaluate import registry
from ali_jax.evaluate.declare import Evaluator, evaluator
from ali_jax.evaluate.distances import disagreements, frechet_measurements
from ali_jax.evaluate.features import (
    Extractor,
    classifier_extractor,
    dinov2_extractor,
    inception_extractor,
    make_extractor,
    random_extractor,
)
from ali_jax.evaluate.manifolds import manifold_measurements
from ali_jax.evaluate.numbers import Number
from ali_jax.evaluate.pictures import code_panel, plane_panels
from ali_jax.evaluate.registry import (
    check_applicable,
    declared,
    glossary,
    headlines,
    is_control,
    named,
    names,
    number,
    table,
)

__all__ = [
    "Evaluator",
    "Extractor",
    "Number",
    "check_applicable",
    "classifier_extractor",
    "code_panel",
    "declared",
    "dinov2_extractor",
    "disagreements",
    "evaluator",
    "frechet_measurements",
    "glossary",
    "headlines",
    "inception_extractor",
    "is_control",
    "make_extractor",
    "manifold_measurements",
    "named",
    "names",
    "number",
    "plane_panels",
    "random_extractor",
    "table",
]


def __getattr__(name: str) -> Evaluator:
    """Return the evaluator of that name, so that a new one is part of the API without a line here."""
    if name not in registry.names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return registry.named(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *registry.names()})
