"""What a measured quantity is: the variables it fills, where it comes from, how it is measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from analysis.quantities.points import Points

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Quantity:
    """variables: names in ``analysis.schema``. measure: Points -> [task, step, ...] (or [task, ...]) by variable.

    curvature: needs products with the Hessian, so it is skipped for a task whose trajectory diverged.
    """

    name: str
    variables: tuple[str, ...]
    reference: str
    measure: Callable[[Points], Values]
    curvature: bool = True
