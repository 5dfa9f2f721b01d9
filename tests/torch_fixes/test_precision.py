"""Curvature is computed in full precision even where the process is set to less, and the setting is left as it was."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import Any

import pytest
import torch
from cases import NETWORKS
from device_cases import COMPUTED, PlacedCase, same, tensors
from torch import Tensor, nn
from torch.func import grad

import hessian_tools as ht
from hessian_tools.data import SineLineTasks
from hessian_tools.torch_fixes import precision as precision_module
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.train import task_loss
from hessian_tools.train.outer import add_task_gradient

BACKENDS: Any = torch.backends
# The first two are switches of the CPU.
CPU_AND_CUDA = ("mkldnn.conv", "mkldnn.matmul", "cudnn.conv", "cuda.matmul", "cudnn.rnn")
HAS_SWITCHES = torch.__version__ >= "2.9"
switches = pytest.mark.skipif(not HAS_SWITCHES, reason="torch before 2.9 has no switch for each kind of product")
CONV = next(case for case in NETWORKS if case.name == "conv-batchnorm")
MLP = next(case for case in NETWORKS if case.name == "tanh-mlp")


def owners(*names: str) -> list[Any]:
    """The objects of ``torch.backends`` that have these names; each carries a switch ``fp32_precision``."""
    return [attrgetter(name)(BACKENDS) for name in names]


@pytest.fixture(autouse=True)
def switches_restored() -> Iterator[None]:
    switched = [*owners("mkldnn", "cudnn", *CPU_AND_CUDA), BACKENDS] if HAS_SWITCHES else []
    before = [owner.fp32_precision for owner in switched]
    yield
    for owner, precision in zip(switched, before, strict=True):
        owner.fp32_precision = precision


def float32_case(case: Any) -> PlacedCase:
    """The case in float32, which autocast would lower, with a new loss, for which no traced graph is cached yet."""
    x, y = case.batch
    loss = ht.make_loss(case.loss.model, case.loss.criterion, case.loss.layout)
    return PlacedCase(loss, case.thetas.float(), (x.float(), y.float() if y.is_floating_point() else y))


def test_autocast_changes_a_gradient_that_is_not_protected() -> None:
    """Autocast has an effect on unprotected code; otherwise the next test could not fail."""
    placed = float32_case(CONV)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradients.append(grad(placed.loss)(placed.thetas[0], tuple(leaf[0] for leaf in placed.batch)))
    assert (gradients[1] - gradients[0]).norm() > 1e-3 * gradients[0].norm()


# COMPUTED: results of curvature by name, each as a function of a case; ``same`` compares up to rounding.
# "eigenpairs-exhausted" is left out, because it computes in float64, which autocast does not lower.
@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in COMPUTED if name != "eigenpairs-exhausted"])
def test_autocast_changes_no_curvature(name: str) -> None:
    compute: Callable[[Any], Any] = COMPUTED[name]
    for case in (MLP, CONV) if name in ("product-traced", "product-direct", "top_eigenpairs") else (MLP,):
        with torch.autocast("cpu", torch.bfloat16):
            result = tensors(compute(float32_case(case)))
            assert torch.is_autocast_enabled("cpu")
        expected = tensors(compute(float32_case(case)))
        assert all(a.dtype == b.dtype for a, b in zip(result, expected, strict=True))
        same(result, expected)


@pytest.mark.slow
def test_splitting_the_hessian_into_parts_keeps_no_graph_of_lower_precision() -> None:
    """``parts`` traces the product to know how many points fit into memory, and that trace is used later."""
    placed = float32_case(MLP)
    H = ht.hessian(placed.loss, placed.thetas, placed.batch, route="traced")
    with torch.autocast("cpu", torch.bfloat16):
        assert len(H.parts()) == 1
    V = placed.random(H.num_params, 2)
    expected = ht.hessian(float32_case(MLP).loss, placed.thetas, placed.batch, route="traced") @ V
    assert torch.equal(H @ V, expected)


def precisions() -> list[str]:
    return [owner.fp32_precision for owner in owners(*CPU_AND_CUDA)]


def recording_loss(loss: ht.Loss) -> tuple[Callable[..., Tensor], list[list[str]]]:
    """The loss as a plain function, and a list to which every evaluation adds the precisions it ran with."""
    seen: list[list[str]] = []

    def recording(theta: Tensor, batch: Any) -> Tensor:
        seen.append(precisions())
        return loss(theta, batch)

    return recording, seen


@switches
@pytest.mark.parametrize("on_cuda", [False, True])
def test_products_are_computed_in_float32_and_the_settings_return_afterwards(
    monkeypatch: pytest.MonkeyPatch, on_cuda: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_cuda)
    torch.set_float32_matmul_precision("medium")
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"
    before = precisions()
    assert before == ["bf16", "bf16", "tf32", "tf32", "tf32"]
    placed = float32_case(MLP)
    loss, seen = recording_loss(placed.loss)
    ht.top_eigenpairs(ht.hessian(loss, placed.thetas, placed.batch), k=1)
    assert seen
    assert all(within[:2] == ["ieee"] * 2 for within in seen)
    assert all((within[2:] == ["ieee"] * 3) == on_cuda for within in seen)
    assert precisions() == before
    assert torch.get_float32_matmul_precision() == "medium"


class RecordingNetwork(nn.Module):
    """A linear network that adds the precisions to ``seen`` at each forward pass and each reverse pass."""

    def __init__(self, seen: list[list[str]]) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(1, 1), seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(precisions())
        out = self.linear(x)
        if out.requires_grad:
            out.register_hook(lambda gradient: self.seen.append(precisions()))
        return out


def recorded_run(seen: list[list[str]], *, reduced: bool, **options: Any) -> ht.TrainConfig:
    """A short run that adds the precisions of its forward passes and reverse passes to ``seen``."""
    if reduced:  # otherwise the default is tested
        options["reduced_precision"] = True
    return ht.TrainConfig(
        learner=ht.learners.maml(2, 0.01),
        tasks=SineLineTasks(),
        network=partial(RecordingNetwork, seen),
        checkpoints=(0, 2),
        meta_batch=2,
        validation_tasks=1,
        **options,
    )


@switches
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_training_and_evaluation_are_in_float32_unless_training_is_to_be_in_less(
    monkeypatch: pytest.MonkeyPatch, batched: bool, reduced: bool
) -> None:
    """TF32 is torch's default for convolutions on CUDA, and here a script has asked for less than float32 as well."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    seen: list[list[str]] = []
    config = recorded_run(seen, reduced=reduced, batched=batched)
    full = [["ieee"] * 5]
    torch.set_float32_matmul_precision("medium")
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"
    before = precisions()
    for checkpoint in ht.meta_train(config):
        assert precisions() == before
        if checkpoint.meta_step == 0:
            seen.clear()
    training = list(seen)
    assert len(training) > 4 and (before in training) == reduced
    assert all(within == before for within in training[:4]) if reduced else training == full * len(training)
    loss, theta = task_loss(config)
    seen.clear()
    ht.evaluate(config.learner, loss, theta, config.tasks, split="test", num_tasks=1, seed=0)
    assert seen and seen == full * len(seen)
    assert precisions() == before


@switches
@pytest.mark.parametrize("reduced", [False, True])
def test_a_task_that_another_process_computes_is_in_the_precision_of_the_run(
    monkeypatch: pytest.MonkeyPatch, reduced: bool
) -> None:
    """Worker processes, and those of a group, call ``add_task_gradient`` and not the function of a whole step."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    seen: list[list[str]] = []
    config = recorded_run(seen, reduced=reduced)
    loss, theta = task_loss(config)
    torch.set_float32_matmul_precision("medium")
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"
    before = precisions()
    add_task_gradient(config, loss, theta.requires_grad_(), 0, 1)
    assert len(seen) > 4 and seen == [before if reduced else ["ieee"] * 5] * len(seen)
    assert precisions() == before


@switches
@pytest.mark.parametrize("general", ["highest", "high", "medium"])
def test_the_older_names_of_the_switches_can_be_read_in_full_precision(
    monkeypatch: pytest.MonkeyPatch, general: str
) -> None:
    """Torch raises an error if the old and the new names disagree, in ``cudnn.flags`` and when it compiles."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def older() -> list[Any]:
        return [torch.get_float32_matmul_precision(), BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32]

    def without_cudnn() -> list[Any]:
        with BACKENDS.cudnn.flags(enabled=False):
            return older()

    precision_before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(general)
    try:
        before, before_new = older(), precisions()
        assert before == [general, general != "highest", True]
        assert full_precision(older)() == ["highest", False, False]
        assert full_precision(without_cudnn)()[:2] == ["highest", False]  # cudnn.flags sets the third itself
        # A switch at "none" follows another one, which is set, and is itself not written.
        assert full_precision(precisions)() == ["ieee" if was != "none" else "none" for was in before_new]
        assert (older(), precisions()) == (before, before_new)
    finally:
        torch.set_float32_matmul_precision(precision_before)


@switches
def test_older_names_that_disagree_with_the_new_ones_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cudnn.allow_tf32`` cannot be read where the new names of convolutions and recurrent layers disagree."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cudnn.rnn.fp32_precision = "ieee", "tf32"
    before = precisions()
    assert full_precision(lambda: precisions()[2:])() == ["ieee", precisions()[3], "ieee"]
    assert precisions() == before


@switches
def test_a_switch_that_followed_the_general_one_follows_it_afterwards() -> None:
    torch.backends.fp32_precision = "tf32"
    full_precision(lambda: None)()
    assert BACKENDS.mkldnn.matmul.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert BACKENDS.mkldnn.matmul.fp32_precision == "ieee"


@switches
def test_switches_are_restored_after_an_error() -> None:
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"

    @full_precision
    def fails() -> None:
        assert BACKENDS.mkldnn.conv.fp32_precision == "ieee"
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fails()
        assert BACKENDS.mkldnn.conv.fp32_precision == "bf16"


@switches
def test_autocast_that_is_entered_in_full_precision_stays_on_in_a_thread_too() -> None:
    """Autocast belongs to a thread: that of the main thread says nothing about the other one."""
    autocast: list[bool] = []

    @full_precision
    def in_the_thread() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            autocast.append(full_precision(torch.is_autocast_enabled)("cpu"))

    with torch.autocast("cpu", torch.bfloat16):
        thread = threading.Thread(target=in_the_thread)
        thread.start()
        thread.join()
    assert autocast == [True]


class Interrupted:
    """A switch that simulates Ctrl-C just after it is written for the first time."""

    def __init__(self) -> None:
        self.value, self.written = "bf16", False

    @property
    def precision(self) -> str:
        return self.value

    @precision.setter
    def precision(self, value: str) -> None:
        self.value = value
        if not self.written:
            self.written = True
            raise KeyboardInterrupt


def test_an_interrupt_while_switches_are_written_restores_all(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Interrupted()
    monkeypatch.setattr(precision_module, "ON_CPU", ((switch, "precision"),))
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(KeyboardInterrupt):
            full_precision(lambda: None)()
        assert torch.is_autocast_enabled("cpu")
    assert switch.written
    assert switch.value == "bf16"


def test_a_trajectory_of_another_loop_is_measured_in_full_precision() -> None:
    placed, states = float32_case(MLP), float32_case(MLP).thetas
    batch = tuple(leaf[0] for leaf in placed.batch)
    expected = ht.trajectory_from(placed.loss, states, batch, query=batch)
    with torch.autocast("cpu", torch.bfloat16):
        result = ht.trajectory_from(placed.loss, states, batch, query=batch)
    same(tensors(result), tensors(expected))
    assert result.query_loss is not None
    assert result.query_loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_precision_are_refused(dtype: torch.dtype) -> None:
    case = float32_case(MLP)
    with pytest.raises(ValueError, match="in which second derivatives mean little; give float32 or float64"):
        ht.hessian(case.loss, case.thetas.to(dtype), case.batch)


@pytest.mark.skipif(HAS_SWITCHES, reason="since torch 2.9 there is a switch for each kind of product")
def test_the_two_switches_of_torch_before_2_9(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def settings() -> list[bool]:
        return [BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32]

    BACKENDS.cuda.matmul.allow_tf32 = True
    try:
        assert settings() == [True, True]
        assert full_precision(settings)() == [False, False]
        assert settings() == [True, True]
    finally:
        BACKENDS.cuda.matmul.allow_tf32 = False
