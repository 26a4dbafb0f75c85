"""Directions in the space of codes, along which an image changes in one respect; functions of arrays alone.

An amount of 1 along a direction is one difference of class means or, along a principal axis, one standard
deviation.
"""

import numpy as np


def class_direction(z: np.ndarray, to: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the difference [Z] of the means of codes z [N, Z]: of rows `to` [N] minus rows `start` [N].

    Raises:
      ValueError: one of them has no row.
    """
    if not to.any() or not start.any():
        raise ValueError(
            f"A direction leads from codes to codes, and there are {int(start.sum())} at its start and "
            f"{int(to.sum())} at its end: both need one or more."
        )
    return z[to].mean(axis=0) - z[start].mean(axis=0)


def attribute_directions(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the directions [A, Z] of attributes y [N, A], by joint least squares of codes z [N, Z].

        z ~ b + y @ directions

    An attribute's direction is what it changes while the others stay: for a single binary attribute the
    difference of the means. Of attributes that determine each other, the solution of least norm is taken.
    """
    centred = y - y.mean(axis=0)[None]
    return np.linalg.lstsq(centred, z - z.mean(axis=0)[None], rcond=None)[0]


def principal_axis(z: np.ndarray, number: int) -> np.ndarray:
    """Return the principal axis [Z] of codes z [N, Z] of this number, from 1, as long as one deviation.

    Its largest component is positive.

    Raises:
      ValueError: there is no axis of this number.
    """
    most = min(z.shape[1], len(z) - 1)
    if not 1 <= number <= most:
        raise ValueError(f"There is no principal axis {number}: these codes have the axes 1 to {most}.")
    _, values, axes = np.linalg.svd(z - z.mean(axis=0)[None], full_matrices=False)
    axis = axes[number - 1] * values[number - 1] / np.sqrt(len(z) - 1)
    return axis * np.sign(axis[np.argmax(np.abs(axis))])
