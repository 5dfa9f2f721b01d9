"""Operators made of other operators: sums and multiples, blocks of parameters, subspaces, scaled coordinates."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.layout import ParamLayout
from hessian_tools.processes import Ranks
from hessian_tools.torch_fixes.precision import full_precision


class Derived(Operator):
    """An interface: an operator whose points, dtype and device are those of another one, its source."""

    @property
    @abstractmethod
    def source(self) -> Operator:
        """The operator that this one is derived from."""

    @property
    def num_params(self) -> int:
        """The number of rows, which is that of the source unless a subclass says otherwise."""
        return self.source.num_params

    @property
    def num_points(self) -> int | None:
        """The number of points of the source."""
        return self.source.num_points

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the source."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        """The device of the source."""
        return self.source.device

    @property
    def ranks(self) -> Ranks | None:
        """The processes that make the products of the source."""
        return self.source.ranks

    @property
    def at_once(self) -> int:
        """The number of points of the source that are best taken together."""
        return self.source.at_once

    def announce(self, num_products: int) -> None:
        """Announces the products to the source."""
        self.source.announce(num_products)

    def _details(self) -> list[str]:
        return self.source._details()


@dataclass(frozen=True, repr=False)
class Combination(Derived):
    """The operator sum_i c_i A_i, made by ``+``, ``-`` and ``*``. A product costs one product of each term."""

    terms: tuple[tuple[float, Operator], ...]

    @property
    def source(self) -> Operator:
        """The first term; all terms agree in size, points, dtype and device."""
        return self.terms[0][1]

    @property
    def ranks(self) -> Ranks | None:
        """The processes that compute a term's products together. Other terms have equal products on all of them."""
        return next((term.ranks for _, term in self.terms if term.ranks is not None), None)

    @property
    def at_once(self) -> int:
        """As many points as fit in memory while all terms keep the data that their products share."""
        return max(1, min(term.at_once for _, term in self.terms) // len(self.terms))

    @property
    def layout(self) -> ParamLayout | None:
        """The names of the rows, where the terms agree on them."""
        layouts = [term.layout for _, term in self.terms]
        return layouts[0] if all(layout == layouts[0] for layout in layouts) else None

    def announce(self, num_products: int) -> None:
        """Announces the products to every term."""
        for _, term in self.terms:
            term.announce(num_products)

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """The sum of the terms' products."""
        total = self.terms[0][0] * self.terms[0][1].products(V)
        for weight, term in self.terms[1:]:
            total = total + weight * term.products(V)
        return total

    def select(self, points: Int[Tensor, " chosen"]) -> "Combination":
        """The same combination at some of the points."""
        return Combination(tuple((weight, term.select(points)) for weight, term in self.terms))

    def _details(self) -> list[str]:
        return list(dict.fromkeys(words for _, term in self.terms for words in term._details()))


@dataclass(frozen=True, repr=False)
class Projected(Derived):
    """An interface: the operator P'AP of another operator A and a matrix P. A product costs one product of A.

    whole: the operator A.
    """

    whole: Operator

    @property
    def source(self) -> Operator:
        """The operator A."""
        return self.whole

    @abstractmethod
    def lift(self, V: Float[Tensor, "point row probe"]) -> Float[Tensor, "point param probe"]:
        """The vectors PV in the space of A."""

    @abstractmethod
    def lower(self, W: Float[Tensor, "point param probe"]) -> Float[Tensor, "point row probe"]:
        """The vectors P'W, from vectors W in the space of A."""

    @full_precision
    def products(self, V: Float[Tensor, "point row probe"]) -> Float[Tensor, "point row probe"]:
        """P'(A(PV))."""
        return self.lower(self.whole.products(self.lift(V)))


@dataclass(frozen=True, repr=False)
class Block(Projected):
    """Some rows and the same columns of an operator A; made by ``H.block``. A product costs one product of A.

    rows: the positions of these rows. names: the layout of the parameters to which the rows belong.
    """

    rows: Int[Tensor, " row"]
    names: ParamLayout

    @property
    def num_params(self) -> int:
        """The number of rows of the block."""
        return len(self.rows)

    @property
    def layout(self) -> ParamLayout:
        """The names of the block's rows."""
        return self.names

    def lift(self, V: Float[Tensor, "point row probe"]) -> Float[Tensor, "point param probe"]:
        """The vectors V with zeros in all other rows."""
        padded = V.new_zeros(V.shape[0], self.whole.num_params, V.shape[2])
        padded[:, self.rows] = V
        return padded

    def lower(self, W: Float[Tensor, "point param probe"]) -> Float[Tensor, "point row probe"]:
        """The rows of the block."""
        return W[:, self.rows]

    def select(self, points: Int[Tensor, " chosen"]) -> "Block":
        """The same block at some of the points."""
        return replace(self, whole=self.whole.select(points))


@dataclass(frozen=True, repr=False)
class Restriction(Projected):
    """The operator Q'AQ on the span of the columns of Q; made by ``H.restrict``. A product costs one product of A."""

    Q: Float[Tensor, "#point param k"]

    @property
    def num_params(self) -> int:
        """The dimension of the subspace."""
        return self.Q.shape[-1]

    def lift(self, V: Float[Tensor, "point k probe"]) -> Float[Tensor, "point param probe"]:
        """The vectors QV in the space of A."""
        return self.Q @ V

    def lower(self, W: Float[Tensor, "point param probe"]) -> Float[Tensor, "point k probe"]:
        """The vectors Q'W, from vectors W in the space of A."""
        return self.Q.mT @ W

    def select(self, points: Int[Tensor, " chosen"]) -> "Restriction":
        """The restriction to the same subspaces at some of the points."""
        Q = self.Q if len(self.Q) == 1 else self.Q[points.to(self.Q.device)]
        return Restriction(self.whole.select(points), Q)


@dataclass(frozen=True, repr=False)
class Scaled(Projected):
    """The operator DAD with a diagonal matrix D; made by ``H.scaled``. A product costs one product of A.

    d: the diagonal of D.
    """

    d: Float[Tensor, "#point param"]

    @property
    def layout(self) -> ParamLayout | None:
        """The names of the rows, which are those of A."""
        return self.whole.layout

    def lift(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """The vectors DV."""
        return self.d[..., None] * V

    def lower(self, W: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """The vectors DW."""
        return self.d[..., None] * W

    def select(self, points: Int[Tensor, " chosen"]) -> "Scaled":
        """The same scaling at some of the points."""
        d = self.d if len(self.d) == 1 else self.d[points.to(self.d.device)]
        return Scaled(self.whole.select(points), d)


def combination(*terms: tuple[float | int, Operator]) -> Combination:
    """The sum of the operators, each times its number; a sum within the sum is flattened.

    Raises ValueError if the operators differ in shape, dtype or device.
    """
    flat: list[tuple[float, Operator]] = []
    for weight, term in terms:
        inner = term.terms if isinstance(term, Combination) else ((1.0, term),)
        flat += [(float(weight) * c, operator) for c, operator in inner]
    first = terms[0][1]
    for _, other in terms[1:]:
        if (first.shape, first.dtype, first.device) != (other.shape, other.dtype, other.device):
            raise ValueError(
                f"{_described(first)} and {_described(other)} cannot be added; "
                "make them with the same parameters and points, in one dtype and on one device"
            )
    return Combination(tuple(flat))


def block(whole: Operator, prefixes: tuple[str, ...], head: str | None) -> Block:
    """The block of the parameters under the prefixes; see ``Operator.block``. Raises ValueError if there are none."""
    layout = _layout(whole)
    if head is not None:
        layout = replace(layout, head=head)
        layout.under("head")  # raises if no parameter is in this head; otherwise "body" would be the whole network
    return _block(whole, layout, layout.under(*prefixes))


def blocks(whole: Operator) -> dict[str, Block]:
    """A block for each module that holds parameters itself, by the module's name."""
    layout = _layout(whole)
    modules: dict[str, list[str]] = {}
    for name in layout.names:
        module = name.rpartition(".")[0]
        modules.setdefault(module, []).append(name)
    return {module: _block(whole, layout, tuple(names)) for module, names in modules.items()}


@full_precision
def restriction(whole: Operator, Q: Float[Tensor, "..."]) -> Restriction:
    """The restriction to the span of orthonormal columns; see ``Operator.restrict``, also for what it raises."""
    fits = Q.ndim == 2 or (Q.ndim == 3 and Q.shape[0] == whole.num_points)
    if not fits or Q.shape[-2] != whole.num_params or (Q.dtype, Q.device) != (whole.dtype, whole.device):
        raise ValueError(
            f"Q has shape {tuple(Q.shape)}, {Q.dtype} on {Q.device}, the operator is {_described(whole)}; "
            f"give shape [{whole.num_params}, k], or one such matrix for each point"
        )
    Q = Q.detach() if Q.ndim == 3 else Q.detach()[None]
    error = (Q.mT @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)).abs()
    # The comparison is False for NaN, so that a point with NaN does not stop the others.
    if (error > torch.finfo(Q.dtype).eps ** 0.5).any():
        raise ValueError("the columns of Q are not orthonormal, so Q'HQ is no restriction; give torch.linalg.qr(Q).Q")
    return Restriction(whole, Q)


def scaled(whole: Operator, d: Float[Tensor, "..."]) -> Scaled:
    """The operator with its rows and columns multiplied by d; see ``Operator.scaled``, also for what it raises."""
    fits = d.shape == (whole.num_params,) or d.shape == whole.shape[:-1]
    if not fits or (d.dtype, d.device) != (whole.dtype, whole.device):
        raise ValueError(
            f"d has shape {tuple(d.shape)}, {d.dtype} on {d.device}, the operator is {_described(whole)}; "
            f"give shape [{whole.num_params}], or one such vector for each point"
        )
    return Scaled(whole, d.detach() if d.ndim == 2 else d.detach()[None])


def _layout(whole: Operator) -> ParamLayout:
    """The names of the operator's rows. Raises ValueError if they have none."""
    if whole.layout is None:
        raise ValueError(
            "this operator has no blocks, because its rows have no names; "
            "make it of a Loss from make_loss, or use restrict(Q)"
        )
    return whole.layout


def _block(whole: Operator, layout: ParamLayout, names: tuple[str, ...]) -> Block:
    """The block of the parameters with these names."""
    return Block(whole, layout.positions(names).to(whole.device), layout.only(names))


def _described(operator: Operator) -> str:
    return f"{list(operator.shape)} {operator.dtype} on {operator.device}"
