"""Named parameters <-> one flat vector.

Everything downstream (inner loops, curvature) works on one vector ``theta``; this module alone
knows which entries belong to which parameter of the network.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

Where = Callable[[str], bool] | Iterable[str] | None


@dataclass(frozen=True)
class ParamLayout:
    """Where each named parameter lies in the flat vector: row-major, in ``named_parameters`` order."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

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

    def indices(self, *prefixes: str) -> Tensor:
        """Positions in the vector of all parameters whose name starts with one of the prefixes."""
        ends = list(accumulate(self.sizes))
        spans = [
            torch.arange(end - size, end)
            for name, size, end in zip(self.names, self.sizes, ends, strict=True)
            if name.startswith(prefixes)
        ]
        if not spans:
            raise ValueError(f"no parameter starts with {prefixes!r}; the parameters are {', '.join(self.names)}")
        return torch.cat(spans)


def flatten(model: nn.Module, where: Where = None) -> tuple[Float[Tensor, " param"], ParamLayout]:
    """A copy of the model's parameters as one vector, and the layout that undoes it.

    where: which parameters: a predicate on the name, or name prefixes; all by default. Tied
    weights occur once, under their first name. The model is not changed.

    >>> theta, layout = flatten(nn.Linear(2, 1))
    >>> theta.shape, layout.names
    (torch.Size([3]), ('weight', 'bias'))
    """
    chosen = {name: p for name, p in model.named_parameters() if _wanted(name, where)}
    if not chosen:
        known = ", ".join(name for name, _ in model.named_parameters()) or "none"
        raise ValueError(f"where={where!r} selects no parameter; the model's parameters are: {known}")
    layout = ParamLayout(tuple(chosen), tuple(p.shape for p in chosen.values()))
    return layout.flatten(chosen), layout


def _wanted(name: str, where: Where) -> bool:
    if where is None:
        return True
    if callable(where):
        return bool(where(name))
    return name.startswith((where,) if isinstance(where, str) else tuple(where))
