"""The loss of a recorded training loop: at each point the network has the buffers that were recorded there.

Buffers, such as the running statistics of batch normalisation, move during training. A point is then a vector of
parameters together with its buffers, and the loss finds the buffers by the vector.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessian_tools.failures import first_line
from hessian_tools.hidden_state import fix_of_independent, independent_of_theta
from hessian_tools.layout import ParamLayout, unwrapped
from hessian_tools.loss import AtState, Batch, Criterion, Loss
from hessian_tools.outputs import map_tensors

State = Mapping[str, Tensor]


def in_eval_mode(model: nn.Module, *, copied: Callable[[str], bool] = lambda name: False) -> nn.Module:
    """A copy of the model in eval mode that shares its parameters and buffers, except those that ``copied`` names.

    copied: whether the parameter or buffer of a name is copied as well.
    The mode of the model itself is not changed. Raises ValueError for a model that cannot be copied, and
    HiddenStateError for the patched module of ``higher``, whose loss does not depend on theta.
    """
    model = unwrapped(model)
    # deepcopy takes a tensor from this mapping, by the identity of the original, in place of copying it.
    values = [value for module in model.modules() for value in vars(module).values()]
    held = {id(value): value for value in values if isinstance(value, Tensor)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        held[id(tensor)] = tensor
        if copied(name):
            copy = tensor.detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            held[id(tensor)] = nn.Parameter(copy, requires_grad=tensor.requires_grad) if is_parameter else copy
    try:
        return deepcopy(model, memo=dict(held)).eval()
    except Exception as error:  # whatever a module may hold
        if hasattr(model, "fast_params"):  # the module that higher makes holds generators
            raise independent_of_theta(fix_of_independent(model)) from error
        raise ValueError(
            f"the model cannot be copied, and it is measured as a copy in eval mode: {first_line(error)}; give a model "
            "that copy.deepcopy takes"
        ) from error


class RecordedLoss(Loss):
    """The loss of a network at the points of a training loop, with the buffers of each point.

    states: the parameters and buffers by name at each point; the list may grow. own_buffers: False measures all points
    with the buffers that the network has now.
    """

    def __init__(
        self, model: nn.Module, criterion: Criterion | None, layout: ParamLayout, states: Sequence[State]
    ) -> None:
        super().__init__(model, criterion, layout)
        self.states, self.own_buffers = states, True
        self._points: dict[bytes, list[int]] = {}  # the positions of the states, by the digests of their vectors
        self._known = 0  # how many states are in that dict
        self._compared: tuple[Any, tuple[str, ...]] = None, ()  # the key and the result of the last comparison

    def __call__(self, theta: Float[Tensor, " param"], batch: Batch, /) -> Float[Tensor, ""]:
        """The criterion of the network's outputs, with the buffers of the recorded point that theta is."""
        if self.own_buffers and not isinstance(batch, AtState) and (moved := self._moved()):
            # An AtState is a batch with the tensors that the network holds while it runs on this batch.
            state = self.states[self._positions(theta[None])[0]]
            batch = AtState({name: state[name].to(theta.device) for name in moved}, batch)
        return super().__call__(theta, batch)

    def in_states(
        self, thetas: Float[Tensor, "point param"], batches: Sequence[Batch], *, shared: bool
    ) -> tuple[Sequence[Batch], bool]:
        """The batches, with the buffers of each point if buffers moved; and whether all points share the batches.

        Raises ValueError for points that were not recorded, if buffers moved.
        """
        moved = self._moved() if self.own_buffers else ()
        if not moved or any(isinstance(batch, AtState) for batch in batches):
            return batches, shared
        states = [self.states[i] for i in self._positions(thetas)]
        tensors = {name: torch.stack([state[name] for state in states]).to(thetas.device) for name in moved}
        tensors = {n: t.to(thetas.dtype) if t.is_floating_point() else t for n, t in tensors.items()}
        if shared:  # the points have the same batch but other buffers, so the batch gets an axis of points
            batches = [map_tensors(lambda leaf: leaf.expand(len(states), *leaf.shape), batch) for batch in batches]
        return [AtState(tensors, batch) for batch in batches], False

    def fresh(self) -> Loss:
        """A new object of the same loss, so that ``refuse_hidden_state`` looks at it again."""
        return RecordedLoss(self.model, self._criterion, self.layout, self.states)

    def _moved(self) -> tuple[str, ...]:
        """The buffers that differ between the points, or from what the network holds now."""
        buffers = dict(self.model.named_buffers())
        # The loss is called at every pass, so the comparison is made again only where something may have changed.
        key = (len(self.states), *((id(b), b._version) for b in buffers.values()))
        if self._compared[0] != key:
            moved = (name for name, b in buffers.items() if any(not same_values(s[name], b) for s in self.states))
            self._compared = key, tuple(moved)
        return self._compared[1]

    def _positions(self, thetas: Float[Tensor, "point param"]) -> list[int]:
        """The positions of these points among the recorded states; raises ValueError for a point without a state."""
        # Inside a transform of torch.func, such as vmap, the numbers of thetas cannot be read.
        if isinstance(thetas, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(thetas):
            raise ValueError("the buffers of a recorded point are not known here; give ht.hessian(recorder.loss, ...)")
        for i in range(self._known, len(self.states)):
            self._points.setdefault(_digest(self.layout.flatten(self.states[i])), []).append(i)
        self._known = len(self.states)
        dtype = self.states[0][self.layout.names[0]].dtype
        places = [self._points.get(_digest(theta.to(dtype)), []) for theta in thetas.detach()]
        for k, found in enumerate(places):
            if not found:
                raise ValueError(
                    f"point {k} is none of the {len(self.states)} recorded ones, so its buffers are not known; give "
                    "points of the trajectory, or ht.make_loss(model, criterion) for the buffers of the model now"
                )
            if len(thetas) != len(self.states) and not self._equal_buffers(found):
                raise ValueError(
                    f"point {k} was recorded {len(found)} times with other buffers; give all points of the trajectory"
                )
        # Where all points are given, point k has the buffers of state k, even if other states have the same vector.
        return [k if k in found and len(thetas) == len(self.states) else found[0] for k, found in enumerate(places)]

    def _equal_buffers(self, points: Sequence[int]) -> bool:
        """Whether the states at these positions have the same buffers."""
        names = [name for name, _ in self.model.named_buffers()]
        first = self.states[points[0]]
        return all(same_values(first[name], self.states[i][name]) for i in points[1:] for name in names)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and values, on whatever devices."""
    return a.shape == b.shape and torch.equal(a.detach().to(b), b.detach())


def to_host(tensor: Tensor) -> Tensor:
    """A copy in the computer's main memory."""
    return tensor.detach().to("cpu", copy=True)


def _digest(vector: Float[Tensor, " param"]) -> bytes:
    """A hash of the bytes of a vector, so that a state is found by its vector without comparing with all states."""
    content: Any = vector.detach().cpu().contiguous().view(torch.uint8).numpy()
    return blake2b(content, digest_size=16).digest()
