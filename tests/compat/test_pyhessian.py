"""This library's PyHessian interface agrees with the installed PyHessian, but for the deliberate differences."""

import math
import warnings
from typing import Any

import numpy as np
import pyhessian
import pytest
import torch
from cases import randn, seeded, squared_error, without_type_checks
from pyhessian_reference import CRITERION, Batch, dense_reference, installed_pyhessian
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import hessian_tools as ht
from hessian_tools.compat.pyhessian import hessian
from hessian_tools.loss import HiddenStateError


def test_eigenvalues_agree_within_the_tolerance_of_pyhessian(model: nn.Module, data: Batch) -> None:
    values, vectors = hessian(model, CRITERION, data=data, cuda=False).eigenvalues(top_n=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        their_values, their_vectors = installed_pyhessian(model, CRITERION, data=data).eigenvalues(
            maxIter=300, tol=1e-5, top_n=2
        )
    np.testing.assert_allclose(values, their_values, rtol=5e-3)
    true = torch.linalg.eigvalsh(dense_reference(model, CRITERION, data))
    expected = true[true.abs().argsort(descending=True)[:2]]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert isinstance(values, list)
    assert isinstance(values[0], float)
    shapes = [p.shape for p in model.parameters() if p.requires_grad]
    for vector, their_vector in zip(vectors, their_vectors, strict=True):
        assert isinstance(vector, list)
        assert [piece.shape for piece in vector] == [piece.shape for piece in their_vector] == shapes
        mine, other = (torch.cat([piece.flatten() for piece in pieces]) for pieces in (vector, their_vector))
        assert abs(float(mine.norm()) - 1) < 1e-5
        assert abs(float(mine @ other)) > 0.99


def test_eigenvalues_are_sorted_by_magnitude_and_keep_their_signs() -> None:
    model = nn.Linear(3, 1, bias=False)
    curvatures = torch.tensor([1.0, -5.0, 3.0])

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return (curvatures * model_weight(outputs) ** 2).sum() / 2

    def model_weight(outputs: Tensor) -> Tensor:
        return outputs[:, 0]  # the inputs are the identity, so these are the weights

    values, _ = hessian(model, criterion, data=(torch.eye(3), torch.zeros(3)), cuda=False).eigenvalues(top_n=3)
    np.testing.assert_allclose(values, [-5.0, 3.0, 1.0], rtol=1e-5)


def test_trace_agrees_within_its_error(model: nn.Module, data: Batch) -> None:
    samples = hessian(model, CRITERION, data=data, cuda=False).trace(maxIter=200)
    truth = float(dense_reference(model, CRITERION, data).trace())
    stderr = np.std(samples, ddof=1) / math.sqrt(len(samples))
    assert abs(np.mean(samples) - truth) < 4 * stderr
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        their = installed_pyhessian(model, CRITERION, data=data).trace(maxIter=200, tol=0.0)
    assert type(samples) is type(their) is list
    assert isinstance(samples[0], float)
    assert abs(np.mean(samples) - np.mean(their)) < 4 * math.sqrt(2) * stderr
    assert 0.6 < np.std(samples) / np.std(their) < 1.6


def test_trace_stops_on_its_standard_error() -> None:
    model, data = seeded(lambda: nn.Linear(4, 3)), (randn(9, 4, stream_name="x"), torch.arange(9) % 3)
    measured = hessian(model, CRITERION, data=data, cuda=False)
    for tol, min_probes in ((0.2, 10), (0.05, 20)):
        samples = measured.trace(maxIter=1000, tol=tol)
        assert min_probes <= len(samples) < 1000
        assert np.std(samples, ddof=1) / math.sqrt(len(samples)) <= tol * abs(np.mean(samples))
    for max_probes in (1, 2, 7):
        assert len(measured.trace(maxIter=max_probes, tol=1e-9)) == max_probes


def test_gradient_parameters_and_products_are_those_of_pyhessian(model: nn.Module, data: Batch) -> None:
    ours, their = hessian(model, CRITERION, data=data, cuda=False), installed_pyhessian(model, CRITERION, data=data)
    assert [id(p) for p in ours.params] == [id(p) for p in model.parameters() if p.requires_grad]
    v = [randn(*p.shape, stream_name=f"v{i}", dtype=torch.float32) for i, p in enumerate(ours.params)]
    curvature, product = ours.dataloader_hv_product(v)
    expected = pyhessian.utils.hessian_vector_product(their.gradsH, their.params, v)
    for mine, other in ((ours.gradsH, their.gradsH), (product, expected)):
        for piece, theirs_piece in zip(mine, other, strict=True):
            torch.testing.assert_close(piece, theirs_piece.detach(), rtol=1e-4, atol=1e-6)
    assert curvature == pytest.approx(sum(float((a * b).sum()) for a, b in zip(v, expected, strict=True)), rel=1e-4)
    assert model[6].weight.grad is None
    with pytest.raises(AttributeError, match="params"):  # not silently ignored
        ours.params = ours.params[:1]


def test_the_product_over_a_dataloader_is_that_of_pyhessian(model: nn.Module, data: Batch) -> None:
    loader = DataLoader(TensorDataset(*data), batch_size=5)
    ours = hessian(model, CRITERION, dataloader=loader, cuda=False)
    v = [torch.ones_like(p) for p in ours.params]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvature, product = installed_pyhessian(model, CRITERION, dataloader=loader).dataloader_hv_product(v)
    mine = ours.dataloader_hv_product(v)
    assert mine[0] == pytest.approx(curvature, rel=1e-4)
    for piece, other in zip(mine[1], product, strict=True):
        torch.testing.assert_close(piece, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.MSELoss(reduction="sum")], ids=["mean", "sum"])
def test_mse_loss_works(criterion: nn.MSELoss) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)))
    data = randn(7, 2, stream_name="x", dtype=torch.float32), randn(7, 2, stream_name="y", dtype=torch.float32)
    values, _ = hessian(model, criterion, data=data, cuda=False).eigenvalues()
    scale = 1 if criterion.reduction == "mean" else 14  # seven examples with two outputs each
    expected = torch.linalg.eigvalsh(dense_reference(model, squared_error, (data[0], data[1].double()))).abs().max()
    np.testing.assert_allclose(abs(values[0]), scale * float(expected), rtol=1e-4)


def drawing_collate(rows: list[Any]) -> Any:
    """Put examples together as usual; as random augmentation would, it draws from NumPy's global generator."""
    np.random.rand()
    return default_collate(rows)


def test_the_batches_of_a_dataloader_are_weighted_by_their_sizes(model: nn.Module, data: Batch) -> None:
    """The batches have 5, 5 and 2 examples, and the last is a list, as data loaders may give it."""
    loader = DataLoader(TensorDataset(*data), batch_size=5, shuffle=True, collate_fn=drawing_collate)
    state, next_of_numpy = torch.get_rng_state(), np.random.RandomState(0).rand()
    np.random.seed(0)
    several = hessian(model, CRITERION, dataloader=loader, cuda=False)
    assert torch.equal(state, torch.get_rng_state())
    assert np.random.rand() == next_of_numpy
    whole = hessian(model, CRITERION, data=list(data), cuda=False)
    np.testing.assert_allclose(several.eigenvalues(top_n=2)[0], whole.eigenvalues(top_n=2)[0], rtol=1e-4)
    np.testing.assert_allclose(several.trace(maxIter=5), whole.trace(maxIter=5), rtol=1e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            their, _ = installed_pyhessian(model, CRITERION, dataloader=loader).eigenvalues(maxIter=200, tol=1e-5)
    np.testing.assert_allclose(several.eigenvalues()[0], their, rtol=5e-3)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_found(model: nn.Module, data: Batch, training: bool) -> None:
    """A model in training mode is measured in eval mode, as PyHessian does, and is in training mode afterwards."""
    model.train(training)
    model[0].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    with without_type_checks():
        measured = hessian(model, CRITERION, data=data, cuda=False)
        first = measured.eigenvalues(), measured.trace(maxIter=3), measured.density(iter=4)
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model[0].weight.grad == 1).all()
    assert model[6].weight.grad is None
    with torch.no_grad():
        model[6].weight.mul_(3)
    assert measured.eigenvalues()[0] == first[0][0]  # the Hessian of the network as it was at construction


def test_the_seed_decides_the_random_numbers(model: nn.Module, data: Batch) -> None:
    traces = [hessian(model, CRITERION, data=data, cuda=False, seed=seed).trace(maxIter=3) for seed in (0, 0, 1)]
    assert traces[0] == traces[1] != traces[2]


def test_eigenvalues_that_have_not_converged_give_a_warning(model: nn.Module, data: Batch) -> None:
    with pytest.warns(
        UserWarning, match="1 of 1 eigenvalues have not converged to tol=1e-09; raise maxIter=3"
    ) as warned:
        hessian(model, CRITERION, data=data, cuda=False).eigenvalues(maxIter=3, tol=1e-9)
    assert warned[0].filename == __file__


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_by_default_falls_back_with_a_warning(model: nn.Module, data: Batch) -> None:
    with pytest.warns(UserWarning, match="no CUDA device; the CPU is used instead"):
        measured = hessian(model, CRITERION, data=data)
    assert measured.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu(model: nn.Module, data: Batch) -> None:
    on_cpu, on_gpu = (hessian(model, CRITERION, data=data, cuda=cuda) for cuda in (False, True))
    np.testing.assert_allclose(on_cpu.eigenvalues()[0], on_gpu.eigenvalues()[0], rtol=1e-3)
    np.testing.assert_allclose(on_cpu.trace(maxIter=5), on_gpu.trace(maxIter=5), rtol=1e-2)
    assert on_gpu.eigenvalues()[1][0][0].is_cuda
    assert not next(model.parameters()).is_cuda


def test_the_attribute_operator_works_with_the_functions_of_this_library(model: nn.Module, data: Batch) -> None:
    measured = hessian(model, CRITERION, data=data, cuda=False)
    pairs = ht.top_eigenpairs(measured.operator, k=1)
    assert pairs.values.tolist() == pytest.approx(measured.eigenvalues()[0])
    assert ht.check_operator(measured.operator).ok


SCRIPT = """
from IMPORT import hessian
import torch, numpy as np
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
batch = torch.randn(20, 4), torch.arange(20) % 3
comp = hessian(model, torch.nn.CrossEntropyLoss(), data=batch, cuda=False)
top, vectors = comp.eigenvalues(top_n=1)
moved = [p.data + 0.1 * v for p, v in zip(model.parameters(), vectors[0])]
answer = top[-1], np.mean(comp.trace()), len(moved)
"""


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_script_runs_with_one_line_changed() -> None:
    answers = []
    for name in ("pyhessian", "hessian_tools.compat.pyhessian"):
        scope: dict[str, object] = {}
        with torch.random.fork_rng(devices=[]):
            exec(SCRIPT.replace("IMPORT", name), scope)
        answers.append(scope["answer"])
    theirs, ours = answers
    assert ours[0] == pytest.approx(theirs[0], rel=0.02)
    assert ours[1] == pytest.approx(theirs[1], rel=0.3)
    assert ours[2] == theirs[2]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x), training=True)


def test_a_network_that_draws_random_numbers_even_in_eval_mode_is_refused() -> None:
    with pytest.raises(HiddenStateError, match="draws random numbers"):
        hessian(seeded(Noisy), CRITERION, data=(torch.ones(4, 2), torch.zeros(4, dtype=torch.long)), cuda=False)


def test_data_of_another_form_are_refused(model: nn.Module, data: Batch) -> None:
    for options in ({}, {"data": data, "dataloader": [data]}):
        with pytest.raises(ValueError, match="either data="):
            hessian(model, CRITERION, cuda=False, **options)
    for options in ({"dataloader": []}, {"data": data[:1]}):
        with pytest.raises(ValueError, match=r"a batch is a pair \(inputs, targets\)"):
            hessian(model, CRITERION, cuda=False, **options)
