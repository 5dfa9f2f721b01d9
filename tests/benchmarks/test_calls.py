"""The way from ``H.mv`` to the loss stays short on every engine."""

import pytest
from cases import without_type_checks

from benchmarks.calls import ROUTES, Profile, problem
from hessian_tools import hessian


@pytest.mark.parametrize("route", ROUTES)
def test_a_warm_product_goes_through_at_most_eight_frames(route: str) -> None:
    loss, thetas, batch = problem()
    H = hessian(loss, thetas, batch, route=route)
    H.mv(thetas)
    with without_type_checks():
        assert 1 < Profile().of(lambda: H.mv(thetas)).deepest <= 8
