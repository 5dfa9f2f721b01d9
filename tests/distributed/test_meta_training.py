"""Processes that share the tasks of outer steps make the checkpoints of one process."""

from functools import partial
from typing import Any

import meta_training_cases as cases
import pytest
import torch
from teams import results_of

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Any]]:
    folder = tmp_path_factory.mktemp("processes")
    run = partial(cases.meta_training, folder=folder)
    return results_of({("run", 2): run, ("run", 4): run, ("refusals", 2): cases.meta_refusals}, folder)


@pytest.mark.parametrize("size", [2, 4])
def test_every_process_yields_the_checkpoints_of_one_process_to_the_bit(results: Any, size: int) -> None:
    for pairs in results["run", size]:
        assert not isinstance(pairs, str), pairs
        assert len(pairs) == 8
        for shared, alone in pairs:
            assert torch.equal(torch.as_tensor(shared), torch.as_tensor(alone))
        assert not torch.equal(pairs[0][0], pairs[1][0])


def test_an_error_on_one_process_ends_the_run_on_all(results: Any) -> None:
    leader, follower = results["refusals", 2]
    assert (
        leader[0]
        == "OtherProcessFailed: process 1 of 2 has stopped, so this one does too: ArithmeticError: no task today"
    )
    assert follower[0] == "ArithmeticError: no task today"
    assert leader[1] == "RuntimeError: no validation today"
    assert "process 0 of 2 has stopped, so this one does too: RuntimeError: no validation today" in follower[1]
    for said in (leader, follower):
        assert said[2] == "ValueError: process 1 has other settings of the run than process 0; give all the same"
        assert all("in another way than a process group does" in refusal for refusal in said[3:])
