"""The contract of curvature operators: checks that every operator must pass, against the dense matrices of a case."""

import random
from collections.abc import Callable

import numpy as np
import torch
from cases import Case, at, without_type_checks
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.curvature import Operator

Make = Callable[..., Operator]


def check_operator(make: Make, case: Case) -> None:
    """Checks the operator that ``make(loss, thetas, batch, **options)`` returns against ``case.dense``."""
    H = make(case.loss, case.thetas, case.batch)
    single = make(case.loss, *case.at(1)[:2])
    assert (H.shape, single.shape) == (case.dense.shape, case.dense[1].shape)
    assert (H.num_points, single.num_points) == (len(case.thetas), None)
    assert (H.num_params, H.dtype, H.device) == (case.dense.shape[-1], case.thetas.dtype, case.thetas.device)
    check_dense(H, case.dense)
    check_dense(single, case.dense[1])
    for operator, dense in ((H, case.dense), (single, case.dense[1])):
        check_matmul(operator, dense)
        check_mv(operator, dense)
        check_linear(operator)
    check_scipy(H, case.dense)
    check_select(H, case.dense)
    check_stacked_points(make, case, H)
    check_chunks(make, case, H)
    check_inputs_unchanged(make, case)


def close(actual: Tensor, expected: Tensor) -> None:
    """Asserts that two tensors are equal up to rounding, relative to the largest entry."""
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    tolerance = 1e4 * torch.finfo(expected.dtype).eps * max(scale, 1e-30)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)


def draw(*shape: int, like: Operator) -> Tensor:
    """Draws standard normal numbers in the operator's dtype, the same ones each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(like.dtype)


def check_dense(H: Operator, dense: Tensor) -> None:
    matrix = H.to_dense()
    close(matrix, dense)
    close(matrix, matrix.mT)


def check_matmul(H: Operator, dense: Tensor) -> None:
    """``H @ V`` is ``torch.matmul(dense, V)`` for every shape that fits."""
    n, points = H.num_params, H.num_points or 4
    leads = [(), (points,), (1,), (2, points), (2, 1), (2, 3, points)]
    for shape in [(n,), *((*lead, n, k) for lead in leads for k in (1, 3)), (n, 0)]:
        V = draw(*shape, like=H)
        close(H @ V, torch.matmul(dense, V))


def check_mv(H: Operator, dense: Tensor) -> None:
    for shape in [(), *([] if H.num_points is None else [(H.num_points,), (2, H.num_points)])]:
        v = draw(*shape, H.num_params, like=H)
        close(H.mv(v), (dense @ v[..., None])[..., 0])


def check_linear(H: Operator) -> None:
    a, b = draw(H.num_params, 2, like=H).unbind(-1)
    close(H @ (2 * a - 3 * b), 2 * (H @ a) - 3 * (H @ b))


def check_scipy(H: Operator, dense: Tensor) -> None:
    V = draw(H.num_params, 2, like=H)
    A = H.to_scipy(point=1)
    assert A.shape == (H.num_params, H.num_params)
    close(torch.from_numpy(A @ V.numpy()), dense[1] @ V)
    close(torch.from_numpy(A @ V[:, 0].numpy()), dense[1] @ V[:, 0])


def check_select(H: Operator, dense: Tensor) -> None:
    order = torch.tensor([2, 0])
    close(H.select(order).to_dense(), dense[order])


def check_stacked_points(make: Make, case: Case, H: Operator) -> None:
    """The products at many points are those of single points, stacked."""
    V = draw(H.num_params, 2, like=H)
    singles = [make(case.loss, theta, at(case.batch, i)) @ V for i, theta in enumerate(case.thetas)]
    close(H @ V, torch.stack(singles))


def check_chunks(make: Make, case: Case, H: Operator) -> None:
    """The number of products that run at once changes no result."""
    V = draw(H.num_params, 3, like=H)
    for chunk in (1, 2, 4, 100):
        close(make(case.loss, case.thetas, case.batch, chunk=chunk) @ V, H @ V)


def check_inputs_unchanged(make: Make, case: Case) -> None:
    """A product leaves its inputs, the model and the global random states as they were."""
    thetas = case.thetas.clone().requires_grad_()
    leaves = pytree.tree_leaves(case.batch)
    before = [leaf.clone() for leaf in leaves]
    V = draw(case.dense.shape[-1], 2, like=make(case.loss, case.thetas, case.batch))
    V_before = V.clone()
    model = getattr(case.loss, "model", None)
    weights = None if model is None else {name: t.clone() for name, t in model.state_dict().items()}
    with without_type_checks():  # because type checks draw from Python's global generator
        states = random_states()
        product = make(case.loss, thetas, case.batch) @ V
        assert random_states() == states
    assert not product.requires_grad
    assert thetas.requires_grad
    assert thetas.grad is None
    unchanged = zip([thetas, V, *leaves], [case.thetas, V_before, *before], strict=True)
    assert all(torch.equal(now, then) for now, then in unchanged)
    if model is not None:
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


def random_states() -> list[bytes | tuple[object, ...]]:
    """The states of the global generators of torch, NumPy and Python."""
    numpy_state = np.random.get_state()[1].tobytes()
    return [torch.get_rng_state().numpy().tobytes(), numpy_state, random.getstate()]
