"""A sharded model has the Hessian of one process; runs are resumed; a killed process ends the others."""

import os
import platform
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sharded_cases as cases
import torch
from teams import check_messages, results_of

from hessian_tools.curvature.operators.lengths import Shards

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Any]]:
    folder = tmp_path_factory.mktemp("processes")
    work: dict[tuple[str, int], Any] = {("products", size): cases.products for size in (2, 4)}
    work |= {("other models", size): cases.other_models for size in (2, 4)}
    work |= {("silent", 2): cases.silent, ("class weights", 2): cases.class_weights}
    work |= {("memory", 4): cases.memory, ("refusals", 2): cases.refusals}
    work |= {("refused by one", 2): cases.refused_by_one}
    work |= {("resumed", 2): partial(cases.resumed, folder=folder / "run")}
    return results_of(work | {("killed", 4): cases.killed}, folder)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("products", 2),
        ("products", 4),
        ("other models", 2),
        ("other models", 4),
        ("class weights", 2),
        ("resumed", 2),
    ],
)
def test_processes_give_the_numbers_of_one(results: Any, name: str, size: int) -> None:
    for pairs in results[name, size]:
        assert not isinstance(pairs, str), pairs
        for i, (few, one) in enumerate(pairs):
            few, one = torch.as_tensor(few), torch.as_tensor(one)
            torch.testing.assert_close(few, one, rtol=1e-12, atol=1e-12 if i < 2 or name == "other models" else 1e-7)


def test_a_product_holds_a_few_whole_weights_however_deep_the_network_is(results: Any) -> None:
    for held in results["memory", 4]:
        assert not isinstance(held, str), held
        assert cases.DEPTH > 10
        assert held["kept"] < 1  # the graph holds no whole weight
        assert held["first"] < 5 and held["second"] < 5
        assert held["gradient that holds itself"] == 0


FREED = """
import os, pathlib, sys, torch
from hessian_tools.freed_blocks import return_freed_blocks

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

return_freed_blocks()
before = resident()
for _ in range(3):
    blocks = [torch.ones(2**20) for _ in range(20)]
    last = torch.ones(2**16)
    del blocks
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed blocks")
def test_freed_blocks_go_back_to_the_system_unless_the_user_has_said_otherwise() -> None:
    def kept(**environment: str) -> float:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        call = subprocess.run([sys.executable, "-c", FREED], env=own | environment, capture_output=True, text=True)
        assert not call.returncode, call.stderr
        return float(call.stdout)

    assert kept() < 30  # of the 80 MB that were freed
    assert kept(MALLOC_MMAP_THRESHOLD_="100000000", MALLOC_TRIM_THRESHOLD_="1000000000") > 60


def test_what_cannot_be_sharded_is_refused(results: Any) -> None:
    expected = (
        "the parameter 'first.weight' is no DTensor; call shard(model) first",
        "is wrapped by fully_shard, which gives no second derivative",
        "the model draws random numbers in its forward pass; call model.eval()",
        "the model changes its buffers in its forward pass; call model.eval()",
        "the model has DTensors as parameters already",
        "the processes have different parameters",
        "H is a ShardedHessian",
        "give this process's part of the vector",
        "the parameters have changed since the first product",
        "the parameters have changed since the first product",
        "the batch is a list of batches; give each process one batch",
        "the weights of the processes are [0.0, 0.0]; give numbers of 0 or more, one of them above 0",
        "criterion is None; give criterion(outputs, targets)",
    )
    check_messages(results["refusals", 2], expected)


def test_what_would_be_wrong_in_silence_is_refused(results: Any) -> None:
    expected = (
        "HiddenStateError: the criterion draws random numbers",
        "HiddenStateError: the loss runs hand-written derivatives (Exponential), and its Hessian is not",
        "HiddenStateError: the loss runs hand-written derivatives (StraightThrough), and its gradient is not",
        "HiddenStateError: the loss uses a parameter of shape [8, 8] that the model held before shard(model)",
        "ValueError: process 1 holds other buffers or frozen parameters than process 0 ('shift')",
        "ValueError: an embedding with sparse=True has no second derivative in torch: use sparse=False",
        "ValueError: the parameter '0' is a single number; give it the shape [1]",
        "ValueError: equal: True",
        "HiddenStateError: the model or the criterion gives another result the second time",
        "HiddenStateError: a hook on a tensor changes its gradient in the backward pass",
        "NoOtherWay: torch has no second derivative of an operation in this loss: write it out by other operations",
        "HiddenStateError: the loss runs hand-written derivatives (StraightThrough), and its gradient is not",
        "ValueError: the weights of the processes are [1.0, -1.0]; give numbers of 0 or more, one of them above 0",
        "ValueError: the criterion gives a tensor [3, 8]; a loss is a tensor with one number",
    )
    check_messages(results["silent", 2], expected, str.startswith)


def test_a_gradient_that_one_process_refuses_ends_the_others(results: Any) -> None:
    own = ("NoOtherWay: torch has no second derivative", "HiddenStateError: a hook on a tensor changes its gradient")
    others = tuple(f"OtherProcessFailed: process 1 of 2 has stopped, so this one does too: {words}" for words in own)
    for messages, expected in zip(results["refused by one", 2], (others, own), strict=True):
        check_messages([messages], expected, str.startswith)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["killed", "killed in shards"])
def test_a_killed_process_ends_the_others_with_a_sentence_within_half_a_minute(
    results: Any, name: str, tmp_path: Path
) -> None:
    if name == "killed in shards":  # in processes of their own
        results = results_of({(name, 4): cases.killed_in_shards}, tmp_path)
    said = results[name, 4]
    assert len(said) == 3  # all but the killed one
    for text, seconds in said:
        assert text.startswith("ProcessLost: process ") and "another one no longer answers" in text
        assert seconds < 30


def test_the_parts_of_random_vectors_make_up_the_vector_of_one_process(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("hessian_tools.curvature.operators.lengths.DRAWN", 64)
    for total in (3, 63, 64, 79, 80, 81, 1003):
        whole = torch.randn(total, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        cuts = [0, total // 3, total // 2, total]
        parts = []
        for part in pairwise(cuts):
            draw = torch.Generator().manual_seed(0)
            shards: Any = Shards(None, total, [part])  # type: ignore[arg-type]
            parts.append(shards.own_numbers(partial(torch.randn, generator=draw, dtype=torch.float64), torch.float64))
        assert torch.equal(torch.cat(parts), whole)
