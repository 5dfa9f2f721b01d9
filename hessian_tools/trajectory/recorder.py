"""Trajectories of training loops other than the library's inner loop, so that their curvature can be measured.

Only the points (parameter vectors) come from the other loop. Gradients and losses are those of one given loss on one
given batch, which need not be what the other loop minimised.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessian_tools.batches import refuse_random_loader
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.inner.meta_loss import accuracy
from hessian_tools.layout import Where, flatten
from hessian_tools.loss import Batch, Criterion, Loss, LossFunction, make_loss
from hessian_tools.outputs import map_tensors
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
    if isinstance(loss, Loss):
        thetas = thetas.to(next(loss.model.parameters()).device)  # states are kept in main memory
    # Checks the loss and the batches once, and weighs several batches.
    objective = objective_at(loss, thetas, support, shared=True, weights="size")
    gradients, values = zip(*[_gradient_and_values(objective, theta) for theta in thetas], strict=True)
    with torch.inference_mode(False), torch.enable_grad():
        if query is not None:
            objective = objective_at(loss, thetas, query, shared=True, weights="size")
        on_query = []
        for theta in thetas if query is not None else []:
            value, share = _values(objective, theta.clone().requires_grad_())
            on_query.append((value.detach(), share.detach()))
        return trajectory_of_points(thetas, torch.stack(gradients), values, on_query or None, save, foreign_steps=True)


class Recorder:
    """Records any training loop in PyTorch, by three lines that are added to it.

    Make the recorder before the loop, call ``step()`` after each update, and ``trajectory()`` in the end. The recorder
    keeps a copy of the parameters and buffers when it is made and at each ``step()``, in the computer's main memory. It
    runs no forward pass, draws no random number and changes nothing until ``trajectory()`` is called.

    model: the module that is trained; for a learn2learn clone, the module in its attribute ``.module``.
    criterion, batch: the loss whose curvature is of interest, which need not be what the loop minimises; a list of
        batches, or a ``DataLoader`` in fixed order, is several batches of one loss. criterion=None is for a network
        that returns its loss.
    query: a further batch to evaluate on.
    where: which parameters are recorded, by default the trained ones; see ``flatten``.

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
        criterion: Criterion | None,
        batch: Batch,
        *,
        query: Batch | None = None,
        where: Where = None,
    ) -> None:
        layout = flatten(model, where)[1]
        self.loss = make_loss(model, criterion, layout)
        for given in (batch, query):
            refuse_random_loader(given)
        self.batch, self.query = batch, query
        model = self.loss.model
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


def _gradient_and_values(objective: Objective, theta: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The gradient on the batches, and loss and accuracy, in one forward and one backward pass.

    Reverse mode without ``torch.func`` is used, because that refuses modules with backward hooks and losses that
    differentiate inside themselves.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = theta.detach().clone().requires_grad_()
        loss, accuracies = _values(objective, leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, (loss.detach(), accuracies)


def _values(objective: Objective, theta: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Loss and accuracy, weighted over the batches; a plain function has no outputs, so its accuracy is NaN."""
    loss, losses, accuracies = objective.loss, [], []
    for batch in objective.batches:
        if not isinstance(loss, Loss):
            losses.append(loss(theta, batch))
            accuracies.append(torch.full_like(losses[-1], float("nan")).detach())
            continue
        x, y = loss.split(batch)
        outputs = loss.outputs(theta, x)
        losses.append(loss.criterion(outputs, y))
        accuracies.append(accuracy(map_tensors(Tensor.detach, outputs), y).to(losses[-1]))
    weights, total = objective.weights, sum(objective.weights)
    value = sum(weight * value for weight, value in zip(weights, losses, strict=True))
    share = sum(weight / total * value for weight, value in zip(weights, accuracies, strict=True))
    assert isinstance(value, Tensor) and isinstance(share, Tensor)
    return value, share


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
