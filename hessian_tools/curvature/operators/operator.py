"""The interface of every curvature matrix: a symmetric operator at one point or at many, given by its products.

Operators at many points are cut into parts by their points, so that the data kept for products fits in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from hessian_tools.curvature.engines.memory import vectors_at_once
from hessian_tools.curvature.operators.lengths import Shards
from hessian_tools.failures import described
from hessian_tools.layout import ParamLayout
from hessian_tools.processes import Ranks
from hessian_tools.torch_fixes.precision import full_precision

# The number of products that ``to_dense`` computes at once: unit vectors times points.
UNITS_AT_ONCE = 256
# The number of products that ``row_products`` computes at once by default: rows times points.
ROWS_AT_ONCE = 16


class Operator(ABC):
    """A symmetric matrix [param, param], or one for each point [point, param, param].

    A concrete operator says how large it is, how it multiplies a block of columns, and how to restrict itself to some
    of its points. ``H @ V`` is ``torch.matmul(H.to_dense(), V)`` for every V. ``H - G``, ``2 * H``,
    ``H.block("body")``, ``H.restrict(Q)`` and ``H.scaled(d)`` are operators again.
    """

    __array_ufunc__ = None  # so that NumPy leaves the product of a NumPy number with H to this class

    @property
    @abstractmethod
    def num_params(self) -> int:
        """The number of rows and columns of the matrix at one point."""

    @property
    @abstractmethod
    def num_points(self) -> int | None:
        """The number of points; None for a single point without a point axis."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix, which V must have too."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the matrix, on which V must lie."""

    @abstractmethod
    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns. The point axis is always there, of length one for a single point."""

    def select(self, points: Int[Tensor, " chosen"]) -> "Operator":
        """The operator at some of its points, in the order given; only for an operator that has a point axis."""
        raise ValueError("an operator at a single point has no points to select; give thetas [point, param]")

    @property
    def layout(self) -> ParamLayout | None:
        """The names of the rows; None where the rows have no names."""
        return None

    @property
    def shards(self) -> Shards | None:
        """How processes hold each vector in parts; None where every process holds whole vectors."""
        return None

    @property
    def ranks(self) -> Ranks | None:
        """The processes that make the products together; None for a single process."""
        return None

    @property
    def at_once(self) -> int:
        """The number of points for which results should be requested together, so that they fit in memory.

        It is the number of all points unless a subclass says otherwise.
        """
        return self.num_points or 1

    def announce(self, num_products: int) -> None:  # noqa: B027 - does nothing in operators that have no engine to choose
        """Announces how many products at each point will follow, so that the quickest engine for them is taken.

        The library's own functions announce their products. Call this method before a loop of your own over ``H.mv``.
        Results do not depend on it beyond rounding.
        """

    def parts(self) -> "Sequence[Operator]":
        """The operator cut by its points into parts of ``at_once`` points; just [self] if that covers all points.

        A part is made when the sequence is indexed, and holds no data of the other parts.
        """
        if self.num_points is None or self.num_points <= (at_once := self.at_once):
            return [self]
        return Parts(self, torch.arange(self.num_points, device="cpu").split(at_once))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix: (param, param), or (point, param, param)."""
        points = () if self.num_points is None else (self.num_points,)
        return (*points, self.num_params, self.num_params)

    def __matmul__(self, V: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``torch.matmul(self.to_dense(), V)`` for V [param] or [..., param, probe]; raises ValueError otherwise."""
        self._check(V)
        if V.ndim <= 2:  # the reshaping of the general case below takes half as long as a product of a tiny network
            block = V[:, None] if V.ndim == 1 else V
            product = self.products(block.expand(self.num_points or 1, *block.shape).contiguous())
            return product.reshape(*self.shape[:-2], *V.shape)
        lead = torch.broadcast_shapes(self.shape[:-2], V.shape[:-2])
        num_points, rows, columns = self.num_points or 1, *V.shape[-2:]
        # Axes of V before the point axis hold further probes of the same points.
        outer = lead[:-1] if num_points > 1 else lead
        V = V.expand(*lead, rows, columns).reshape(prod(outer), num_points, rows, columns)
        product = self.products(V.permute(1, 2, 0, 3).reshape(num_points, rows, -1))
        return product.reshape(num_points, rows, prod(outer), columns).permute(2, 0, 1, 3).reshape(*lead, rows, columns)

    def mv(self, v: Float[Tensor, "... param"]) -> Float[Tensor, "... param"]:
        """The product with one vector for each point.

        v: [point, param], or [param] for a single point or for the same vector at every point.
        """
        self._check(v[..., None] if isinstance(v, Tensor) else v)
        if v.ndim > 1 and v.shape[:-1] != self.shape[:-2]:
            return (self @ v[..., None])[..., 0]
        # Not computed by ``@``, whose reshaping takes half as long as a product of a tiny network.
        product = self.products(v.expand(self.num_points or 1, -1)[..., None].contiguous())[..., 0]
        return product[0] if self.num_points is None else product

    def __repr__(self) -> str:
        points = self.num_points or 1
        dtype = str(self.dtype).removeprefix("torch.")
        about = [f"{points} point{'s' if points > 1 else ''}", f"{self.num_params} parameters", dtype]
        return f"{type(self).__name__}({', '.join([*about, *self._details(), str(self.device)])})"

    def _details(self) -> list[str]:
        """What ``repr`` says of this kind of operator besides its size."""
        return []

    @full_precision
    def to_dense(self) -> Float[Tensor, "*point param param"]:
        """The matrix itself, from num_params products at each point. It is not symmetrised."""
        self.announce(self.num_params)
        unit = torch.eye(self.num_params, dtype=self.dtype, device=self.device)
        dense = row_products(self, unit[None], at_once=UNITS_AT_ONCE).mT  # row i is H e_i
        return dense[0] if self.num_points is None else dense

    def to_scipy(self, *, point: int = 0) -> LinearOperator:
        """The matrix at one point as a SciPy operator, which takes and returns NumPy arrays."""
        if not 0 <= point < (self.num_points or 1):
            raise ValueError(f"point={point}: this operator has points 0 to {(self.num_points or 1) - 1}")
        operator = self if self.num_points is None else self.select(torch.tensor([point], device="cpu"))
        return scipy_operator(self, operator.products, operator.products)  # the matrix is its own transpose

    def __add__(self, other: "Operator") -> "composite.Combination":
        return composite.combination((1, self), (1, other)) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: "Operator") -> "composite.Combination":
        return composite.combination((1, self), (-1, other)) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, c: float | int) -> "composite.Combination":
        return composite.combination((c, self)) if isinstance(c, Real) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> "composite.Combination":
        return -1 * self

    def block(self, *prefixes: str, head: str | None = None) -> "composite.Block":
        """The rows and columns of some parameters of a network, as an operator.

        prefixes: names of modules or parameters. A prefix matches whole names between dots only ("body.1" does not
        match "body.10"). "head" is the module of that name or, if there is none, the last module with parameters;
        "body" is all parameters outside of the head.
        head: the name of another module that counts as the head.
        Raises ValueError where the rows have no names, or where no name matches.

        >>> from hessian_tools.curvature import hessian
        >>> from hessian_tools.layout import flatten
        >>> from hessian_tools.loss import make_loss
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
        >>> theta, layout = flatten(model)
        >>> loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), layout)
        >>> H = hessian(loss, theta, (torch.ones(4, 3), torch.zeros(4, 1)))
        >>> H.block("body").shape, H.block("head").shape, H.block("0.weight", "2.bias").shape
        ((8, 8), (3, 3), (7, 7))
        """
        return composite.block(self, prefixes, head)

    def blocks(self) -> "dict[str, composite.Block]":
        """The diagonal block of every module that holds parameters itself, by the module's name.

        The name of the network, if it holds parameters itself, is "".
        """
        return composite.blocks(self)

    def restrict(self, Q: Float[Tensor, "..."]) -> "composite.Restriction":
        """The operator Q'HQ on the span of orthonormal columns Q [param, k] or [point, param, k].

        Raises ValueError where the shape of Q does not fit, or where Q'Q differs from I by more than the square root of
        eps.

        >>> from hessian_tools.curvature import hessian
        >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3), torch.tensor([1.0, -2.0, 4.0]))
        >>> H.restrict(torch.tensor([[1.0, 0.0], [0.0, 0.6], [0.0, 0.8]])).to_dense()  # -2 * 0.36 + 4 * 0.64
        tensor([[1.0000, 0.0000],
                [0.0000, 1.8400]])
        """
        return composite.restriction(self, Q)

    def scaled(self, d: Float[Tensor, "..."]) -> "composite.Scaled":
        """The operator D H D, where D is the diagonal matrix of the numbers d [param] or [point, param].

        It is the second derivative in the coordinates theta / d; see ``curvature.filter_scale``. Raises ValueError
        where the shape, the dtype or the device of d does not fit.

        >>> from hessian_tools.curvature import hessian
        >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(2), torch.tensor([1.0, -2.0]))
        >>> H.scaled(torch.tensor([3.0, 2.0])).to_dense()
        tensor([[ 9.,  0.],
                [ 0., -8.]])
        """
        return composite.scaled(self, d)

    def _check(self, V: Tensor) -> None:
        """Raise ValueError unless V has a shape, dtype and device with which the matrix can be multiplied."""
        num_params = self.num_params
        if not isinstance(V, Tensor):
            how = "torch.from_numpy(V)" if isinstance(V, np.ndarray) else "a tensor"
            raise ValueError(f"V is {described(V)}; give {how} of shape [..., {num_params}, probe]")
        if V.dtype != self.dtype or V.device != self.device:
            raise ValueError(
                f"V is {V.dtype} on {V.device}, but the operator is {self.dtype} on {self.device}; "
                f"write V.to({str(self.device)!r}, {self.dtype})"
            )
        # Of the last two axes the first is that of the parameters, also if V has a single axis.
        if V.ndim == 0 or V.shape[-2:][0] != num_params:
            raise ValueError(
                f"V has shape {tuple(V.shape)}, but the operator has {self.shape}; give V [..., {num_params}, probe], "
                "or use .mv for one vector at each point"
            )
        if V.ndim <= 2:
            return
        try:
            torch.broadcast_shapes(self.shape[:-2], V.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"V has shape {tuple(V.shape)}, but the operator has {self.num_points} points; the axis of V before "
                f"[param, probe] must be 1, {self.num_points} or absent; use .mv for one vector at each point"
            ) from None


@dataclass(frozen=True)
class Parts(Sequence[Operator]):
    """A sequence of operators, which are one operator at consecutive groups of its points.

    A part is made when the sequence is indexed, and the sequence holds no part. The data that a part keeps for its
    products can therefore be freed before the next part begins.

    whole: the operator at all points. points: the positions of the points of each part.
    """

    whole: Operator
    points: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, part: Any) -> Any:
        if isinstance(part, slice):
            return Parts(self.whole, self.points[part])
        return self.whole.select(self.points[part])


def part_by_part(H: Operator, function: Callable[[Operator, slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The results of ``function(part, slice of its points)`` for every part of H, concatenated along the points."""
    results, start = [], 0
    for part in H.parts():
        stop = start + (part.num_points or 1)
        results.append(function(part, slice(start, stop)))
        start = stop
    return results[0] if len(results) == 1 else tuple(torch.cat(pieces) for pieces in zip(*results, strict=True))


def row_products(
    H: Operator, rows: Float[Tensor, "#point row param"], *, at_once: int = ROWS_AT_ONCE
) -> Float[Tensor, "point row param"]:
    """H times each row, a few rows at a time. at_once: the most products that run together, rows times points.

    Large rows are multiplied one by one. Rows are used because each of them is contiguous in memory, which the columns
    of a block are not.
    """
    num_points = H.num_points or 1
    out = rows.new_empty(num_points, *rows.shape[1:])
    rows = rows.expand(num_points, -1, -1)
    at_once = vectors_at_once(rows.device, rows.shape[-1] * rows.element_size(), at_once)
    for chosen in torch.arange(rows.shape[1], device="cpu").split(max(1, at_once // num_points)):
        block = slice(int(chosen[0]), int(chosen[-1]) + 1)
        out[:, block] = H.products(rows[:, block].mT).mT
    return out


def scipy_operator(
    matrix: Any, products: Callable[[Tensor], Tensor], transposed_products: Callable[[Tensor], Tensor]
) -> LinearOperator:
    """A matrix at one point as a SciPy operator, which takes and returns NumPy arrays.

    matrix: says the size, the dtype and the device. products, transposed_products: the products [1, param, probe] with
    the matrix and with its transpose.
    """

    def on_arrays(multiply: Callable[[Tensor], Tensor], columns: np.ndarray) -> np.ndarray:
        V = torch.tensor(columns, device="cpu").to(matrix.device, matrix.dtype).reshape(matrix.num_params, -1)
        return multiply(V[None])[0].cpu().numpy()

    numpy_dtype, n = torch.empty(0, dtype=matrix.dtype, device="cpu").numpy().dtype, matrix.num_params
    forward, back = partial(on_arrays, products), partial(on_arrays, transposed_products)  # for single vectors, too
    return LinearOperator((n, n), matvec=forward, rmatvec=back, matmat=forward, rmatmat=back, dtype=numpy_dtype)


# This module imports the class above, whose methods call it. It can therefore be imported only below it.
from hessian_tools.curvature.operators import composite  # noqa: E402
