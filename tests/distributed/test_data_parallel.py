"""Processes that share the data compute what one process computes from all of it."""

from typing import Any

import data_parallel_cases as cases
import pytest
import torch
from teams import SIZES, results_of

import hessian_tools as ht
from hessian_tools.distributed import data_parallel

pytestmark = pytest.mark.slow
NAMES = ("products", "weights", "solvers", "jackknives", "refusals")


def run(group: Any, name: str) -> Any:
    return getattr(cases, name)(cases.Team(group))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Any]]:
    from functools import partial

    folder = tmp_path_factory.mktemp("processes")
    return results_of({name: partial(run, name=name) for name in NAMES}, folder)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "tolerance"), [("products", 1e-12), ("weights", 1e-12), ("solvers", 1e-8), ("jackknives", 1e-8)])
def test_several_processes_give_the_numbers_of_one(results: Any, name: str, tolerance: float, size: int) -> None:
    for pairs in results[name, size]:
        assert not isinstance(pairs, str), pairs
        for i, (shared, alone) in enumerate(pairs):
            torch.testing.assert_close(shared, alone, rtol=tolerance, atol=tolerance, msg=lambda m, i=i: f"{i}: {m}")


@pytest.mark.parametrize("size", SIZES)
def test_all_processes_have_the_same_bits(results: Any, size: int) -> None:
    for name in ("products", "solvers"):
        first, *others = results[name, size]
        for other in others:
            assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))
