"""Measurements of speed and of trust in the metrics; not part of the package.

Speed: against peers (`compare`, `svm`), against the limits of the machine (`roofline`), all of it on a GPU
(`gpu`), of the forms of the gradient penalty (`penalties`) and of convolutions on a CPU (`cpu_forms`). Trust:
the power of the two-sample tests (`power`), ALI on a problem with a known answer (`known_answer`), the effect
of each ingredient of a recipe (`ablation`, and `recipes` for images), augmentation on few images
(`few_images`), anomaly detection against simple detectors (`anomaly`), edits of images (`edit`).
"""
