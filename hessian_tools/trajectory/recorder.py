"""Trajectories of training loops other than the library's inner loop, so that their curvature can be measured.

Only the points (parameter vectors) come from the other loop. Gradients and losses are those of one given loss on one
given batch, which need not be what the other loop minimised.
"""

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessian_tools.batches import refuse_random_loader
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.inner.meta_loss import accuracy
from hessian_tools.layout import Where, flatten, unwrapped
from hessian_tools.loss import Batch, Criterion, Loss, LossFunction
from hessian_tools.outputs import map_tensors
from hessian_tools.processes import refuse_share
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.trajectory.foreign import Buffers, State, points_of_states
from hessian_tools.trajectory.live import LiveMeasurement, share_of
from hessian_tools.trajectory.states import RecordedLoss, in_eval_mode, to_host
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
    save: which vectors the result holds; by default the points, for ``hessian(loss, t.thetas, support, shared=True)``.

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
    refuse_share(support)
    refuse_share(query)
    # Checks the loss and the batches once, and weighs several batches.
    objective = objective_at(loss, thetas, support, shared=True, weights="size")
    gradients, values = zip(*[_gradient_and_values(objective, k) for k in range(len(thetas))], strict=True)
    with torch.inference_mode(False), torch.enable_grad():
        if query is not None:
            objective = objective_at(loss, thetas, query, shared=True, weights="size")
        on_query = []
        for k, theta in enumerate(thetas if query is not None else []):
            query_loss, query_accuracy = _values(objective, theta.clone().requires_grad_(), k)
            on_query.append((query_loss.detach(), query_accuracy.detach()))
        return trajectory_of_points(thetas, torch.stack(gradients), values, on_query or None, save, foreign_steps=True)


class Recorder:
    """Records any training loop in PyTorch, or measures its curvature live, by lines that are added to it.

    Make the recorder before the loop, call ``step()`` after each update, and ``trajectory()`` in the end. The recorder
    keeps a copy of the parameters and buffers when it is made and at each ``step()``, in the computer's main memory.
    With ``every=`` it keeps none, and measures while the loop trains; see below.

    model: the module that is trained; for a learn2learn clone, the module in its attribute ``.module``. It is measured
        in eval mode, whatever its own mode is, and at each point with the buffers that it had there.
    criterion, batch: the loss whose curvature is of interest, which need not be what the loop minimises; a list of
        batches, or a ``DataLoader`` in fixed order, is several batches of one loss. criterion=None is for a network
        that returns its loss.
    query: a further batch to evaluate on.
    where: which parameters are recorded, by default the trained ones; see ``flatten``.

    The constructor evaluates the loss on both batches, so that everything that cannot be measured is refused before
    the training: it raises ValueError and HiddenStateError where :func:`hessian` does. It draws no random number, and
    neither it nor ``step()`` changes anything.

    Live measurement (:mod:`hessian_tools.trajectory.live`):

    every: a measurement is begun at every so many calls of ``step()``, on a copy of the weights, the buffers and the
        batch, and continues in small units of work within the following calls. So it is published some steps later,
        with the number of the step at which it was begun. None measures nothing.
    budget: the share of the time since the constructor that may be spent, such as "2%" or 0.02.
    log: called as ``log(step, values)`` with a dict of numbers: "lambda_max" (the largest eigenvalue, converged to
        1 %), "lambda_max_error" (its residual), "rho" (the curvature along the gradient), "gradient_norm" and "loss".
        None keeps them in ``measurements`` only.
    clock: a function that returns the time in seconds.

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
        every: int | None = None,
        budget: str | float = "2%",
        log: Callable[[int, dict[str, float]], Any] | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        theta, layout = flatten(model, where)
        for given in (batch, query):
            refuse_share(given)
            refuse_random_loader(given)
        self._model, self.batch, self.query = unwrapped(model), batch, query
        self._states: list[dict[str, Tensor]] = []
        self._names = set(layout.names)
        self._live: LiveMeasurement | None = None
        share = share_of(budget)
        if every is not None:
            if query is not None:
                raise ValueError("query= is for trajectory(), which a live recorder does not have; leave it out")
            self._live = LiveMeasurement(self._model, criterion, layout, batch, every, share, log, clock)
            self.loss: Loss = self._live.loss
            return
        if log is not None:
            raise ValueError("log= is called by live measurements; give every= as well, such as every=100")
        self.loss = RecordedLoss(in_eval_mode(model), criterion, layout, self._states)
        for given in (batch, query):
            if given is not None:  # raises whatever trajectory() would raise after the training
                _gradient_and_values(objective_at(self.loss, theta, given, shared=False, weights="size"), 0)
        self._fixed = {name: to_host(p) for name, p in self._model.named_parameters() if name not in self._names}
        self.step()

    def step(self, number: int | None = None) -> None:
        """Keep the parameters and buffers as they are now; or go on with live measurements.

        number: the number of the training step, by which a live measurement is labelled; None counts the calls.
        """
        if self._live is not None:
            self._live.step(number)
            return
        parameters = dict(self._model.named_parameters())
        if missing := self._names - set(parameters):
            raise ValueError(f"the model has no parameter {min(missing)!r} any more; record another loop by itself")
        state = {name: to_host(parameters[name]) for name in self.loss.layout.names}
        self._states.append(state | {name: to_host(b) for name, b in self._model.named_buffers()})

    def trajectory(
        self, *, save: SaveAt = _WITH_POINTS, buffers: Literal["own", "refuse", "ignore"] = "own"
    ) -> Trajectory:
        """The trajectory so far, measured with the model in eval mode.

        buffers: "own" measures each point with the buffers, such as running statistics, that the model had there;
            ``hessian(recorder.loss, trajectory.thetas, batch, shared=True)`` then does so too. "ignore" measures all
            points with the buffers that the model has now, and "refuse" raises ValueError if buffers moved.

        See :func:`trajectory_from` for the rest. Raises ValueError for a live recorder, which keeps no points.
        """
        # The package's function is called and not the one above, because its check of arguments (see
        # ``hessian_tools.entries``) says what is wrong with a batch.
        from hessian_tools.trajectory import trajectory_from

        if not isinstance(self.loss, RecordedLoss):
            raise ValueError("a live recorder keeps no points; make a second one without every= for a trajectory")
        self.loss.own_buffers = buffers == "own"
        states = [state | self._fixed for state in self._states]
        # For "own", self.loss itself puts the buffers of each point into the network, so the reader ignores them.
        how: Buffers = "refuse" if buffers == "refuse" else "ignore"
        return trajectory_from(self.loss, states, self.batch, query=self.query, save=save, buffers=how)

    @property
    def measurements(self) -> list[dict[str, float]]:
        """What a live recorder has published: the values of each measurement, with its "step"."""
        return [] if self._live is None else list(self._live.measurements)

    @property
    def skipped(self) -> int:
        """How many live measurements were due but not begun: an earlier one was in progress, or no copy was allowed."""
        return 0 if self._live is None else self._live.skipped

    def finish(self) -> list[dict[str, float]]:
        """Ends the live measurement in progress, without regard to the budget, and returns all measurements."""
        if self._live is not None:
            self._live.finish()
        return self.measurements

    def __repr__(self) -> str:
        if self._live is not None:
            return f"Recorder({self._live.summary()})"
        return f"Recorder({len(self._states)} points of {self.loss.layout.numel} parameters)"


def _gradient_and_values(objective: Objective, point: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The gradient at a point on the batches, and loss and accuracy, in one forward and one backward pass.

    Reverse mode without ``torch.func`` is used, because that refuses modules with backward hooks and losses that
    differentiate inside themselves.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = objective.thetas[point].detach().clone().requires_grad_()
        loss, accuracies = _values(objective, leaf, point)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, (loss.detach(), accuracies)


def _values(objective: Objective, theta: Tensor, point: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Loss and accuracy at theta, the vector of a point, weighted over the batches.

    A plain function has no outputs, so its accuracy is NaN.
    """
    loss, losses, accuracies = objective.loss, [], []  # the lists have one entry for each batch
    for batch in objective.batches_at(point):
        if not isinstance(loss, Loss):
            losses.append(loss(theta, batch))
            accuracies.append(torch.full_like(losses[-1], float("nan")).detach())
            continue
        x, y = loss.split(batch)
        outputs = loss.outputs(theta, x)
        losses.append(loss.criterion(outputs, y))
        accuracies.append(accuracy(map_tensors(Tensor.detach, outputs), y).to(losses[-1]))
    # The weights of a criterion that sums add up to more than one, but an accuracy is a mean all the same.
    weights, total = objective.weights, sum(objective.weights)
    weighted_loss = sum(weight * each for weight, each in zip(weights, losses, strict=True))
    mean_accuracy = sum(weight / total * each for weight, each in zip(weights, accuracies, strict=True))
    assert isinstance(weighted_loss, Tensor) and isinstance(mean_accuracy, Tensor)
    return weighted_loss, mean_accuracy
