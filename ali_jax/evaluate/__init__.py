"""The evaluators: a model and a data set in, a Report out.

All have the signature `(ali, variables, key, dataset, **options)`, and configs name them; the options are
those of `config.evaluation` that they accept. What the numbers are is in the docstrings. "Mean code" is the
encoder's output at epsilon = 0. Training data are all of train or, of a larger split, 60,000 rows spread
evenly over it; test data likewise, with 10,000. Their numbers are reported as n_train and n_test or, where
labelled rows alone count, as n_train_labelled and n_test_labelled. `l2_svm` alone takes every labelled row,
as the paper does, and says so in names of its own.

`registry` finds the evaluators in `pictures`, `reconstruction`, `classes`, `distances`, `coverage` and
`joint`. Below these, `needs` owns when they apply, `rows` the data and `running` the model over many rows.
"""

from ali_jax.evaluate.classes import (
    class_balance,
    condition_agreement,
    hidden_probe,
    l2_svm,
    label_error,
    probes,
)
from ali_jax.evaluate.coverage import effective_support, mode_coverage, modes, stacked_modes
from ali_jax.evaluate.distances import (
    Extractor,
    classifier_extractor,
    disagreements,
    frechet_distance,
    frechet_measurements,
    inception_distance,
    inception_extractor,
    memorisation,
)
from ali_jax.evaluate.joint import (
    batch_norm,
    code_distribution,
    discriminator_use_of_z,
    joint_divergence,
    posterior,
)
from ali_jax.evaluate.pictures import (
    attribute_grid,
    code_panel,
    codes,
    conditional_samples,
    error_extremes,
    interpolations,
    neighbours,
    plane_panels,
    reconstructions,
    samples,
    traversals,
)
from ali_jax.evaluate.reconstruction import reconstruction_error, reconstruction_ladder
from ali_jax.evaluate.registry import Evaluator, check_applicable, glossary, is_control, named, names

__all__ = [
    "Evaluator",
    "Extractor",
    "attribute_grid",
    "batch_norm",
    "check_applicable",
    "class_balance",
    "classifier_extractor",
    "code_distribution",
    "code_panel",
    "codes",
    "condition_agreement",
    "conditional_samples",
    "disagreements",
    "discriminator_use_of_z",
    "effective_support",
    "error_extremes",
    "frechet_distance",
    "frechet_measurements",
    "glossary",
    "hidden_probe",
    "inception_distance",
    "inception_extractor",
    "interpolations",
    "is_control",
    "joint_divergence",
    "l2_svm",
    "label_error",
    "memorisation",
    "mode_coverage",
    "modes",
    "named",
    "names",
    "neighbours",
    "plane_panels",
    "posterior",
    "probes",
    "reconstruction_error",
    "reconstruction_ladder",
    "reconstructions",
    "samples",
    "stacked_modes",
    "traversals",
]
