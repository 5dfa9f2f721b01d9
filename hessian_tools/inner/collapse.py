"""Homogeneous corruption (Lee, Yoo, Kwak 2023, appendix): a network that answers every query alike.

SHOT's distance is smallest where the inner loop changes nothing, and a network whose outputs do not
depend on the input has no gradient to follow: pre-training by SHOT alone may end there.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ALIKE = 0.01


@dataclass(frozen=True)
class Homogeneity:
    """How far outputs differ between examples: variation in [0, 1], 0 when all are alike.

    collapsed: variation below the threshold, that is (at 0.01) the part of the outputs that differs
    between examples is, in root mean square, less than a tenth of the outputs.
    """

    variation: float
    collapsed: bool


def homogeneity(outputs: Float[Tensor, "example output"], *, threshold: float = ALIKE) -> Homogeneity:
    """Whether a network's outputs for different examples are one and the same.

    >>> homogeneity(torch.tensor([[3.0, -3.0], [3.0, -3.0]]))
    Homogeneity(variation=0.0, collapsed=True)
    >>> homogeneity(torch.tensor([[3.0, -3.0], [-3.0, 3.0]]))
    Homogeneity(variation=1.0, collapsed=False)
    """
    variation = float(output_variation(outputs))
    return Homogeneity(variation, variation < threshold)


def output_variation(outputs: Float[Tensor, "example output"]) -> Float[Tensor, ""]:
    """Share of the outputs' mean square that is variance between examples; 0 where all outputs are 0.

    Several outputs are logits and count less their mean over outputs, which no probability depends on.
    """
    seen = outputs - outputs.mean(-1, keepdim=True) if outputs.shape[-1] > 1 else outputs
    total = (seen**2).sum()
    between = ((seen - seen.mean(0)) ** 2).sum()
    return torch.where(total > 0, between / total, torch.zeros_like(total))
