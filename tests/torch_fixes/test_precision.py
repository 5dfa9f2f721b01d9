"""Curvature is computed in full precision whatever the process was set to, and the setting is left as it was."""

import threading
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import pytest
import torch
from cases import NETWORKS
from device_cases import COMPUTED, Place, same, tensors
from torch import Tensor
from torch.func import grad

import hessian_tools as ht
from hessian_tools.torch_fixes import precision as switches_of_torch
from hessian_tools.torch_fixes.precision import full_precision

BACKENDS: Any = torch.backends
CPU_AND_CUDA = ("mkldnn.conv", "mkldnn.matmul", "cudnn.conv", "cuda.matmul", "cudnn.rnn")
HAS_SWITCHES = torch.__version__ >= "2.9"
switches = pytest.mark.skipif(not HAS_SWITCHES, reason="torch before 2.9 has no switch for each kind of product")
CONV = next(case for case in NETWORKS if case.name == "conv-batchnorm")
MLP = next(case for case in NETWORKS if case.name == "tanh-mlp")


def owners(*names: str) -> list[Any]:
    return [attrgetter(name)(BACKENDS) for name in names]


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    found = [*owners("mkldnn", "cudnn", *CPU_AND_CUDA), BACKENDS] if HAS_SWITCHES else []
    before = [owner.fp32_precision for owner in found]
    yield
    for owner, precision in zip(found, before, strict=True):
        owner.fp32_precision = precision


def single(case: Any) -> Place:
    """In float32, the precision that autocast lowers; with a loss of its own, of which no trace is kept."""
    x, y = case.batch
    loss = ht.make_loss(case.loss.model, case.loss.criterion, case.loss.layout)
    return Place(loss, case.thetas.float(), (x.float(), y.float() if y.is_floating_point() else y))


def test_autocast_spoils_what_is_not_protected() -> None:
    """So that the next test can fail."""
    here = single(CONV)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(grad(here.loss)(here.thetas[0], tuple(leaf[0] for leaf in here.batch)))
    assert (found[1] - found[0]).norm() > 1e-3 * found[0].norm()


@pytest.mark.parametrize("name", [name for name in COMPUTED if name != "eigenpairs-exhausted"])
def test_autocast_changes_nothing(name: str) -> None:
    compute: Callable[[Any], Any] = COMPUTED[name]
    for case in (MLP, CONV) if name in ("product-traced", "product-direct", "top_eigenpairs") else (MLP,):
        with torch.autocast("cpu", torch.bfloat16):
            found = tensors(compute(single(case)))
            assert torch.is_autocast_enabled("cpu")
        expected = tensors(compute(single(case)))
        assert all(a.dtype == b.dtype for a, b in zip(found, expected, strict=True))
        same(found, expected)


def test_parts_and_the_search_for_them_leave_no_lowered_trace() -> None:
    here = single(MLP)
    H = ht.hessian(here.loss, here.thetas, here.batch, route="traced")
    with torch.autocast("cpu", torch.bfloat16):
        assert len(H.parts()) == 1
    V = here.drawn(H.num_params, 2)
    expected = ht.hessian(single(MLP).loss, here.thetas, here.batch, route="traced") @ V
    assert torch.equal(H @ V, expected)


def said() -> list[str]:
    return [owner.fp32_precision for owner in owners(*CPU_AND_CUDA)]


def seen_within(loss: ht.Loss) -> tuple[Callable[..., Tensor], list[list[str]]]:
    """The loss as a plain function that writes down what torch was told when it ran."""
    seen: list[list[str]] = []

    def told(theta: Tensor, batch: Any) -> Tensor:
        seen.append(said())
        return loss(theta, batch)

    return told, seen


@switches
@pytest.mark.parametrize("on_cuda", [False, True])
def test_float32_means_float32_within_and_what_it_meant_after(monkeypatch: pytest.MonkeyPatch, on_cuda: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_cuda)
    torch.set_float32_matmul_precision("medium")
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"
    before = said()
    assert before == ["bf16", "bf16", "tf32", "tf32", "tf32"]
    here = single(MLP)
    loss, seen = seen_within(here.loss)
    ht.top_eigenpairs(ht.hessian(loss, here.thetas, here.batch), k=1)
    assert seen
    assert all(told[:2] == ["ieee"] * 2 for told in seen)
    assert all((told[2:] == ["ieee"] * 3) == on_cuda for told in seen)
    assert said() == before
    assert torch.get_float32_matmul_precision() == "medium"


@switches
@pytest.mark.parametrize("general", ["highest", "high", "medium"])
def test_torchs_older_names_can_be_asked_for_within(monkeypatch: pytest.MonkeyPatch, general: str) -> None:
    """Torch refuses where they disagree with the new ones: in ``cudnn.flags``, and wherever a network is compiled."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def older() -> list[Any]:
        return [torch.get_float32_matmul_precision(), BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32]

    def without_cudnn() -> list[Any]:
        with BACKENDS.cudnn.flags(enabled=False):
            return older()

    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(general)
    try:
        before, before_new = older(), said()
        assert before == [general, general != "highest", True]
        assert full_precision(older)() == ["highest", False, False]
        assert full_precision(without_cudnn)()[:2] == ["highest", False]
        assert full_precision(said)() == ["ieee" if was != "none" else "none" for was in said()]
        assert (older(), said()) == (before, before_new)
    finally:
        torch.set_float32_matmul_precision(found)


@switches
def test_older_names_that_disagree_already_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cudnn.rnn.fp32_precision = "ieee", "tf32"
    before = said()
    assert full_precision(lambda: said()[2:])() == ["ieee", said()[3], "ieee"]
    assert said() == before


@switches
def test_a_switch_that_followed_the_general_one_follows_it_still() -> None:
    torch.backends.fp32_precision = "tf32"
    full_precision(lambda: None)()
    assert BACKENDS.mkldnn.matmul.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert BACKENDS.mkldnn.matmul.fp32_precision == "ieee"


@switches
def test_switches_are_put_back_after_an_error_and_for_each_thread() -> None:
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"

    @full_precision
    def fails() -> None:
        assert BACKENDS.mkldnn.conv.fp32_precision == "ieee"
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fails()
        assert BACKENDS.mkldnn.conv.fp32_precision == "bf16"

    found: list[bool] = []

    @full_precision
    def there() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found.append(full_precision(torch.is_autocast_enabled)("cpu"))  # the caller's own wish, within

    with torch.autocast("cpu", torch.bfloat16):
        thread = threading.Thread(target=there)
        thread.start()
        thread.join()
    assert found == [True]


class Interrupted:
    """A switch at whose turning Ctrl-C comes, just after it has turned."""

    def __init__(self) -> None:
        self.said, self.turned = "bf16", False

    @property
    def precision(self) -> str:
        return self.said

    @precision.setter
    def precision(self, said: str) -> None:
        self.said = said
        if not self.turned:
            self.turned = True
            raise KeyboardInterrupt


def test_an_interrupt_while_switches_turn_leaves_none_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Interrupted()
    monkeypatch.setattr(switches_of_torch, "ON_CPU", ((switch, "precision"),))
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(KeyboardInterrupt):
            full_precision(lambda: None)()
        assert torch.is_autocast_enabled("cpu")
    assert switch.turned
    assert switch.said == "bf16"


def test_loops_of_ones_own_are_read_in_full_precision() -> None:
    here, states = single(MLP), single(MLP).thetas
    batch = tuple(leaf[0] for leaf in here.batch)
    expected = ht.trajectory_from(here.loss, states, batch, query=batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = ht.trajectory_from(here.loss, states, batch, query=batch)
    same(tensors(found), tensors(expected))
    assert found.query_loss is not None
    assert found.query_loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_too_coarse_are_refused(dtype: torch.dtype) -> None:
    case = single(MLP)
    with pytest.raises(ValueError, match="in which second derivatives mean little; give float32 or float64"):
        ht.hessian(case.loss, case.thetas.to(dtype), case.batch)


@pytest.mark.skipif(HAS_SWITCHES, reason="since torch 2.9 there is a switch for each kind of product")
def test_the_two_old_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def told() -> list[bool]:
        return [BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32]

    BACKENDS.cuda.matmul.allow_tf32 = True
    try:
        assert told() == [True, True]
        assert full_precision(told)() == [False, False]
        assert told() == [True, True]
    finally:
        BACKENDS.cuda.matmul.allow_tf32 = False
