"""PyHessian's interface works on unusual models and in inference mode, and refuses meaningless arguments."""

import pytest
import torch
from cases import randn, seeded, squared_error
from pyhessian_reference import CRITERION, Batch
from torch import nn
from torch.nn import functional as F

from hessian_tools.compat.pyhessian import hessian


def test_a_model_whose_weight_norm_has_run_before_works() -> None:
    """Such a model keeps a weight with its graph, which ``copy.deepcopy`` refuses."""
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.utils.weight_norm(seeded(lambda: nn.Linear(3, 2)).double())
    x, y = randn(5, 3, stream_name="x"), randn(5, 2, stream_name="y")
    model(x)
    before = model.weight

    def loss(bias: torch.Tensor, g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return squared_error(F.linear(x, g * v / v.norm(dim=1, keepdim=True), bias), y)

    own = dict(model.named_parameters())
    parts = tuple(own[name].detach() for name in ("bias", "weight_g", "weight_v"))
    blocks = torch.autograd.functional.hessian(loss, parts)
    rows = [torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for p, row in zip(parts, blocks, strict=True)]
    true = torch.linalg.eigvalsh(torch.cat(rows))
    values, _ = hessian(model, squared_error, data=(x, y), cuda=False).eigenvalues(top_n=1, tol=1e-8)
    assert values[0] == pytest.approx(float(true[true.abs().argmax()]), rel=1e-8)
    assert model.weight is before


def test_eigenvalues_can_be_computed_in_inference_mode(model: nn.Module, data: Batch) -> None:
    expected = hessian(model, CRITERION, data=data, cuda=False).eigenvalues()[0]
    with torch.inference_mode():
        assert hessian(model, CRITERION, data=data, cuda=False).eigenvalues()[0] == pytest.approx(expected)


def test_a_model_without_trainable_parameters_is_refused(model: nn.Module, data: Batch) -> None:
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        hessian(model.requires_grad_(False), CRITERION, data=data, cuda=False)


@pytest.mark.parametrize(("products", "runs"), [(0, 1), (10, 0)])
def test_a_density_without_runs_or_products_is_refused(model: nn.Module, data: Batch, products: int, runs: int) -> None:
    with pytest.raises(ValueError, match=f"iter={products}, n_v={runs}: give 1 or more of each"):
        hessian(model, CRITERION, data=data, cuda=False).density(iter=products, n_v=runs)
