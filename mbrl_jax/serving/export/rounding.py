"""Rounds the weights of a product to INT8 so that what it computes on real rows changes least."""

import numpy as np

LEVELS = 127  # of a weight, on either side of 0
DAMPING = 1e-5  # share of the mean second moment that is added to each, so that they can be inverted
ROUNDS = 8  # in which a column's scale is fitted to the largest level that is used


def balance(inputs: np.ndarray, weights: np.ndarray, share: float = 0.75) -> np.ndarray:
    """[n] what to divide each input by, and to multiply its weights by, before both are quantised.

    An activation is quantised by one range for all inputs, so that small ones would lose their digits. Most of the difference
    between them is handed to the weights, which have a range for each output (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).

    Args:
      inputs: [rows, n].
      weights: [n, outputs].
      share: of the difference between inputs that is handed over, from 0 to 1.

    """
    largest, heaviest = np.abs(inputs).max(axis=0), np.abs(weights).max(axis=1)
    alive = (largest > 0) & (heaviest > 0)
    shift = np.where(alive, largest, 1.0) ** share / np.where(alive, heaviest, 1.0) ** (1 - share)
    scale = np.exp(np.mean(np.log(shift[alive]))) if alive.any() else 1.0
    return np.where(alive, shift / scale, 1.0).astype(np.float32)


def round_weights(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights [n, outputs] that INT8 holds exactly, with a scale for each output, and that act on the inputs as those given do.

    One input after another is rounded, and those that are left make up for its error (GPTQ, Frantar et al. 2023,
    arXiv:2210.17323). Inputs on a manifold of few dimensions, as hidden units of a policy are, leave much room for that.

    Args:
      inputs: [rows, n].
      weights: [n, outputs].

    """
    rows = inputs.astype(np.float64)
    moments = rows.T @ rows / len(rows)
    size = np.trace(moments) / len(moments)
    if size == 0:
        return _nearest(weights.astype(np.float64)).astype(np.float32)
    moments += np.eye(len(moments)) * DAMPING * size
    order = np.argsort(-np.diag(moments), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(moments[order][:, order])).T
    ordered, result = weights.astype(np.float64)[order], np.empty(weights.shape)
    scale = _scale(ordered)
    for _ in range(ROUNDS):
        levels = _rounded(ordered, factor, scale)
        used = np.abs(levels).max(axis=0)
        result[order] = levels * scale
        if np.all((used == LEVELS) | (used == 0)):
            break
        scale = np.where(used > 0, scale * used / LEVELS, scale)  # so that a quantiser finds this very scale again
    else:
        return _nearest(result).astype(np.float32)
    return result.astype(np.float32)


def _rounded(weights: np.ndarray, factor: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The levels [n, outputs] of one pass over the inputs."""
    left, levels = weights.copy(), np.zeros_like(weights)
    for place in range(len(left)):
        levels[place] = np.clip(np.round(left[place] / scale), -LEVELS, LEVELS)
        error = (left[place] - levels[place] * scale) / factor[place, place]
        left[place + 1 :] -= np.outer(factor[place, place + 1 :], error)
    return levels


def _scale(weights: np.ndarray) -> np.ndarray:
    largest = np.abs(weights).max(axis=0)
    return np.where(largest > 0, largest, 1.0) / LEVELS


def _nearest(weights: np.ndarray) -> np.ndarray:
    scale = _scale(weights)
    return np.round(weights / scale) * scale
