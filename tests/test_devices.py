"""Nothing of the library stays on the CPU when its point lies elsewhere; on a machine without a GPU, too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import without_type_checks
from elsewhere import ELSEWHERE, elsewhere
from everywhere import COMPUTED, DEVICE_CASES, compared, place, same, tensors

CASE = next(case for case in DEVICE_CASES if case.name == "tanh-mlp")
CONV = next(case for case in DEVICE_CASES if case.name == "conv-batchnorm")
# The kinds of operation that a convolutional network adds.
ALSO_CONV = ("product-direct", "product-gauss-newton", "gauss_newton_spectrum", "record")
# Go the way of extremal_eigenpairs; a GPU tries them as well.
SAME_WAY = ("top_eigenpairs", "eigenpairs-of-a-block")


@pytest.mark.parametrize("name", [name for name in COMPUTED if name not in SAME_WAY])
def test_everything_runs_where_theta_lies_and_gives_the_same(name: str) -> None:
    compute: Callable[[Any], Any] = COMPUTED[name]
    for case in (CASE, CONV) if name in ALSO_CONV else (CASE,):
        with without_type_checks():
            on_cpu = compute(place(case, "cpu"))
            with elsewhere() as device:
                found = compute(place(case, device))
                assert all(tensor.device == ELSEWHERE for tensor in tensors(found))
                there = compared(found)
        same([tensor.inner for tensor in there], compared(on_cpu))


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
