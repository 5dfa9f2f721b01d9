"""Nothing of the library stays on the CPU when its point lies elsewhere; on a machine without a GPU, too."""

import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import without_type_checks
from device_cases import COMPUTED, DEVICE_CASES, compared, place, same, tensors
from device_cases_derived import DERIVED, LEARNED
from device_placement import ELSEWHERE, elsewhere
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools import curvature

TRIED_IN = ("device_cases", "device_cases_derived", "test_gpu")
CASE = next(case for case in DEVICE_CASES if case.name == "tanh-mlp")
CONV = next(case for case in DEVICE_CASES if case.name == "conv-batchnorm")
# The kinds of operation that a convolutional network adds.
ALL = COMPUTED | DERIVED | LEARNED
ALSO_CONV = ("product-direct", "product-gauss-newton", "gauss_newton_spectrum", "record")
# Go the way of others here; a GPU tries them as well.
SAME_WAY = ("top_eigenpairs", "eigenpairs-of-a-block", "maml", "boil")


@pytest.mark.parametrize("name", [name for name in ALL if name not in SAME_WAY])
def test_everything_runs_where_theta_lies_and_gives_the_same(name: str) -> None:
    compute: Callable[[Any], Any] = ALL[name]
    for case in (CASE, CONV) if name in ALSO_CONV else (CASE,):
        with without_type_checks():
            on_cpu = compute(place(case, "cpu"))
            with elsewhere() as device:
                found = compute(place(case, device))
                assert all(tensor.device == ELSEWHERE for tensor in tensors(found))
                there = compared(found)
        same([tensor.inner for tensor in there], compared(on_cpu))


# Without tensors that could lie on a device; and what moves with its argument.
NOWHERE = {"best_checkpoint", "cosine_null", "overlap_null", "load_network", "normalised_weights", "stream"}


def test_every_public_function_is_tried_on_a_gpu() -> None:
    tried = "".join(Path(__file__).with_name(f"{name}.py").read_text() for name in TRIED_IN)
    public = {name: getattr(package, name) for package in (curvature, ht) for name in package.__all__}
    functions = {name for name, thing in public.items() if inspect.isfunction(thing)} - NOWHERE
    missing = [name for name in sorted(functions) if not re.search(rf"\b{name}\(", tried)]
    assert not missing, f"on a GPU nobody has tried {', '.join(missing)}"


def test_sums_that_differ_in_rounding_are_no_hidden_state_on_a_gpu() -> None:
    class Shaken(nn.Module):
        """Its outputs come out different each time it is called."""

        def __init__(self, by: float) -> None:
            super().__init__()
            self.layer, self.by, self.calls = nn.Linear(2, 2), by, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x) * (1 + self.calls * self.by)

    for by, there, refused in ((1e-15, True, False), (1e-15, False, True), (1e-6, True, True)):
        theta, layout = ht.flatten(model := Shaken(by).double())
        loss = ht.make_loss(model, lambda out, _: out.sum(), layout)
        with elsewhere() as device, without_type_checks():
            place_of = device if there else torch.device("cpu")
            batch = (torch.ones(3, 2).to(place_of), None)
            context = pytest.raises(ht.HiddenStateError, match="another output") if refused else nullcontext()
            with context:
                loss.refuse_hidden_state(theta.to(place_of), batch)


@pytest.mark.parametrize("name", ALL)
def test_the_default_device_plays_no_part(name: str) -> None:
    """Of tensors made without a device, as in a notebook that has set CUDA for all of them."""
    expected = compared(ALL[name](place(CASE, "cpu")))
    torch.set_default_device("meta")
    try:
        found = compared(ALL[name](place(CASE, "cpu")))
    finally:
        torch.set_default_device(None)
    same(found, expected)


def test_the_place_refuses_what_cuda_refuses() -> None:
    with elsewhere() as device:
        x = torch.ones(3).to(device)
        assert (2 * x + torch.tensor(1.0))[torch.tensor([0, 2])].cpu().tolist() == [3.0, 3.0]
        with pytest.raises(RuntimeError, match="on the CPU meets one that is not"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="on the CPU meets one that is not"):
            x.gather(0, torch.tensor([0]))
        with pytest.raises(RuntimeError, match="a CPU generator"):
            torch.randn(3, device=device, generator=torch.Generator())
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
        assert float(x.sum()) == 3.0
