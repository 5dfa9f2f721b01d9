"""Operators made of others: sums and multiples, blocks of parameters, restriction to a subspace."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.layout import ParamLayout
from hessian_tools.torch_fixes.precision import full_precision


class Derived(Operator):
    """An interface: an operator that has its points, dtype and device from another."""

    @property
    @abstractmethod
    def source(self) -> Operator:
        """That other."""

    @property
    def num_points(self) -> int | None:
        """Points of the source."""
        return self.source.num_points

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the source."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        """Device of the source."""
        return self.source.device

    @property
    def at_once(self) -> int:
        """Points of the source that are best taken together."""
        return self.source.at_once

    def announce(self, num_products: int) -> None:
        """Announces the products to the source."""
        self.source.announce(num_products)


@dataclass(frozen=True, repr=False)
class Combination(Derived):
    """sum_i c_i A_i; made by ``+``, ``-`` and ``*``. A product costs one of each term."""

    terms: tuple[tuple[float, Operator], ...]

    @property
    def source(self) -> Operator:
        """The first term, like all of them."""
        return self.terms[0][1]

    @property
    def num_params(self) -> int:
        """Rows of every term."""
        return self.source.num_params

    @property
    def at_once(self) -> int:
        """As many points as fit where every term keeps what its products need."""
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


@dataclass(frozen=True, repr=False)
class Projected(Derived):
    """An interface: P'AP, an operator A seen through P; a product costs one of the whole, A."""

    whole: Operator

    @property
    def source(self) -> Operator:
        """The whole."""
        return self.whole

    @abstractmethod
    def lift(self, V: Float[Tensor, "point row probe"]) -> Float[Tensor, "point param probe"]:
        """PV."""

    @abstractmethod
    def lower(self, W: Float[Tensor, "point param probe"]) -> Float[Tensor, "point row probe"]:
        """P'W."""

    @full_precision
    def products(self, V: Float[Tensor, "point row probe"]) -> Float[Tensor, "point row probe"]:
        """P'(A(PV))."""
        return self.lower(self.whole.products(self.lift(V)))


@dataclass(frozen=True, repr=False)
class Block(Projected):
    """Some rows and the same columns of an operator; made by ``H.block``. A product costs one of the whole."""

    rows: Int[Tensor, " row"]
    names: ParamLayout

    @property
    def num_params(self) -> int:
        """Rows of the block."""
        return len(self.rows)

    @property
    def layout(self) -> ParamLayout:
        """The names of the block's rows."""
        return self.names

    def lift(self, V: Float[Tensor, "point row probe"]) -> Float[Tensor, "point param probe"]:
        """V with zeros in the other rows."""
        padded = V.new_zeros(V.shape[0], self.whole.num_params, V.shape[2])
        padded[:, self.rows] = V
        return padded

    def lower(self, W: Float[Tensor, "point param probe"]) -> Float[Tensor, "point row probe"]:
        """The block's rows."""
        return W[:, self.rows]

    def select(self, points: Int[Tensor, " chosen"]) -> "Block":
        """The same block at some of the points."""
        return replace(self, whole=self.whole.select(points))


@dataclass(frozen=True, repr=False)
class Restriction(Projected):
    """Q'AQ: an operator seen from a subspace; made by ``H.restrict``. A product costs one of the whole."""

    Q: Float[Tensor, "#point param k"]

    @property
    def num_params(self) -> int:
        """Dimension of the subspace."""
        return self.Q.shape[-1]

    def lift(self, V: Float[Tensor, "point k probe"]) -> Float[Tensor, "point param probe"]:
        """QV."""
        return self.Q @ V

    def lower(self, W: Float[Tensor, "point param probe"]) -> Float[Tensor, "point k probe"]:
        """Q'W."""
        return self.Q.mT @ W

    def select(self, points: Int[Tensor, " chosen"]) -> "Restriction":
        """The same subspaces at some of the points."""
        Q = self.Q if len(self.Q) == 1 else self.Q[points.to(self.Q.device)]
        return Restriction(self.whole.select(points), Q)


def combination(*terms: tuple[float | int, Operator]) -> Combination:
    """The checked sum of multiples; sums of sums are flattened."""
    flat: list[tuple[float, Operator]] = []
    for weight, term in terms:
        inner = term.terms if isinstance(term, Combination) else ((1.0, term),)
        flat += [(float(weight) * c, operator) for c, operator in inner]
    first = terms[0][1]
    for _, other in terms[1:]:
        if (first.shape, first.dtype, first.device) != (other.shape, other.dtype, other.device):
            raise ValueError(
                f"{_words(first)} and {_words(other)} cannot be added; "
                "make both of the same parameters and points, in one dtype on one device"
            )
    return Combination(tuple(flat))


def block(whole: Operator, prefixes: tuple[str, ...], head: str | None) -> Block:
    """The checked block of the parameters under the prefixes."""
    layout = _layout(whole)
    if head is not None:
        layout = replace(layout, head=head)
        layout.under("head")  # a head that is not there would leave everything to the body
    return _block(whole, layout, layout.under(*prefixes))


def blocks(whole: Operator) -> dict[str, Block]:
    """One block for each module that holds parameters itself."""
    layout = _layout(whole)
    modules: dict[str, list[str]] = {}
    for name in layout.names:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    return {module: _block(whole, layout, tuple(names)) for module, names in modules.items()}


@full_precision
def restriction(whole: Operator, Q: Float[Tensor, "..."]) -> Restriction:
    """The checked restriction to the span of orthonormal columns."""
    fits = Q.ndim == 2 or (Q.ndim == 3 and Q.shape[0] == whole.num_points)
    if not fits or Q.shape[-2] != whole.num_params or (Q.dtype, Q.device) != (whole.dtype, whole.device):
        raise ValueError(
            f"Q has shape {tuple(Q.shape)}, {Q.dtype} on {Q.device}, the operator is {_words(whole)}; "
            f"give [{whole.num_params}, k], or one such for each point"
        )
    Q = Q.detach() if Q.ndim == 3 else Q.detach()[None]
    error = (Q.mT @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)).abs()
    if (error > torch.finfo(Q.dtype).eps ** 0.5).any():  # NaN at one point is that point's affair
        raise ValueError("the columns of Q are not orthonormal, so Q'HQ is no restriction; give torch.linalg.qr(Q).Q")
    return Restriction(whole, Q)


def _layout(whole: Operator) -> ParamLayout:
    if whole.layout is None:
        raise ValueError(
            "this operator's rows have no names, so no blocks; make it of a Loss from make_loss, or use restrict(Q)"
        )
    return whole.layout


def _block(whole: Operator, layout: ParamLayout, names: tuple[str, ...]) -> Block:
    return Block(whole, layout.positions(names).to(whole.device), layout.only(names))


def _words(operator: Operator) -> str:
    return f"{list(operator.shape)} {operator.dtype} on {operator.device}"
