"""Trajectories of other training loops agree with those of the library's inner loop where both take the same steps."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from cases import quadratic, randn
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hessian_tools import (
    Conv4,
    HiddenStateError,
    Recorder,
    SaveAt,
    check_operator,
    flatten,
    gauss_newton,
    hessian,
    hessian_of,
    learners,
    make_loss,
    record,
    seeded,
    stream,
    top_eigenpairs,
    trajectory_from,
)
from hessian_tools.curvature import alignment
from hessian_tools.trajectory import stack

BOTH = SaveAt(thetas=True, gradients=True)


def conv_setting():
    model = seeded(lambda: Conv4(3, width=4, input_shape=(1, 16, 16)), seed=1).double()
    x = torch.rand(12, 1, 16, 16, generator=stream(0, "x"), dtype=torch.float64)
    y = torch.arange(3).repeat(4)
    return model, (x[:3], y[:3]), (x[3:], y[3:])


def small_model(*layers: nn.Module) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), *layers, nn.Tanh(), nn.Linear(5, 3)), seed=2).double()


def batch_of(n: int = 12, stream_name: str = "batch"):
    return torch.randn(n, 4, generator=stream(0, stream_name), dtype=torch.float64), torch.arange(n) % 3


def trained(model, optimiser, batch, steps, after=lambda: None):
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimiser.step()
        after()


def test_plain_gradient_steps_give_the_trajectory_of_maml():
    """A recorded SGD loop in plain PyTorch is compared with the inner loop of MAML from the same point."""
    model, support, query = conv_setting()
    theta, layout = flatten(model)
    ours = record(learners.maml(3, 0.1), make_loss(model, F.cross_entropy, layout), theta, support, query, save=BOTH)
    recorder = Recorder(model, F.cross_entropy, support, query=query)
    trained(model, torch.optim.SGD(model.parameters(), lr=0.1), support, 3, recorder.step)
    theirs = recorder.trajectory(save=BOTH)
    assert theirs.steps == 3
    for name in ("support_loss", "query_loss", "support_accuracy", "query_accuracy", "theta_norm", "grad_norm"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-9, atol=1e-12)
    for name in ("displacement", "gram", "thetas", "gradients"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(theirs.step_cosine, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(theirs.step_norm, 0.1 * theirs.grad_norm[:-1])


def test_the_numbers_of_a_loop_with_adam_are_those_of_its_points():
    """With Adam, every number follows from the points, and the cosines say that the steps follow another direction."""
    model, support, query = small_model(), batch_of(), batch_of(stream_name="query")
    recorder = Recorder(model, F.cross_entropy, support, query=query)
    trained(model, torch.optim.Adam(model.parameters(), lr=0.05), batch_of(stream_name="other"), 4, recorder.step)
    t = recorder.trajectory(save=BOTH)
    assert t.thetas[-1].equal(flatten(model)[0])
    for k, theta in enumerate(t.thetas):
        leaf = theta.clone().requires_grad_()
        value = recorder.loss(leaf, support)
        (g,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close(t.gradients[k], g)
        torch.testing.assert_close(t.support_loss[k], value.detach())
        torch.testing.assert_close(t.query_loss[k], recorder.loss(theta, query))
        right = (recorder.loss.outputs(theta, query[0]).argmax(-1) == query[1]).double().mean()
        assert t.query_accuracy[k] == right
        torch.testing.assert_close(t.displacement[k], (theta - t.thetas[0]).norm())
    for k, (before, after) in enumerate(pairwise(t.thetas)):
        torch.testing.assert_close(t.step_norm[k], (after - before).norm())
        torch.testing.assert_close(t.step_cosine[k], F.cosine_similarity(-t.gradients[k], after - before, dim=0))
    torch.testing.assert_close(t.gram, t.gradients[:-1] @ t.gradients[:-1].T)
    assert (t.step_cosine < 0.95).all()
    assert torch.isfinite(alignment(t.gram))
    assert hessian(recorder.loss, t.thetas, support, shared=True).to_dense().shape == (5, 43, 43)


def test_recording_changes_nothing_in_the_loop():
    """Losses, gradients, running statistics and dropout's random numbers are the same with and without a recorder."""

    def run(record: bool):
        model = small_model(nn.BatchNorm1d(5), nn.Dropout(0.3))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            recorder = Recorder(model, F.cross_entropy, batch_of()) if record else None
            trained(model, optimiser, batch_of(), 4, recorder.step if recorder else lambda: None)
            state = torch.get_rng_state()
            if recorder:
                model.eval()
                recorder.trajectory(buffers="ignore")
                model.train()
                assert torch.get_rng_state().equal(state)
        return state, [p.grad for p in model.parameters()], model.state_dict()

    (state, gradients, tensors), (other_state, other_gradients, other_tensors) = run(True), run(False)
    assert state.equal(other_state)
    assert all(a.equal(b) for a, b in zip(gradients, other_gradients, strict=True))
    assert all(tensor.equal(other_tensors[name]) for name, tensor in tensors.items())


def with_statistics(steps: int = 3):
    """A recorded training with running statistics, and what the model was at each recorded point, in eval mode."""
    model = small_model(nn.BatchNorm1d(5))
    recorder, models = Recorder(model, F.cross_entropy, batch_of(), query=batch_of(6)), [deepcopy(model).eval()]

    def after() -> None:
        recorder.step()
        models.append(deepcopy(model).eval())

    trained(model, torch.optim.SGD(model.parameters(), lr=0.5), batch_of(stream_name="moving"), steps, after)
    return model, recorder, models


@pytest.mark.slow
def test_each_point_has_its_own_running_statistics_in_the_trajectory_and_in_curvature():
    model, recorder, models = with_statistics()
    assert model.training
    t = recorder.trajectory()
    batch, query = batch_of(), batch_of(6)
    for k, then in enumerate(models):
        torch.testing.assert_close(t.support_loss[k], F.cross_entropy(then(batch[0]), batch[1]).detach())
        torch.testing.assert_close(t.query_loss[k], F.cross_entropy(then(query[0]), query[1]).detach())
    dense = torch.stack([hessian_of(then, F.cross_entropy, batch).to_dense() for then in models])
    shared = {"shared": True}
    for route in ("direct", "kept"):
        H = hessian(recorder.loss, t.thetas, batch, route=route, **shared)
        torch.testing.assert_close(H.to_dense(), dense)
    torch.testing.assert_close(hessian(recorder.loss, t.thetas[1:3], batch, **shared).to_dense(), dense[1:3])
    torch.testing.assert_close(hessian(recorder.loss, t.thetas[2], batch).to_dense(), dense[2])
    halves = [tuple(part[:4] for part in batch), tuple(part[4:] for part in batch)]
    torch.testing.assert_close(hessian(recorder.loss, t.thetas, halves, **shared).to_dense(), dense)
    loader = DataLoader(TensorDataset(*batch), batch_size=4)
    torch.testing.assert_close(hessian(recorder.loss, t.thetas, loader, **shared).to_dense(), dense)
    G = gauss_newton(recorder.loss, t.thetas, batch, **shared)
    theta, layout = flatten(models[1])
    expected = gauss_newton(make_loss(models[1], F.cross_entropy, layout), theta, batch)
    torch.testing.assert_close(G.to_dense()[1], expected.to_dense())
    torch.testing.assert_close(recorder.loss(t.thetas[1], batch), t.support_loss[1])
    with pytest.raises(ValueError, match="none of the 4 recorded ones, so its buffers are not known"):
        hessian(recorder.loss, t.thetas[0] + 1e-9, batch)


@pytest.mark.slow
def test_traced_products_have_the_statistics_of_each_point_and_pass_the_checks():
    _, recorder, models = with_statistics(1)
    t = recorder.trajectory()
    H = hessian(recorder.loss, t.thetas, batch_of(), shared=True, route="traced")
    dense = [hessian_of(then, F.cross_entropy, batch_of()).to_dense() for then in models]
    torch.testing.assert_close(H.to_dense(), torch.stack(dense))
    assert check_operator(H, num_probes=1).ok


def test_running_statistics_that_moved_may_be_refused_or_ignored():
    model, recorder, models = with_statistics()
    with pytest.raises(ValueError, match="state 0: buffer '1.running_mean' differs from the model's"):
        recorder.trajectory(buffers="refuse")
    own = recorder.trajectory()
    H = hessian(recorder.loss, own.thetas[1:3], batch_of(), shared=True).to_dense()
    torch.testing.assert_close(H[0], hessian_of(models[1], F.cross_entropy, batch_of()).to_dense())
    t = recorder.trajectory(buffers="ignore")
    torch.testing.assert_close(t.support_loss[-1], F.cross_entropy(models[-1](batch_of()[0]), batch_of()[1]).detach())
    H = hessian(recorder.loss, t.thetas, batch_of(), shared=True).to_dense()
    model.eval()
    plain = make_loss(model, F.cross_entropy, flatten(model)[1])
    torch.testing.assert_close(H, hessian(plain, t.thetas, batch_of(), shared=True).to_dense())
    assert model[1].num_batches_tracked == 3
    with pytest.raises(ValueError, match="buffers"):
        recorder.trajectory(buffers="none")


def test_equal_parameters_with_other_statistics_are_told_apart_by_their_order_or_refused():
    model = small_model(nn.BatchNorm1d(5))
    recorder = Recorder(model, F.cross_entropy, batch_of())
    model(3 * batch_of()[0] + 1)
    recorder.step()
    t = recorder.trajectory()
    assert torch.equal(t.thetas[0], t.thetas[1])
    assert t.support_loss[0] != t.support_loss[1]
    with pytest.raises(ValueError, match="point 0 was recorded 2 times with other buffers"):
        hessian(recorder.loss, t.thetas[1], batch_of())


class Awkward(nn.Module):
    """A network whose parts each make a recording impossible, each for its own reason."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind, self.calls = nn.Linear(4, 3), kind, 0
        self.handle = open(__file__, encoding="utf-8") if kind == "cannot be copied" else None  # noqa: SIM115

    def forward(self, x):
        self.calls += 1
        x = self.layer(x)
        if self.kind == "random":
            x = x + torch.rand_like(x)
        if self.kind == "no second derivative":
            x = NoSecond.apply(x)
        return x + (self.calls if self.kind == "counts" else 0)


class NoSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g.clone()


def test_what_cannot_work_is_refused_by_the_constructor():
    good, batch = small_model(), (batch_of()[0].float(), batch_of()[1])
    refused = {
        "random": "random",
        "counts": "another output",
        "cannot be copied": "cannot be copied",
    }
    for kind, words in refused.items():
        model = Awkward(kind)
        with pytest.raises((ValueError, HiddenStateError), match=words):
            Recorder(model, F.cross_entropy, batch)
        if model.handle:
            model.handle.close()
    with pytest.raises(ValueError, match="draws its examples at random"):
        Recorder(good, F.cross_entropy, DataLoader(TensorDataset(*batch_of()), batch_size=4, shuffle=True))
    with pytest.raises(ValueError, match="the loss fails on query"):
        Recorder(good, F.cross_entropy, batch_of(), query=(batch_of()[0][:, :3], batch_of()[1]))
    with pytest.raises(ValueError, match="the criterion gives"):
        Recorder(good, nn.CrossEntropyLoss(reduction="none"), batch_of())
    with pytest.raises(ValueError, match="bfloat16"):
        Recorder(Awkward("").bfloat16(), F.cross_entropy, batch)
    with pytest.raises(RuntimeError, match="no second derivative"):
        Recorder(Awkward("no second derivative"), F.cross_entropy, batch, every=1)
    for options in (
        {"every": 0},
        {"every": 1, "budget": "2"},
        {"every": 1, "budget": 2.0},
        {"every": 1, "budget": "x%"},
    ):
        with pytest.raises(ValueError, match="every|budget"):
            Recorder(good, F.cross_entropy, batch_of(), **options)
    with pytest.raises(ValueError, match="give every="):
        Recorder(good, F.cross_entropy, batch_of(), log=print)
    with pytest.raises(ValueError, match="query"):
        Recorder(good, F.cross_entropy, batch_of(), every=1, query=batch_of())


def test_dropout_is_measured_without_it_although_the_model_trains():
    model = small_model(nn.Dropout(0.5)).train()
    recorder = Recorder(model, F.cross_entropy, batch_of())
    expected = F.cross_entropy(deepcopy(model).eval()(batch_of()[0]), batch_of()[1]).detach()
    torch.testing.assert_close(recorder.trajectory().support_loss[0], expected)
    assert model.training
    assert not recorder.loss.model.training


def test_parameters_outside_the_layout_must_not_change():
    model = small_model()
    recorder = Recorder(model, F.cross_entropy, batch_of(), where=["2"])
    trained(
        model[2],
        torch.optim.SGD(model[2].parameters(), lr=0.1),
        (batch_of()[0] @ torch.ones(4, 5).double(), batch_of()[1]),
        1,
    )
    recorder.step()
    assert recorder.trajectory().thetas.shape == (2, 18)
    with torch.no_grad():
        model[0].bias.add_(1)
    with pytest.raises(ValueError, match="'0.bias' differs from the model's, but the points leave this parameter out"):
        recorder.trajectory()


def test_an_inner_loop_that_puts_tensors_in_place_of_parameters():
    """A clone of learn2learn adapts in this way: module._parameters hold the results of differentiable updates."""
    model, batch = small_model(), batch_of()
    theta, layout = flatten(model)
    recorder = Recorder(model, F.cross_entropy, batch)
    for _ in range(2):
        names, values = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), values, create_graph=True)
        for name, value, g in zip(names, values, gradients, strict=True):
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._parameters[leaf] = value - 0.1 * g
        recorder.step()
    t = recorder.trajectory()
    ours = record(
        learners.maml(2, 0.1), make_loss(small_model(), F.cross_entropy, layout), theta, batch, batch, save=BOTH
    )
    torch.testing.assert_close(t.thetas, ours.thetas)
    torch.testing.assert_close(t.support_loss, ours.support_loss)
    assert not any(tensor.requires_grad for tensor in (t.thetas, t.support_loss, t.gram))


def test_trajectories_can_be_read_from_files_and_stacked(tmp_path):
    model, batch = small_model(), batch_of()
    loss = make_loss(model, F.cross_entropy, flatten(model)[1])
    paths = []
    for k in range(3):
        paths.append(tmp_path / f"{k}.safetensors")
        save_file({name: t + 0.1 * k for name, t in model.state_dict().items()}, paths[-1])
    t = trajectory_from(loss, paths, batch, save=SaveAt())
    assert t.thetas is None
    assert t.query_loss is None
    # Each of the 43 parameters moves by 0.1 from file to file.
    torch.testing.assert_close(t.displacement, 0.1 * torch.arange(3).double() * 43**0.5)
    both = stack([t, t])
    assert both.step_cosine.shape == (2, 2)
    assert both.query_loss is None
    assert both.diverged.tolist() == [False, False]
    assert trajectory_from(loss, paths, batch, query=(batch[0] / 0, batch[1])).diverged


def test_trajectories_of_a_plain_function_with_one_point_or_equal_or_infinite_points():
    A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    points = randn(3, 2, stream_name="points")
    t = trajectory_from(quadratic, points, A, query=2 * A)
    torch.testing.assert_close(t.support_loss, (points @ A * points).sum(-1) / 2)
    torch.testing.assert_close(t.query_loss, 2 * t.support_loss)
    assert t.query_accuracy.isnan().all()
    one = trajectory_from(quadratic, points[:1], A)
    assert (one.steps, one.gram.shape, one.step_norm.shape) == (0, (0, 0), (0,))
    still = trajectory_from(quadratic, points[[0, 0]], A)
    assert still.step_norm == 0
    assert still.step_cosine.isnan()
    assert not still.diverged
    assert trajectory_from(quadratic, points * float("inf"), A).diverged


def test_batches_and_outputs_may_be_dicts():
    """Outputs and targets that only the user's criterion can read have no accuracy."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.last(x["x"] * x["scale"])}

    def criterion(outputs, y):
        return torch.nn.functional.cross_entropy(outputs["logits"], y["y"])

    batch = ({"x": torch.eye(3), "scale": torch.ones(3, 1)}, {"y": torch.tensor([0, 1, 1])})
    model = seeded(Net, seed=0)
    recorder = Recorder(model, criterion, batch, query=batch)
    with torch.no_grad():
        model.last.bias += 1.0
    recorder.step()
    trajectory = recorder.trajectory()
    expected = torch.nn.functional.cross_entropy(model.last(torch.eye(3)), batch[1]["y"])
    assert torch.allclose(trajectory.support_loss[1], expected)
    assert torch.equal(trajectory.support_loss, trajectory.query_loss)
    assert trajectory.support_accuracy.isnan().all()
    assert top_eigenpairs(hessian(recorder.loss, trajectory.thetas, batch, shared=True), k=1).converged.all()
