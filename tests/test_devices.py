"""Tests that every result lies on the device of theta, which a fake device shows on a machine without a GPU."""

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
from device_placement import FAKE_DEVICE, fake_device
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools import curvature

pytestmark = pytest.mark.heavy

# The files that call what is tried on a GPU.
FILES_OF_GPU_TESTS = ("device_cases", "device_cases_derived", "test_gpu")
CASE = next(case for case in DEVICE_CASES if case.name == "tanh-mlp")
CONV = next(case for case in DEVICE_CASES if case.name == "conv-batchnorm")
ALL = COMPUTED | DERIVED | LEARNED
# For these cases, a convolutional network uses operations that the other network does not use.
ALSO_CONV = ("product-direct", "product-gauss-newton", "gauss_newton_spectrum", "record")
# These cases run the same code as others, so they are left out here and tried on a GPU only.
TRIED_ON_GPU_ONLY = ("top_eigenpairs", "eigenpairs-of-a-block", "maml", "boil")
# A trace misses the operations on fake tensors, because these tensors run them outside of torch's tracer.
NOT_TRACEABLE = ("product-traced",)


@pytest.mark.parametrize("name", [name for name in ALL if name not in TRIED_ON_GPU_ONLY + NOT_TRACEABLE])
def test_everything_runs_where_theta_lies_and_gives_the_same_numbers(name: str) -> None:
    compute: Callable[[Any], Any] = ALL[name]
    for case in (CASE, CONV) if name in ALSO_CONV else (CASE,):
        with without_type_checks():
            on_cpu = compute(place(case, "cpu"))
            with fake_device() as device:
                result = compute(place(case, device))
                assert all(tensor.device == FAKE_DEVICE for tensor in tensors(result))
                numbers = compared(result)
        same([tensor.inner for tensor in numbers], compared(on_cpu))


@pytest.mark.parametrize("name", NOT_TRACEABLE)
def test_a_trace_that_does_not_give_the_product_is_refused(name: str) -> None:
    with without_type_checks(), fake_device() as device, pytest.raises(ValueError, match="cannot be traced"):
        ALL[name](place(CASE, device))


# Functions without tensors on a device, and functions whose results trivially lie where their arguments do.
# ``hessian_of`` is made of functions that are tried.
WITHOUT_DEVICE = {"best_checkpoint", "cosine_null", "hessian_of", "overlap_null", "load_network", "stream"}


def test_every_public_function_is_tried_on_a_gpu() -> None:
    tried = "".join(Path(__file__).with_name(f"{name}.py").read_text() for name in FILES_OF_GPU_TESTS)
    public = {name: getattr(package, name) for package in (curvature, ht) for name in package.__all__}
    functions = {name for name, thing in public.items() if inspect.isfunction(thing)} - WITHOUT_DEVICE
    missing = [name for name in sorted(functions) if not re.search(rf"\b{name}\(", tried)]
    assert not missing, f"no test on a GPU calls {', '.join(missing)}"


def test_outputs_that_differ_in_rounding_are_no_hidden_state_on_a_gpu() -> None:
    class Shaken(nn.Module):
        """A layer whose outputs change a little with every call."""

        def __init__(self, by: float) -> None:
            super().__init__()
            self.layer, self.by, self.calls = nn.Linear(2, 2), by, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x) * (1 + self.calls * self.by)

    # A relative change of 1e-15 is rounding on a GPU, but not on a CPU, which repeats its results exactly.
    for by, on_device, refused in ((1e-15, True, False), (1e-15, False, True), (1e-6, True, True)):
        theta, layout = ht.flatten(model := Shaken(by).double())
        loss = ht.make_loss(model, lambda out, _: out.sum(), layout)
        with fake_device() as device, without_type_checks():
            where = device if on_device else torch.device("cpu")
            batch = (torch.ones(3, 2).to(where), None)
            context = pytest.raises(ht.HiddenStateError, match="another output") if refused else nullcontext()
            with context:
                loss.refuse_hidden_state(theta.to(where), batch)


@pytest.mark.parametrize("name", ALL)
def test_results_do_not_depend_on_the_default_device(name: str) -> None:
    """Nothing is made on the default device, which a notebook may have set to CUDA for all new tensors."""
    expected = compared(ALL[name](place(CASE, "cpu")))
    torch.set_default_device("meta")
    try:
        result = compared(ALL[name](place(CASE, "cpu")))
    finally:
        torch.set_default_device(None)
    same(result, expected)


def test_the_fake_device_refuses_what_cuda_refuses() -> None:
    with fake_device() as device:
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
