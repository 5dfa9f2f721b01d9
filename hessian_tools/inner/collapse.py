"""Homogeneous corruption (Lee, Yoo, Kwak 2023, appendix): a network that gives every query the same answer.

SHOT is the penalty on the distance between the results of few large and of many small inner steps. This distance is
smallest where the inner loop changes nothing. A network whose outputs do not depend on the input gives the inner loop
no gradient to follow, so pre-training by SHOT alone may end at such a network.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.result import Result

COLLAPSE_THRESHOLD = 0.01  # a network has collapsed where its ``Homogeneity.variation`` is below this


@dataclass(frozen=True, repr=False)
class Homogeneity(Result):
    """How far outputs differ between examples.

    variation: the share of the outputs' mean square that is variance between examples, in [0, 1]; 0 when the outputs
        of all examples are equal.
    collapsed: whether the variation is below the threshold. At 0.01, this means that the root mean square of the
        differences between examples is less than a tenth of the root mean square of the outputs.
    """

    variation: float
    collapsed: bool


def homogeneity(outputs: Float[Tensor, "example output"], *, threshold: float = COLLAPSE_THRESHOLD) -> Homogeneity:
    """Measure how far a network's outputs differ between examples, and compare the result with the threshold.

    >>> homogeneity(torch.tensor([[3.0, -3.0], [3.0, -3.0]]))
    Homogeneity(variation=0, collapsed=True)
    >>> homogeneity(torch.tensor([[3.0, -3.0], [-3.0, 3.0]]))
    Homogeneity(variation=1, collapsed=False)
    """
    variation = float(output_variation(outputs))
    return Homogeneity(variation, variation < threshold)


def output_variation(outputs: Float[Tensor, "example output"]) -> Float[Tensor, ""]:
    """The share of the outputs' mean square that is variance between examples; 0 where all outputs are 0."""
    # Several outputs are taken as logits. Their mean over the outputs is subtracted: no probability depends on it.
    centred = outputs - outputs.mean(-1, keepdim=True) if outputs.shape[-1] > 1 else outputs
    total = (centred**2).sum()
    between = ((centred - centred.mean(0)) ** 2).sum()
    return torch.where(total > 0, between / total, torch.zeros_like(total))
