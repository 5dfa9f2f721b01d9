"""Tests that products and searches for eigenvalues pass through few functions of the library, on every engine."""

import pytest
from cases import without_type_checks

from benchmarks.calls import ROUTES, Profile, problem
from hessian_tools import hessian, top_eigenpairs


@pytest.mark.parametrize("route", ROUTES)
def test_a_prepared_product_has_at_most_eight_frames_of_ours_on_the_stack(route: str) -> None:
    loss, thetas, batch = problem()
    H = hessian(loss, thetas, batch, route=route)
    H.mv(thetas)  # the first product chooses the engine and prepares what later products reuse
    with without_type_checks():
        assert 1 < Profile().run(lambda: H.mv(thetas)).deepest <= 8


@pytest.mark.parametrize("route", ROUTES)
def test_a_search_for_eigenvalues_makes_at_most_1100_calls_of_ours(route: str) -> None:
    loss, thetas, batch = problem()
    H = hessian(loss, thetas, batch, route=route)
    products = int(top_eigenpairs(H, k=3).num_matvecs.max())
    with without_type_checks():
        calls = Profile().run(lambda: top_eigenpairs(H, k=3)).calls
    # The 1,100 are those of a search with 47 products. With another torch it may need a few more.
    assert 1 < calls <= 1100 * max(1, products / 47)
