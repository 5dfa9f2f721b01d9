"""Tests that a product passes through few functions of the library between ``H.mv`` and the loss, on every engine."""

import pytest
from cases import without_type_checks

from benchmarks.calls import ROUTES, Profile, problem
from hessian_tools import hessian


@pytest.mark.parametrize("route", ROUTES)
def test_a_prepared_product_has_at_most_eight_frames_of_ours_on_the_stack(route: str) -> None:
    loss, thetas, batch = problem()
    H = hessian(loss, thetas, batch, route=route)
    H.mv(thetas)  # the first product chooses the engine and prepares what later products reuse
    with without_type_checks():
        assert 1 < Profile().run(lambda: H.mv(thetas)).deepest <= 8
