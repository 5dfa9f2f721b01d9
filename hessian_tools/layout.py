"""The map between a network's named parameters and one flat vector.

Inner loops and curvature work on one vector ``theta``. This module alone knows which of its entries belong to which
parameter of the network.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hessian_tools.failures import described

# Which parameters are taken: a predicate on the name, prefixes of names, or None for all that are trained.
Where = Callable[[str], bool] | str | Iterable[str] | None


@dataclass(frozen=True)
class ParamLayout:
    """The place of each named parameter in the flat vector: row-major, in the order of ``named_parameters``.

    names, shapes: the parameters' names and shapes, in that order.
    head: the name of the module that is the network's head, its output layer; None: the module of the last parameter.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    head: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of entries of each parameter."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def numel(self) -> int:
        """The length of the flat vector."""
        return sum(self.sizes)

    def unflatten(self, theta: Float[Tensor, " param"]) -> dict[str, Tensor]:
        """The parameters by name, as views of ``theta``; differentiable. Raises ValueError for another length."""
        try:
            pieces = theta.split(list(self.sizes))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"theta is {described(theta)}; give a tensor of the {self.numel} parameters") from error
        return {name: piece.view(shape) for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)}

    def flatten(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, " param"]:
        """The flat vector of a mapping that holds this layout's names, and possibly others; a detached copy."""
        missing = [name for name in self.names if name not in parameters]
        if missing:
            raise ValueError(f"no parameter named {missing[0]!r} among {sorted(parameters)[:8]}; the layout needs it")
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.names])

    def under(self, *prefixes: str) -> tuple[str, ...]:
        """The names of the parameters at or under the prefixes, in the order of the vector.

        A prefix is the full name of a module or of a parameter: "body.1" does not cover "body.10.weight". The prefix
        "head" stands for the network's head, and "body" for all parameters outside the head.

        >>> layout = flatten(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))[1]
        >>> layout.under("head"), layout.under("body")
        (('1.weight', '1.bias'), ('0.weight', '0.bias'))
        """
        chosen: set[str] = set()
        for prefix in prefixes:
            covered = self._under_one(prefix)
            if not covered:
                raise ValueError(f"no parameter under {prefix!r}; the parameters are {', '.join(self.names)}")
            chosen |= covered
        if not chosen:
            raise ValueError("no prefix given; give names of modules or parameters, 'head' or 'body'")
        return tuple(name for name in self.names if name in chosen)

    def only(self, names: Iterable[str]) -> "ParamLayout":
        """The layout of the named parameters alone, in the given order."""
        shapes = dict(zip(self.names, self.shapes, strict=True))
        return ParamLayout(tuple(names), tuple(shapes[name] for name in names), self.head)

    def positions(self, names: Iterable[str]) -> Int[Tensor, " position"]:
        """The positions of the named parameters in the vector, in the order of the vector."""
        chosen = set(names)
        is_chosen = torch.tensor([name in chosen for name in self.names], device="cpu")
        return is_chosen.repeat_interleave(torch.tensor(self.sizes, device="cpu")).nonzero()[:, 0]

    def indices(self, *prefixes: str) -> Int[Tensor, " position"]:
        """The positions in the vector of the parameters under the prefixes; see :meth:`under`."""
        return self.positions(self.under(*prefixes))

    def _under_one(self, prefix: str) -> set[str]:
        """The names of the parameters under one prefix; see :meth:`under`."""
        head = self.names[-1].rpartition(".")[0] if self.head is None else self.head
        if prefix == "body":
            return set(self.names) - self._under_one("head")
        return {name for name in self.names if _is_under(name, head if prefix == "head" else prefix)}


def flatten(
    model: nn.Module, where: Where = None, *, head: str | None = None
) -> tuple[Float[Tensor, " param"], ParamLayout]:
    """A copy of the model's parameters as one vector, and the layout that turns the vector back into parameters.

    where: which parameters are taken: a predicate on the name, or prefixes of names. None takes the trained ones, whose
        ``requires_grad`` is True; frozen parameters are then constants of the loss.
    head: the module or parameter that is the network's head, its output layer; None takes the module called "head", or
        else the last module that has parameters.

    Tied weights occur once, under their first name. The model is not changed. Wrappers that compute the same function,
    such as ``nn.DataParallel`` and ``torch.compile``, are taken off (:func:`unwrapped`), so that names have no prefix.
    Raises ValueError where no parameter is selected, where a selected one is complex, or where the head has none.

    >>> theta, layout = flatten(nn.Linear(2, 1))
    >>> theta.shape, layout.names
    (torch.Size([3]), ('weight', 'bias'))
    """
    model = unwrapped(model)
    chosen = {name: p for name, p in model.named_parameters() if _is_selected(name, p, where)}
    if not chosen:
        known = ", ".join(name for name, _ in model.named_parameters()) or "none"
        if where is None and known != "none":
            raise ValueError(
                "no parameter of the model requires a gradient, and by default only these are taken; "
                "pass where=lambda name: True to take all of them"
            )
        raise ValueError(f"where={where!r} selects no parameter; the model's parameters are: {known}")
    for name, parameter in chosen.items():
        if parameter.is_complex():
            raise ValueError(
                f"parameter {name!r} is complex ({parameter.dtype}), and a Hessian has real parameters; keep "
                "torch.view_as_real(w) as the parameter, and use torch.view_as_complex(parameter) in the forward pass"
            )
    layout = ParamLayout(tuple(chosen), tuple(p.shape for p in chosen.values()), _head(model, head))
    return layout.flatten(chosen), layout


def first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter, its first name; a parameter that several modules share has several names."""
    model = unwrapped(model)
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside wrappers that compute the same function: DataParallel, its distributed kind, torch.compile.

    >>> net = nn.Linear(2, 1)
    >>> unwrapped(nn.DataParallel(net)) is net
    True
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # made by torch.compile
            model = inner
        else:
            return model


def _head(model: nn.Module, chosen: str | None) -> str:
    """The name of the head by the rule of ``flatten``; "" is the network itself."""
    names = [name for name, _ in model.named_parameters()]
    if chosen is not None:
        if not any(_is_under(name, chosen) for name in names):
            raise ValueError(f"head={chosen!r} holds no parameter; the parameters are {', '.join(names)}")
        return chosen
    return "head" if any(_is_under(name, "head") for name in names) else names[-1].rpartition(".")[0]


def _is_under(name: str, module: str) -> bool:
    """Whether a parameter belongs to a module; the names without a dot belong to the network itself ("")."""
    if not module:
        return "." not in name
    return name == module or name.startswith(module if module.endswith(".") else f"{module}.")


def _is_selected(name: str, parameter: Tensor, where: Where) -> bool:
    """Whether ``where`` selects the parameter; its prefixes are plain beginnings of names, as in ``str.startswith``."""
    if where is None:
        return parameter.requires_grad
    if callable(where):
        return bool(where(name))
    return name.startswith((where,) if isinstance(where, str) else tuple(where))
