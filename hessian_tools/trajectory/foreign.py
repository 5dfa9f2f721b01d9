"""Points (parameter vectors) from the stored states of another training loop: vectors, state dicts or files."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hessian_tools.layout import first_names
from hessian_tools.loss import Loss, LossFunction
from hessian_tools.trajectory.states import same_values
from hessian_tools.validation import check_choice

State = Tensor | Mapping[str, Tensor] | str | Path
Buffers = Literal["refuse", "ignore"]

# The buffers of batch normalisation, which are missing from a model that does not track running statistics.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def points_of_states(
    loss: LossFunction, states: Iterable[State], *, buffers: Buffers = "refuse"
) -> Float[Tensor, "point param"]:
    """The points (parameter vectors) of the given states, one in each row.

    states: each state is a vector [param], a mapping of names to tensors, or the path of a .safetensors file. Names are
        matched against the layout of ``loss``; a parameter that the layout leaves out must be equal to the model's.
    buffers: "refuse" raises ValueError for states whose buffers (running statistics) differ from the model's, because
        their losses are different functions of the parameters; "ignore" uses the model's buffers at every point.

    Files are read one at a time, and nothing is unpickled. Raises ValueError for a state that does not fit; the message
    names the state and what is wrong with it.
    """
    check_choice("buffers", buffers, ("refuse", "ignore"))
    if isinstance(states, str | Path | Mapping):
        raise ValueError(f"states is one {type(states).__name__}, not several; give a list, such as [state]")
    rows = [_vector(loss, state, f"state {i}", buffers) for i, state in enumerate(states)]
    if not rows:
        raise ValueError("no states given; a trajectory needs at least one")
    for i, row in enumerate(rows):
        if not row.is_floating_point():
            raise ValueError(f"state {i} has numbers of {row.dtype}; parameters are floating-point numbers")
        if row.shape != rows[0].shape:
            raise ValueError(f"state {i} has {len(row)} numbers, but state 0 has {len(rows[0])}")
    return torch.stack([row.to(rows[0]) for row in rows])


def _vector(loss: LossFunction, state: State, where: str, buffers: Buffers) -> Tensor:
    """The point of one state; ``where`` is what error messages call the state, such as "state 2"."""
    if isinstance(state, Tensor):
        expected = loss.layout.numel if isinstance(loss, Loss) else None  # a plain function takes any length
        if state.ndim != 1 or len(state) != (expected or len(state)):
            shape = f"[{expected}]" if expected else "[param]"
            raise ValueError(f"{where} has shape {list(state.shape)}; a vector of all parameters has {shape}")
        return state.detach()
    if not isinstance(state, str | Path | Mapping):
        raise ValueError(
            f"{where} is of type {type(state).__name__}; give a tensor [param], a state dict, or a path of .safetensors"
        )
    if not isinstance(loss, Loss):
        raise ValueError(f"{where} has names, but a plain function has none; give vectors, or use make_loss")
    if isinstance(state, Mapping):
        return _point_from_names(loss, state, where, buffers)
    return _point_from_names(loss, _read_file(Path(state), where), f"{where} ({state})", buffers)


def _read_file(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file by name; ``where`` is as for :func:`_vector`."""
    if not path.is_file():
        raise ValueError(f"{where}: there is no file {path}")
    try:
        return load_file(path)
    except SafetensorError as e:
        raise ValueError(
            f"{where}: {path} is no safetensors file ({e}); pickles (.pt) are not read, because they can run code:"
            " give torch.load(path, weights_only=True) as a state"
        ) from e


def _point_from_names(loss: Loss, state: Mapping[str, Tensor], where: str, buffers: Buffers) -> Tensor:
    """The point of a state that holds tensors by name; the arguments are those of :func:`_vector`."""
    first = first_names(loss.model)  # the layout knows a tied weight by the first of its names
    named = {first.get(name, name): tensor for name, tensor in state.items()}
    _refuse_unknown(loss, named, where, buffers)
    for name, shape in zip(loss.layout.names, loss.layout.shapes, strict=True):
        if name not in named:
            raise ValueError(f"{where} has no parameter {name!r}; it has {', '.join(list(state)[:8])}")
        if not isinstance(named[name], Tensor):
            raise ValueError(f"{where}: {name!r} is of type {type(named[name]).__name__}; a state holds tensors")
        if named[name].shape != shape:
            raise ValueError(
                f"{where}: {name!r} has shape {list(named[name].shape)}, but the layout's has {list(shape)}"
            )
    _refuse_moved(loss, named, where, buffers)
    return loss.layout.flatten(named)


def _refuse_unknown(loss: Loss, named: Mapping[str, Tensor], where: str, buffers: Buffers) -> None:
    """Raise ValueError for names that the model does not have."""
    known = {name for name, _ in [*loss.model.named_parameters(), *loss.model.named_buffers()]}
    ignored = STATISTICS if buffers == "ignore" else ()
    unknown = [name for name in named if name not in known and name.rpartition(".")[-1] not in ignored]
    if unknown:
        hint, prefix = "is this another model's state?", unknown[0].partition(".")[0]
        if unknown[0].removeprefix(f"{prefix}.") in known:  # such as "module.0.weight" of nn.DataParallel
            hint = (
                f"a wrapper around the model has put '{prefix}.' before its names; give wrapper.{prefix}.state_dict(),"
                " or take the prefix off"
            )
        raise ValueError(f"{where} has {unknown[0]!r}, which the model does not have; {hint}")


def _refuse_moved(loss: Loss, named: Mapping[str, Tensor], where: str, buffers: Buffers) -> None:
    """Raise ValueError where a parameter outside the layout, or a buffer, differs from the model's."""
    for name, parameter in loss.model.named_parameters():
        if name in named and name not in loss.layout.names and not same_values(named[name], parameter):
            raise ValueError(
                f"{where}: {name!r} differs from the model's, but the points leave this parameter out, so that the loss"
                " takes it from the model; include it by the argument where= of flatten"
            )
    for name, buffer in loss.model.named_buffers():
        if buffers == "refuse" and name in named and not same_values(named[name], buffer):
            raise ValueError(
                f"{where}: buffer {name!r} differs from the model's, so the states' losses are different functions;"
                " buffers='ignore' uses the model's buffers at every point"
            )
