"""Curvature that is measured while a network trains, within a share of the time.

A measurement is cut into units of work: first the gradient at a copy of the weights, then single products with the
Hessian, most of which are steps of Lanczos. After each training step as many units are done as the budget allows: the
time that was spent, plus the time of the slowest unit of this measurement and of the one before, must stay within the
share of the time since the start. A measurement may therefore take many training steps. It is published with the number
of the step at which its copy was taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from hessian_tools.curvature.directions.gradient_curvature import curvature_along
from hessian_tools.curvature.eigen.lanczos import lanczos_run
from hessian_tools.curvature.eigen.pairs import checked_selection, solver_plan
from hessian_tools.curvature.eigen.rayleigh_ritz import checked_pairs
from hessian_tools.curvature.objective.matrix import HESSIAN
from hessian_tools.curvature.operators.hessian import Hessian, hessian
from hessian_tools.failures import warn
from hessian_tools.first_look import value_of
from hessian_tools.layout import ParamLayout
from hessian_tools.loss import Batch, Criterion, Loss, make_loss
from hessian_tools.outputs import map_tensors
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.trajectory.states import in_eval_mode

# The largest eigenvalue is published once its residual is at most this fraction of it.
RTOL = 1e-2


def share_of(budget: str | float) -> float:
    """The share of the time that a budget such as "2%" or 0.02 allows; raises ValueError for any other value.

    >>> share_of("2%"), share_of(0.05)
    (0.02, 0.05)
    """
    try:
        share = float(budget.removesuffix("%")) / 100 if isinstance(budget, str) else float(budget)
    except ValueError:
        share = -1.0  # which is refused below
    if not 0 < share <= 1 or (isinstance(budget, str) and not budget.endswith("%")):
        raise ValueError(f'budget={budget!r} is no share of the time; give one such as "2%" or 0.02')
    return share


class LiveMeasurement:
    """Measurements of the largest eigenvalue while the model trains; see :class:`~hessian_tools.Recorder`.

    share: the largest share of the time that measurements may take. The other arguments are those of the recorder.
    measurements: what was published. skipped: the number of measurements that were due but not begun, because an
    earlier one was in progress or the budget did not allow a copy. unconverged: the number of measurements that were
    not published, because they failed, or ended without a converged eigenvalue or with a number that is not finite.
    spent: the seconds of all units and copies.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion | None,
        layout: ParamLayout,
        batch: Batch,
        every: int,
        share: float,
        log: Callable[[int, dict[str, float]], Any] | None,
        clock: Callable[[], float],
    ) -> None:
        self.model, self.every, self.share, self.log, self.clock = model, every, share, log, clock
        # Whatever may move in training is copied: the buffers, and trained parameters outside of theta. Frozen
        # parameters are shared, because they may be most of a large model.
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self._copied = (*(trained - set(layout.names)), *(name for name, _ in model.named_buffers()))
        self.loss: Loss = make_loss(in_eval_mode(model, copied=set(self._copied).__contains__), criterion, layout)
        self.layout = layout
        self.measurements: list[dict[str, float]] = []
        self.skipped, self.unconverged, self.spent, self.steps = 0, 0, 0.0, 0
        self._units: Iterator[dict[str, float] | None] | None = None
        self._label = 0  # the number of the training step at which the measurement in progress was begun
        # One measurement is begun here, so that whatever cannot be measured is refused before training, and so that the
        # times of a copy and of the first two units (the gradient and one product) are known.
        started = clock()
        theta = self._take_copy()
        self._copy_seconds = clock() - started
        batch = map_tensors(Tensor.clone, batch)  # the loop may reuse the memory of its batches
        H = hessian(self.loss, theta, batch)
        self.objective, self.engine = H.objective, H.engine
        units = self._measurement(theta)
        # The next unit may take as long as the slowest one of this measurement and of the one before.
        self._slowest_before = max(self._timed(lambda: next(units))[1] for _ in range(2))
        self._slowest = 0.0  # the seconds of the slowest unit of the measurement in progress
        self.started = clock()

    def step(self, number: int | None) -> None:
        """Begins a measurement if one is due, and does as many units of work as the budget allows."""
        self.steps += 1
        if self.steps % self.every == 0:
            self._begin(self.steps if number is None else number)
        while self._units is not None and self._affordable(max(self._slowest, self._slowest_before)):
            self._unit()

    def finish(self) -> None:
        """Does all units of the measurement in progress. Their time does not count, because training is over."""
        spent = self.spent
        while self._units is not None:
            self._unit()
        self.spent = spent

    def summary(self) -> str:
        """What was measured and what was not, in words."""
        elapsed = self.clock() - self.started
        share = f"{100 * self.spent / elapsed:.2g} %" if elapsed > 0 else "0 %"
        return (
            f"{len(self.measurements)} measured, {self.skipped} skipped for the budget of {100 * self.share:g} %, "
            f"{self.unconverged} not converged; {share} of the time"
        )

    def _affordable(self, seconds: float) -> bool:
        """Whether the budget allows work that takes so many seconds now."""
        return self.spent + seconds <= self.share * (self.clock() - self.started)

    def _begin(self, label: int) -> None:
        """Begins a measurement of the training step of this number, or counts it as skipped."""
        if self._units is not None or not self._affordable(self._copy_seconds):
            self.skipped += 1
            return
        theta, self._copy_seconds = self._timed(self._take_copy)
        self.spent += self._copy_seconds
        self._units, self._label = self._measurement(theta), label

    def _take_copy(self) -> Tensor:
        """The parameters as one vector; whatever else training may change is copied into the loss's own network."""
        named = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        own = dict(self.loss.model.named_parameters()) | dict(self.loss.model.named_buffers())
        with torch.no_grad():
            for name in self._copied:
                own[name].copy_(named[name])
        return self.layout.flatten(named)

    def _unit(self) -> None:
        """Does one unit of the measurement in progress, and publishes the measurement if that was its last unit."""
        assert self._units is not None
        try:
            values, seconds = self._timed(lambda: next(self._units))  # type: ignore[arg-type]
        except Exception as error:  # a measurement may not end hours of training
            self._units = None
            self.unconverged += 1
            warn(f"the measurement of step {self._label} failed: {error}")
            return
        self.spent += seconds
        self._slowest = max(self._slowest, seconds)
        if values is None:
            return
        self._units, self._slowest_before, self._slowest = None, self._slowest, 0.0
        if not values.pop("converged") or not all(map(isfinite, values.values())):
            self.unconverged += 1
            return
        self.measurements.append({"step": self._label} | values)
        if self.log is not None:
            try:
                self.log(self._label, values)
            except Exception as error:  # whatever a logger may raise; the values are in measurements
                warn(f"log({self._label}, values) failed: {error}")

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """The result of some work, and the seconds that it took."""
        self._wait()
        started = self.clock()
        with torch.inference_mode(False), torch.enable_grad():
            result = full_precision(work)()
        self._wait()
        return result, self.clock() - started

    def _wait(self) -> None:
        """Waits for the GPU, because queued work would otherwise count as the time of whatever waits for it next."""
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def _measurement(self, theta: Tensor) -> Iterator[dict[str, float] | None]:
        """Yields after each unit of a measurement at theta: the values after the last unit, None after all others."""
        objective = replace(self.objective, thetas=theta[None])
        g = self.engine.gradients(objective)[0]
        yield None
        H = Hessian(self.engine.prepare(objective, HESSIAN), single=True)
        # The largest eigenvalue ("LA") alone.
        selections = (checked_selection("LA", 1, RTOL, H.num_params),)
        plan = solver_plan(H, selections, copies=False, method="lanczos")
        H.announce(plan.num_products)
        rho = curvature_along(g, H.mv(g)).rho
        yield None
        # Each step of the run is one unit of work.
        run = lanczos_run(H, selections, plan.limits)
        while run.running.any():
            run.step()
            yield None
        pairs = checked_pairs(H, run.run(), selections)[0]  # all steps are done; [0]: of the only selection
        yield None
        weights = zip(objective.weights, objective.batches, strict=True)
        loss = sum(weight * float(value_of(self.loss, theta, batch)) for weight, batch in weights)
        yield {
            "converged": float(pairs.converged.all()),
            "lambda_max": float(pairs.values),
            "lambda_max_error": float(pairs.residuals),
            "rho": float(rho),
            "gradient_norm": float(g.norm()),
            "loss": float(loss),
        }
