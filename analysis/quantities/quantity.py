"""What a quantity of a study is: its variables, the function that measures it, and what a reader should know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.quantities.points import Points, Values
from analysis.schema import Sizes, Variable


def _no_coords(sizes: Sizes) -> Mapping[str, np.ndarray]:
    return {}


@dataclass(frozen=True)
class Quantity:
    """One quantity that a study measures; each file of this package makes one and calls it ``QUANTITY``.

    name: the name by which a study's YAML asks for it.
    title: what it is, in a few words.
    formula: its definition, in the symbols of ``analysis.schema``.
    variables: the variables that hold its values and their errors.
    measure: the function that returns the values of these variables, [task, step, ...] or [task, ...].
    library: the function of the library in which the formula stands.
    cost: what it takes, in words, such as "one product with the Hessian". Products are counted at each point, which is
        a parameter vector of an inner loop.
    reference: where it comes from, as "author year"; "ours" for a definition of this package. A quantity of the user's
        own may leave it out.
    products: True if it needs products with the Hessian. Its values on a task whose inner loop diverged are then NaN.
    level: "full" if only the full measurements contain it, "light" if all do. A study's first tasks are
        measured in full at the first and the last checkpoint; all other measurements are light.
    eigenvectors: True if it needs the eigenvectors in ``points.extremes``, and one eigenpair more than there otherwise
        are.
    coords: a function that returns the coordinates of the dimensions that only this quantity has.
    """

    name: str
    title: str
    formula: str
    variables: tuple[Variable, ...]
    measure: Callable[[Points], Values]
    library: str
    cost: str
    reference: str = ""
    products: bool = True
    level: Literal["light", "full"] = "light"
    eigenvectors: bool = False
    coords: Callable[[Sizes], Mapping[str, np.ndarray]] = _no_coords
