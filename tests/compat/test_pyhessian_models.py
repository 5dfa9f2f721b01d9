"""PyHessian's interface on frozen models, in inference mode, and with arguments that mean nothing."""

import pytest
import torch
from pyhessian_witness import CRITERION, Batch
from torch import nn

from hessian_tools.compat.pyhessian import hessian


def test_in_inference_mode(model: nn.Module, data: Batch) -> None:
    expected = hessian(model, CRITERION, data=data, cuda=False).eigenvalues()[0]
    with torch.inference_mode():
        assert hessian(model, CRITERION, data=data, cuda=False).eigenvalues()[0] == pytest.approx(expected)


def test_a_frozen_model_is_refused_in_plain_words(model: nn.Module, data: Batch) -> None:
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        hessian(model.requires_grad_(False), CRITERION, data=data, cuda=False)


@pytest.mark.parametrize(("products", "runs"), [(0, 1), (10, 0)])
def test_densities_of_nothing_are_refused(model: nn.Module, data: Batch, products: int, runs: int) -> None:
    with pytest.raises(ValueError, match=f"iter={products}, n_v={runs}: give 1 or more of each"):
        hessian(model, CRITERION, data=data, cuda=False).density(iter=products, n_v=runs)
