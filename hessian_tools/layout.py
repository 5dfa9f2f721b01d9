"""Named parameters <-> one flat vector.

Everything downstream (inner loops, curvature) works on one vector ``theta``; this module alone
knows which entries belong to which parameter of the network.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Where = Callable[[str], bool] | Iterable[str] | None


@dataclass(frozen=True)
class ParamLayout:
    """Where each named parameter lies in the flat vector: row-major, in ``named_parameters`` order.

    head: the module that :meth:`under` takes for "head"; None: that of the last parameter.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    head: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def numel(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def unflatten(self, theta: Float[Tensor, " param"]) -> dict[str, Tensor]:
        """Views of ``theta`` by parameter name; differentiable."""
        pieces = theta.split(list(self.sizes))
        return {name: piece.view(shape) for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)}

    def flatten(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, " param"]:
        """The flat vector of a mapping that holds (at least) this layout's names."""
        missing = [name for name in self.names if name not in parameters]
        if missing:
            raise ValueError(f"no parameter named {missing[0]!r} among {sorted(parameters)[:8]}; the layout needs it")
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.names])

    def under(self, *prefixes: str) -> tuple[str, ...]:
        """Names of the parameters at or under the prefixes: module or parameter names, whole between dots.

        "head" is the module of that name, or else the last one with parameters; "body" is all but the head.

        >>> layout = flatten(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))[1]
        >>> layout.under("head"), layout.under("body")
        (('1.weight', '1.bias'), ('0.weight', '0.bias'))
        """
        wanted: set[str] = set()
        for prefix in prefixes:
            found = self._named(prefix)
            if not found:
                raise ValueError(f"no parameter under {prefix!r}; the parameters are {', '.join(self.names)}")
            wanted |= found
        if not wanted:
            raise ValueError("no prefix given; give names of modules or parameters, 'head' or 'body'")
        return tuple(name for name in self.names if name in wanted)

    def only(self, names: Iterable[str]) -> "ParamLayout":
        """The layout of some of the parameters."""
        shapes = dict(zip(self.names, self.shapes, strict=True))
        return ParamLayout(tuple(names), tuple(shapes[name] for name in names), self.head)

    def positions(self, names: Iterable[str]) -> Int[Tensor, " position"]:
        """Where the named parameters lie in the vector, in the order of the vector."""
        wanted = torch.tensor([name in set(names) for name in self.names], device="cpu")
        return wanted.repeat_interleave(torch.tensor(self.sizes, device="cpu")).nonzero()[:, 0]

    def indices(self, *prefixes: str) -> Int[Tensor, " position"]:
        """Positions in the vector of the parameters under the prefixes; see :meth:`under`."""
        return self.positions(self.under(*prefixes))

    def _named(self, prefix: str) -> set[str]:
        head = self.names[-1].rpartition(".")[0] if self.head is None else self.head
        if prefix == "body":
            return set(self.names) - self._named("head")
        return {name for name in self.names if _is_under(name, head if prefix == "head" else prefix)}


def flatten(
    model: nn.Module, where: Where = None, *, head: str | None = None
) -> tuple[Float[Tensor, " param"], ParamLayout]:
    """A copy of the model's parameters as one vector, and the layout that undoes it.

    where: which parameters: a predicate on the name, or name prefixes; all by default. Tied
    weights occur once, under their first name. head: the module (or parameter) that is the head; by default
    the one called so, else the last that has parameters. The model is not changed.

    >>> theta, layout = flatten(nn.Linear(2, 1))
    >>> theta.shape, layout.names
    (torch.Size([3]), ('weight', 'bias'))
    """
    chosen = {name: p for name, p in model.named_parameters() if _wanted(name, where)}
    if not chosen:
        known = ", ".join(name for name, _ in model.named_parameters()) or "none"
        raise ValueError(f"where={where!r} selects no parameter; the model's parameters are: {known}")
    layout = ParamLayout(tuple(chosen), tuple(p.shape for p in chosen.values()), _head(model, head))
    return layout.flatten(chosen), layout


def _head(model: nn.Module, chosen: str | None) -> str:
    """By rule: the module called head, or else the last that has parameters; "" is the network itself."""
    names = [name for name, _ in model.named_parameters()]
    if chosen is not None:
        if not any(_is_under(name, chosen) for name in names):
            raise ValueError(f"head={chosen!r} holds no parameter; the parameters are {', '.join(names)}")
        return chosen
    return "head" if any(_is_under(name, "head") for name in names) else names[-1].rpartition(".")[0]


def _is_under(name: str, module: str) -> bool:
    """By whole parts: "body.1" is not over "body.10.weight"; the network itself ("") owns only undotted names."""
    if not module:
        return "." not in name
    return name == module or name.startswith(module if module.endswith(".") else f"{module}.")


def _wanted(name: str, where: Where) -> bool:
    if where is None:
        return True
    if callable(where):
        return bool(where(name))
    return name.startswith((where,) if isinstance(where, str) else tuple(where))
