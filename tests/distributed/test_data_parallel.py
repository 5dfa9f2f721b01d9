"""Processes that share the data compute what one process computes from all of it."""

from functools import partial
from typing import Any

import data_parallel_cases as cases
import pytest
import torch
from teams import results_of

import hessian_tools as ht
from hessian_tools.distributed import data_parallel

pytestmark = pytest.mark.heavy
# With how many processes each case runs, and how closely its numbers agree with those of one process.
EQUAL = {("products", 2): 1e-12, ("weights", 2): 1e-12, ("solvers", 2): 1e-8, ("others", 2): 1e-8}
EQUAL |= {("jackknives", 2): 1e-8, ("products", 4): 1e-12, ("weights", 4): 1e-12, ("solvers", 4): 1e-8}


def run(group: Any, name: str) -> Any:
    return getattr(cases, name)(cases.Team(group))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Any]]:
    names = [*EQUAL, ("refusals", 2)]
    return results_of({key: partial(run, name=key[0]) for key in names}, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize(("name", "size"), EQUAL)
def test_several_processes_give_the_numbers_of_one(results: Any, name: str, size: int) -> None:
    close = partial(torch.testing.assert_close, rtol=EQUAL[name, size], atol=EQUAL[name, size])
    for pairs in results[name, size]:
        assert not isinstance(pairs, str), pairs
        for i, (shared, alone) in enumerate(pairs):
            close(shared, alone, msg=lambda message, i=i: f"number {i}: {message}")


@pytest.mark.parametrize(("name", "size"), EQUAL)
def test_all_processes_have_the_same_bits(results: Any, name: str, size: int) -> None:
    first, *others = results[name, size]
    for other in others:
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))


def test_every_process_says_why_it_cannot_go_on(results: Any) -> None:
    first, second = results["refusals", 2]
    for expected, of_first, of_second in zip(REFUSALS, first, second, strict=True):
        assert expected in of_first and expected in of_second
    assert first[2].startswith("OtherProcessFailed: process 1 of 2 has stopped")
    assert second[2] == "ArithmeticError: out of luck"


REFUSALS = (
    "process 1 multiplies other vectors than process 0",
    "process 1 has another theta",
    "ArithmeticError: out of luck",
    "no process has a batch",
    "the loss fails on batch",
    "averages over the batches of some processes and adds up over others",
    "there is no Gram matrix of all of them",
    "works in hessian, hessian_of, gauss_newton, gradient and third_derivative",
    "the sum over all processes is 0.0",
    "process 1 holds other buffers or frozen parameters than process 0 ('running_mean')",
    "process 1 holds other buffers or frozen parameters than process 0",
)


def test_without_a_process_group_it_says_how_to_make_one() -> None:
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        data_parallel([torch.ones(2)])


def test_a_batch_that_is_no_share_needs_no_processes() -> None:
    assert ht.hessian(lambda t, a: (a * t**2).sum(), torch.zeros(1), torch.ones(1)).objective.ranks is None
