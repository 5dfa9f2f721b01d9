"""Composed operators taken apart and put together again."""

import torch
from cases import NETWORKS, randn
from torch import Tensor

from hessian_tools.curvature import GaussNewton, Hessian, Operator, gauss_newton, hessian
from hessian_tools.curvature.operators.composite import Combination, Projected
from hessian_tools.curvature.operators.terms import leaves, magnitude, rebuilt, terms

CASE = next(case for case in NETWORKS if case.name == "tanh-mlp")


def nested() -> tuple[Operator, Tensor]:
    """The restriction of a sum of blocks of sums, and columns V to multiply."""
    H, G = (make(CASE.loss, CASE.thetas, CASE.batch) for make in (hessian, gauss_newton))
    body = 2 * (3 * H - G).block("body") + H.block("body")
    Q = torch.linalg.qr(randn(body.num_params, 4, stream_name="terms")).Q
    return body.restrict(Q) - 0.5 * body.restrict(Q), randn(4, 2, stream_name="columns")


def test_terms_add_up_to_the_operator_and_hold_no_sum() -> None:
    H, V = nested()
    parts = terms(H)
    assert [weight for weight, _ in parts] == [6.0, -2.0, 1.0, -3.0, 1.0, -0.5]
    torch.testing.assert_close(torch.stack([weight * (term @ V) for weight, term in parts]).sum(0), H @ V)
    for _, term in parts:
        while isinstance(term, Projected):
            term = term.whole
        assert not isinstance(term, Combination)
    assert len(leaves(H)) == 6
    size = torch.stack([abs(weight) * (term @ V).norm(dim=-2) for weight, term in parts]).sum(0)
    torch.testing.assert_close(magnitude(H, V), size)
    assert (magnitude(H, V) > 1.5 * (H @ V).norm(dim=-2)).all()  # because the terms partly cancel


def test_rebuilding_changes_the_leaves_and_the_dtype_around_them() -> None:
    H, V = nested()
    torch.testing.assert_close(rebuilt(H, lambda leaf: leaf) @ V, H @ V)
    makers = {Hessian: hessian, GaussNewton: gauss_newton}
    single = rebuilt(H, lambda leaf: makers[type(leaf)](CASE.loss, CASE.thetas.float(), CASE.batch))
    assert single.dtype == torch.float32
    torch.testing.assert_close((single @ V.float()).double(), H @ V, rtol=1e-4, atol=1e-5)
