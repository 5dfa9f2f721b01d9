"""Trajectories of training loops other than the library's inner loop, so that their curvature can be measured.

Only the points (parameter vectors) come from the other loop. Gradients and losses are those of one given loss on one
given batch, which need not be what the other loop minimised.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from hessian_tools.inner.meta_loss import accuracy
from hessian_tools.layout import Where, flatten
from hessian_tools.loss import Batch, Criterion, Loss, LossFunction, make_loss, refuse_unusable
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.trajectory.foreign import Buffers, State, points_of_states
from hessian_tools.trajectory.trajectory import SaveAt, Trajectory, trajectory_of_points

_WITH_POINTS = SaveAt(thetas=True)


@full_precision
def trajectory_from(
    loss: LossFunction,
    states: Iterable[State],
    support: Batch,
    *,
    query: Batch | None = None,
    save: SaveAt = _WITH_POINTS,
    buffers: Buffers = "refuse",
) -> Trajectory:
    """The trajectory through the given states, measured by ``loss`` on the batch ``support``.

    states: vectors [param] or the rows of [point, param], state dicts, or paths of .safetensors files; see
        :func:`hessian_tools.trajectory.foreign.points_of_states` for how names are matched, and for ``buffers``.
    support: the batch whose loss and gradients are measured.
    query: a further batch to evaluate on.
    save: the points are kept by default, for ``hessian(loss, t.thetas, support, shared=True)``.

    ``step_cosine`` of the result says whether the steps followed the gradients of this loss. The cost is one gradient a
    state and one pass over the query set, with two vectors a state in memory. Raises ValueError for states that do not
    fit, and HiddenStateError for a network that changes in its forward pass.

    >>> states = [torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.8])]  # one step of 0.1 on theta'diag(1, 2)theta / 2
    >>> t = trajectory_from(lambda theta, d: (d * theta**2).sum() / 2, states, torch.tensor([1.0, 2.0]))
    >>> t.support_loss, t.step_cosine
    (tensor([1.5000, 1.0450]), tensor([1.]))
    """
    thetas = points_of_states(loss, states, buffers=buffers)
    for batch in (support, query):
        refuse_unusable(batch, thetas)
    if isinstance(loss, Loss):
        thetas = thetas.to(next(loss.model.parameters()).device)  # states are kept in main memory
        loss.refuse_hidden_state(thetas[0], support)
    on_support = grad_and_value(lambda theta: _loss_and_accuracy(loss, theta, support), has_aux=True)
    gradients, values = zip(*[on_support(theta) for theta in thetas], strict=True)
    with torch.no_grad():
        on_query = None if query is None else [_loss_and_accuracy(loss, theta, query) for theta in thetas]
        return trajectory_of_points(thetas, torch.stack(gradients), values, on_query, save, foreign_steps=True)


class Recorder:
    """Records any training loop in PyTorch, by three lines that are added to it.

    Make the recorder before the loop, call ``step()`` after each update, and ``trajectory()`` in the end. The recorder
    keeps a copy of the parameters and buffers when it is made and at each ``step()``, in the computer's main memory. It
    runs no forward pass, draws no random number and changes nothing until ``trajectory()`` is called.

    model: the module that is trained; for a learn2learn clone, the module in its attribute ``.module``.
    criterion, batch: the loss whose curvature is of interest, which need not be what the loop minimises.
    query: a further batch to evaluate on.
    where: which parameters are recorded; see ``flatten``.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> batch = (torch.eye(2), torch.zeros(2, 1))
    >>> recorder = Recorder(model, lambda out, y: ((out - y) ** 2).mean(), batch)
    >>> optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> for _ in range(3):
    ...     optimiser.zero_grad()
    ...     ((model(batch[0]) - batch[1]) ** 2).mean().backward()
    ...     _ = optimiser.step()
    ...     recorder.step()
    >>> t = recorder.trajectory()  # the Hessian is the identity, so each step of 0.5 halves the parameters
    >>> t.steps, bool(torch.allclose(t.theta_norm[1:], t.theta_norm[:-1] / 2))
    (3, True)
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        batch: Batch,
        *,
        query: Batch | None = None,
        where: Where = None,
    ) -> None:
        layout = flatten(model, where)[1]
        self.loss = make_loss(model, criterion, layout)
        self.batch, self.query = batch, query
        self._fixed = {name: _copy(p) for name, p in model.named_parameters() if name not in layout.names}
        self._states: list[dict[str, Tensor]] = []
        self.step()

    def step(self) -> None:
        """Keep the parameters as they are now."""
        names = set(self.loss.layout.names)
        state = {name: _copy(p) for name, p in self.loss.model.named_parameters() if name in names}
        self._states.append(state | {name: _copy(b) for name, b in self.loss.model.named_buffers()})

    def trajectory(self, *, save: SaveAt = _WITH_POINTS, buffers: Buffers = "refuse") -> Trajectory:
        """The trajectory so far, measured with the model in its present mode (train or eval).

        buffers: if running statistics moved during training, the losses at the points are different functions. "refuse"
            then raises ValueError; "ignore" measures all points with the statistics that the model has now.

        See :func:`trajectory_from` for the rest.
        """
        # The public function is called, because it also says what is wrong with a batch.
        from hessian_tools.trajectory import trajectory_from

        states = [state | self._fixed for state in self._states]
        return trajectory_from(self.loss, states, self.batch, query=self.query, save=save, buffers=buffers)


def _loss_and_accuracy(loss: LossFunction, theta: Tensor, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Loss and accuracy on a batch, in one forward pass; a plain function has no outputs, so its accuracy is NaN."""
    if not isinstance(loss, Loss):
        value = loss(theta, batch)
        return value, torch.full_like(value, float("nan"))
    x, y = batch
    outputs = loss.outputs(theta, x)
    return loss.criterion(outputs, y), accuracy(pytree.tree_map_only(Tensor, Tensor.detach, outputs), y)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
