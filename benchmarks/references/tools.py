"""The tools that are compared: this library, its peers as their users call them, and differences of gradients.

Each is a function of (model, criterion, batch), as ``benchmarks.references`` describes it. A peer is imported when its
function is called, which raises ImportError where the peer is not installed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hessian_tools as ht

PROBES = 100


def ours(model: nn.Module, criterion: nn.Module, batch: Any) -> dict[str, Any]:
    H = ht.hessian_of(model, criterion, batch)

    def trace() -> tuple[float, float]:
        estimate = ht.trace(H, num_probes=PROBES, method="probes")
        return float(estimate.value), float(estimate.stderr)

    return {"matvec": H.mv, "top": lambda k: ht.top_eigenpairs(H, k=k).values, "trace": trace}


def pyhessian(model: nn.Module, criterion: nn.Module, batch: Any) -> dict[str, Any]:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    # PyHessian adds to ``.grad``, so that without this line a second object for the same model would add up both.
    model.zero_grad(set_to_none=True)
    data = {"dataloader": batch} if isinstance(batch, list) else {"data": batch}
    H = hessian(model, criterion, **data, cuda=False)

    def matvec(v: Tensor) -> Tensor:
        vectors = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in H.params]), H.params, strict=True)]
        if isinstance(batch, list):
            return _flat(H.dataloader_hv_product(vectors)[1])
        return _flat(hessian_vector_product(H.gradsH, H.params, vectors))

    def trace() -> tuple[float, float]:
        samples = torch.tensor(H.trace(maxIter=PROBES, tol=float("-inf")))
        return float(samples.mean()), float(samples.std() / len(samples) ** 0.5)

    return {
        "matvec": matvec,
        "top": lambda k: torch.tensor(H.eigenvalues(top_n=k, maxIter=200, tol=1e-4)[0]),
        "trace": trace,
    }


def eigenthings(model: nn.Module, criterion: nn.Module, batch: Any) -> dict[str, Any]:
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss
    from hessian_eigenthings import trace as their_trace

    H = HessianOperator(model, batch if isinstance(batch, list) else [batch], supervised_loss(criterion))

    def trace() -> tuple[float, float]:
        result = their_trace(H, num_matvecs=PROBES, method="hutchinson", seed=0)
        return float(result.estimate), float(result.stderr)

    def top(k: int) -> Tensor:
        return lanczos(H, k=k, max_iter=min(60, H.size), tol=1e-4, reorthogonalize=True, which="LM", seed=0).eigenvalues

    return {"matvec": lambda v: H @ v, "top": top, "trace": trace}


def curvlinops(model: nn.Module, criterion: nn.Module, batch: Any) -> dict[str, Any]:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    parameters = [p for p in model.parameters() if p.requires_grad]
    data = batch if isinstance(batch, list) else [batch]
    H = HessianLinearOperator(model, criterion, parameters, data, check_deterministic=False)

    def top(k: int) -> Tensor:
        start = np.random.default_rng(0).standard_normal(H.shape[0]).astype(np.float32)
        values = eigsh(H.to_scipy(np.float32), k=k, which="LM", tol=1e-4, v0=start, return_eigenvectors=False)
        return torch.from_numpy(values)

    return {"matvec": lambda v: H @ v, "top": top}


def differences(model: nn.Module, criterion: nn.Module, batch: Any) -> dict[str, Any]:
    """Central differences of the gradient in the model's own precision, at a step of 1e-3 of the parameters' norm."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    batches = batch if isinstance(batch, list) else [batch]

    def gradient() -> Tensor:
        parts = [_flat(torch.autograd.grad(criterion(model(x), y), parameters)) for x, y in batches]
        sizes = [len(y) if criterion.reduction == "mean" else 1 for _, y in batches]
        total = torch.stack([size * part for size, part in zip(sizes, parts, strict=True)]).sum(0)
        return total / sum(sizes) if criterion.reduction == "mean" else total

    def matvec(v: Tensor) -> Tensor:
        theta = _flat(parameters)
        h = 1e-3 * theta.norm() / v.norm()
        ahead = _at(parameters, theta + h * v, gradient)
        behind = _at(parameters, theta - h * v, gradient)
        _at(parameters, theta, gradient)  # called only to give the parameters their values back
        return (ahead - behind) / (2 * h)

    return {"matvec": matvec}


TOOLS: dict[str, Callable[[nn.Module, nn.Module, Any], dict[str, Any]]] = {
    "hessian-tools": ours,
    "PyHessian": pyhessian,
    "hessian-eigenthings": eigenthings,
    "curvlinops": curvlinops,
    "differences": differences,
}


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _at(parameters: list[nn.Parameter], theta: Tensor, function: Callable[[], Tensor]) -> Tensor:
    """The function's value after the parameters were set to theta; they keep these values."""
    with torch.no_grad():
        for p, part in zip(parameters, theta.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view_as(p))
    return function()
