"""Live measurements: what is published is right and has its step, and the budget is kept by an invented clock."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hessian_tools as ht
from hessian_tools.curvature import Hessian
from hessian_tools.curvature.eigen.rayleigh_ritz import checked_pairs
from hessian_tools.curvature.engines.engine import Engine
from hessian_tools.trajectory import live


class Clock:
    """A clock that a test sets forward: training steps take a second, and each gradient or product takes ``cost``."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now, self.cost, self.spent = 100.0, cost, 0.0

    def __call__(self) -> float:
        return self.now

    def costs(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, which sets the clock forward."""

        def costed(*args: Any) -> Any:
            self.now += self.cost
            self.spent += self.cost
            return method(*args)

        return costed


@pytest.fixture
def clock_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Clock]:
    def make(cost: float) -> Clock:
        clock = Clock(cost)
        monkeypatch.setattr(Hessian, "products", clock.costs(Hessian.products))
        monkeypatch.setattr(Engine, "gradients", clock.costs(Engine.gradients))
        return clock

    return make


def model_of(*between: nn.Module) -> nn.Module:
    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), *between, nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))

    return ht.seeded(layers, seed=2).double()


def batch_of(stream_name: str = "batch") -> tuple[Tensor, Tensor]:
    return torch.randn(12, 4, generator=ht.stream(0, stream_name), dtype=torch.float64), torch.arange(12) % 3


def train(model: nn.Module, clock: Clock, steps: int, after: Callable[[], Any], *, seconds: float = 1.0) -> None:
    x, y = batch_of("trained on")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        clock.now += seconds
        after()


@pytest.mark.parametrize("given", ["batch", *(pytest.param(g, marks=pytest.mark.slow) for g in ("list", "loader"))])
def test_what_is_published_belongs_to_its_step_although_it_is_published_later(
    given: str, clock_of: Callable[[float], Clock]
) -> None:
    model, clock, logged = model_of(nn.BatchNorm1d(16), nn.Dropout(0.1)), clock_of(0.05), []
    x, y = batch_of()
    batches: dict[str, Any] = {
        "batch": (x.clone(), y),
        "list": [(x[:5], y[:5]), (x[5:], y[5:])],
        "loader": DataLoader(TensorDataset(x, y), batch_size=5),
    }
    recorder = ht.Recorder(
        model, F.cross_entropy, batches[given], every=10, budget="5%", clock=clock,
        log=lambda step, values: logged.append((recorder.now, step, values)),
    )  # fmt: skip
    if given == "batch":
        batches[given][0].zero_()  # the loop may reuse the memory of its batches
    then: dict[int, nn.Module] = {}
    recorder.now = 0

    def after() -> None:
        recorder.now += 1
        then[recorder.now] = deepcopy(model).eval()
        recorder.step()

    train(model, clock, 80, after)
    assert len(logged) >= 2
    assert any(when > step for when, step, _ in logged)
    for when, step, values in logged:
        assert step % 10 == 0
        assert when >= step
        H = ht.hessian_of(then[step], F.cross_entropy, batch_of())
        exact = torch.linalg.eigvalsh(H.to_dense())[-1]
        assert abs(values["lambda_max"] - exact) <= values["lambda_max_error"] + 1e-12
        assert values["lambda_max_error"] <= 1e-2 * values["lambda_max"]
        curvature = ht.gradient_curvature(H)
        assert values["rho"] == pytest.approx(float(curvature.rho))
        assert values["gradient_norm"] == pytest.approx(float(curvature.grad_norm))
        loss = F.cross_entropy(then[step](batch_of()[0]), batch_of()[1]).detach()
        assert values["loss"] == pytest.approx(float(loss))
    assert recorder.measurements == [{"step": step} | values for _, step, values in logged]


@pytest.mark.parametrize("cost", [1e-3, 0.02, 0.3])
def test_the_budget_is_kept_at_every_step(cost: float, clock_of: Callable[[float], Clock]) -> None:
    clock, model = clock_of(cost), model_of()
    recorder = ht.Recorder(model, F.cross_entropy, batch_of(), every=5, budget="3%", clock=clock)
    start, before, shares = clock.now, clock.spent, []

    def after() -> None:
        recorder.step()
        shares.append((clock.spent - before) / (clock.now - start))

    train(model, clock, 120, after)
    assert max(shares) <= 0.03
    begun = len(recorder.measurements) + recorder._live.unconverged + (recorder._live._units is not None)
    assert begun + recorder.skipped == 24
    assert (recorder.skipped > 0) == (cost > 1e-3)
    assert f"{recorder.skipped} skipped for the budget of 3 %" in repr(recorder)
    if cost == 1e-3:  # what is due is measured at once if the budget allows it
        assert len(recorder.measurements) >= 23


def test_the_solver_is_spread_over_training_steps(clock_of: Callable[[float], Clock]) -> None:
    clock, model = clock_of(0.1), model_of()
    recorder = ht.Recorder(model, F.cross_entropy, batch_of(), every=10, budget="5%", clock=clock)
    times = [clock.spent]
    train(model, clock, 60, lambda: (recorder.step(), times.append(clock.spent)))
    units = [round((b - a) / 0.1) for a, b in pairwise(times)]
    assert sum(n > 0 for n in units) > 10
    assert max(units[20:]) <= 6  # after at most 10 steps without a measurement, in which the budget was saved


def test_what_did_not_converge_or_fails_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, model = Clock(), model_of()
    recorder = ht.Recorder(model, F.cross_entropy, batch_of(), every=1, budget="50%", clock=clock)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    clock.now += 1
    recorder.step()
    assert recorder.finish() == []
    assert "1 not converged" in repr(recorder)

    def broken(*args: Any) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(recorder._live.engine), "gradients", broken)
    clock.now += 1
    with pytest.warns(UserWarning, match="the measurement of step 2 failed: out of memory") as warned:
        recorder.step()
    assert warned[0].filename == __file__
    assert "2 not converged" in repr(recorder)


def test_a_finite_eigenvalue_that_did_not_converge_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    def unconverged(*args: Any) -> tuple[ht.EigenPairs, ...]:
        return tuple(replace(pairs, converged=torch.zeros_like(pairs.converged)) for pairs in checked_pairs(*args))

    monkeypatch.setattr(live, "checked_pairs", unconverged)
    clock, logged = Clock(), []
    recorder = ht.Recorder(
        model_of(),
        F.cross_entropy,
        batch_of(),
        every=1,
        budget="50%",
        clock=clock,
        log=lambda *args: logged.append(args),
    )
    clock.now += 1
    recorder.step()
    assert recorder.finish() == [] and not logged
    assert "1 not converged" in repr(recorder)


def test_the_copies_count_for_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(cost=0.5)
    take_copy = live.LiveMeasurement._take_copy
    monkeypatch.setattr(live.LiveMeasurement, "_take_copy", lambda self: clock.costs(take_copy)(self))
    recorder = ht.Recorder(model_of(), F.cross_entropy, batch_of(), every=1, budget="2%", clock=clock)
    started, before = clock.now, clock.spent
    train(model_of(), clock, 100, recorder.step)
    assert 0 < clock.spent - before <= 0.02 * (clock.now - started)
    assert recorder.skipped >= 90


def test_a_logger_that_fails_does_not_end_the_training() -> None:
    clock, model = Clock(), model_of()

    def log(step: int, values: dict[str, float]) -> None:
        raise OSError("the server is gone")

    recorder = ht.Recorder(model, F.cross_entropy, batch_of(), every=1, budget="50%", clock=clock, log=log)
    clock.now += 1
    with pytest.warns(UserWarning, match=r"log\(7, values\) failed: the server is gone"):
        recorder.step(7)
    assert [values["step"] for values in recorder.finish()] == [7]


def test_finish_ends_the_measurement_in_progress_and_a_live_recorder_keeps_no_points(
    clock_of: Callable[[float], Clock],
) -> None:
    clock, model = clock_of(0.5), model_of()
    recorder = ht.Recorder(model, F.cross_entropy, batch_of(), every=1, budget="1%", clock=clock)
    train(model, clock, 3, recorder.step)
    assert recorder.measurements == []
    assert len(recorder.finish()) == 1
    assert len(recorder.finish()) == 1
    with pytest.raises(ValueError, match="keeps no points"):
        recorder.trajectory()


def test_measuring_changes_nothing_in_the_training() -> None:
    """Weights, statistics, gradients and dropout's random numbers are the same with and without a live recorder."""

    def run(live: bool) -> tuple[Tensor, dict[str, Tensor], list[Tensor | None]]:
        clock, model = Clock(), model_of(nn.BatchNorm1d(16), nn.Dropout(0.2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            options = {"every": 2, "budget": "50%", "clock": clock}
            step = ht.Recorder(model, F.cross_entropy, batch_of(), **options).step if live else lambda: None
            train(model, clock, 6, step)
            return torch.get_rng_state(), model.state_dict(), [p.grad for p in model.parameters()]

    (state, tensors, gradients), (other_state, other_tensors, other_gradients) = run(True), run(False)
    assert torch.equal(state, other_state)
    assert all(torch.equal(t, other_tensors[name]) for name, t in tensors.items())
    assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))


def test_trained_parameters_outside_of_theta_are_frozen_too(clock_of: Callable[[float], Clock]) -> None:
    clock, model = clock_of(0.05), model_of()
    recorder = ht.Recorder(model, F.cross_entropy, batch_of(), where="4", every=10, budget="5%", clock=clock)
    kept: list[nn.Module] = []

    def after() -> None:
        recorder.step()
        if recorder._live.steps == 10:
            kept.append(deepcopy(model))

    train(model, clock, 60, after)
    values = recorder.finish()[0]
    assert values["step"] == 10
    exact = torch.linalg.eigvalsh(ht.hessian_of(kept[0], F.cross_entropy, batch_of(), where="4").to_dense())[-1]
    assert values["lambda_max"] == pytest.approx(float(exact), rel=1e-2)


def test_tensorboard_has_the_values_at_their_steps(tmp_path: Any) -> None:
    reason = "TensorBoard is not installed; pip install 'hessian-tools[tensorboard]'"
    writers = pytest.importorskip("torch.utils.tensorboard", reason=reason)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    clock, model = Clock(), model_of()
    writer = writers.SummaryWriter(str(tmp_path))

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"curvature/{name}", value, step)

    recorder = ht.Recorder(model, F.cross_entropy, batch_of(), every=10, budget="20%", clock=clock, log=log)
    train(model, clock, 40, recorder.step)
    recorder.finish()
    writer.close()
    read = events.EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, event.value) for event in read.Scalars("curvature/lambda_max")]
    expected = [(values["step"], values["lambda_max"]) for values in recorder.measurements]
    assert len(found) >= 2
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected])
    assert set(read.Tags()["scalars"]) == {
        f"curvature/{name}" for name in ("lambda_max", "lambda_max_error", "rho", "gradient_norm", "loss")
    }
