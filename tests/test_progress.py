"""Tests that ``progress=`` has the same meaning in every function: it is None, True, or a callable."""

import io
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import SPECTRA, operator, relu_mlp, symmetric

import hessian_tools as ht
from hessian_tools import progress as progress_module
from hessian_tools.data import SineLineTasks
from hessian_tools.progress import ProgressCounter

MATRICES = symmetric(SPECTRA["decaying"])
CASE = relu_mlp()

CALLS: dict[str, Callable[..., Any]] = {
    "top_eigenpairs": lambda **options: ht.top_eigenpairs(operator(MATRICES), k=2, method="lanczos", **options),
    "extremal_eigenpairs": lambda **options: ht.extremal_eigenpairs(operator(MATRICES), magnitude=1, **options),
    "spectrum": lambda **options: ht.spectrum(operator(MATRICES), **options),
    "trace": lambda **options: ht.trace(operator(MATRICES), num_probes=20, **options),
    "trace, exact": lambda **options: ht.trace(operator(MATRICES), **options),
    "trace, from the outputs": lambda **options: ht.trace(
        ht.gauss_newton(CASE.loss, CASE.thetas, CASE.batch), method="exact", **options
    ),
    "moments": lambda **options: ht.moments(operator(MATRICES), num_probes=20, **options),
    "moments, exact": lambda **options: ht.moments(operator(MATRICES), **options),
    "frobenius_squared": lambda **options: ht.frobenius_squared(operator(MATRICES), num_probes=20, **options),
    "diagonal": lambda **options: ht.diagonal(operator(MATRICES), num_probes=20, **options),
    "spectral_density": lambda **options: ht.spectral_density(operator(MATRICES), num_matvecs=8, **options),
    "spectral_density, exact": lambda **options: ht.spectral_density(operator(MATRICES), **options),
    "singular_values": lambda **options: ht.singular_values(
        ht.adaptation_jacobian(operator(MATRICES), 0.1), k=2, **options
    ),
    "check_operator": lambda **options: ht.check_operator(operator(MATRICES), **options),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_callable_gets_rising_whole_numbers_up_to_the_total(name: str) -> None:
    reports: list[tuple[int, int]] = []
    CALLS[name](progress=lambda done, total: reports.append((done, total)))
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(set(done)) and len(set(totals)) == 1
    assert all(type(number) is int for pair in reports for number in pair)
    assert done[-1] == totals[0]


@pytest.mark.parametrize("name", CALLS)
def test_true_writes_to_standard_error_and_none_writes_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    CALLS[name](progress=None)
    assert capsys.readouterr() == ("", "")
    CALLS[name](progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "(100 %), 0 s left" in err.splitlines()[-1]


def test_an_exception_that_the_callable_raises_stops_the_call() -> None:
    def refuse(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for name, call in CALLS.items():
        with pytest.raises(KeyboardInterrupt):
            call(progress=refuse)
            pytest.fail(name)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "rewrites"), [(Terminal, True), (io.StringIO, False)])
def test_a_terminal_shows_one_line_that_is_rewritten_and_a_log_shows_few_lines(
    stream: type[io.StringIO], rewrites: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(100))  # the simulated clock advances by a second whenever it is read
    monkeypatch.setattr(progress_module, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(sys, "stderr", written := stream())
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    counter = ProgressCounter(8, True)
    for _ in range(8):
        counter.add(1)
    text = written.getvalue()
    assert text.endswith("\n") and "8 of 8 (100 %), 0 s left" in text
    assert text.count("\r") == (8 if rewrites else 0)
    assert text.count("\n") == (1 if rewrites else 2)  # a log gets a line after five seconds and one at the end
    assert "4 of 8 (50 %), 4 s left" in text or not rewrites


class Handle:
    """What a notebook's ``display`` returns: it keeps what is shown below the cell."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> "Handle":
        assert raw and display_id and not self.shown, "a second display would add a second bar"
        self.shown.append(data)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(data)


def test_a_notebook_shows_one_bar_that_is_updated_in_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handle, shell = Handle(), SimpleNamespace(kernel=None)
    modules = SimpleNamespace(get_ipython=lambda: shell, display=handle)
    monkeypatch.setitem(sys.modules, "IPython", modules)
    seconds = iter(i / 50 for i in range(2000))  # the simulated clock advances by 20 ms whenever it is read
    monkeypatch.setattr(progress_module, "monotonic", lambda: next(seconds))
    counter = ProgressCounter(1000, True)
    for _ in range(1000):
        counter.add(1)
    assert capsys.readouterr() == ("", "")
    assert len(handle.shown) < 250  # not one update for each of the thousand
    assert handle.shown[-1]["text/plain"] == "1000 of 1000 (100 %), 0 s left"
    assert '<progress value="1000" max="1000"' in handle.shown[-1]["text/html"]
    del shell.kernel  # IPython in a terminal has no kernel, and its terminal or log is written to
    ProgressCounter(1, True).add(1)
    assert "1 of 1" in capsys.readouterr().err


def test_meta_training_with_true_counts_its_meta_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    config = ht.TrainConfig(
        learner=ht.learners.maml(1, 0.01),
        tasks=SineLineTasks(),
        network=partial(ht.MLP, [1, 8, 1]),
        checkpoints=(0, 2),
        validation_tasks=1,
    )
    list(ht.meta_train(config, progress=True))
    assert capsys.readouterr().err.splitlines()[-1].startswith("2 of 2 (100 %)")
    list(ht.meta_train(config))
    assert capsys.readouterr() == ("", "")


def test_progress_does_not_change_the_random_state() -> None:
    state = torch.get_rng_state()
    ht.trace(operator(MATRICES), progress=True)
    assert torch.equal(state, torch.get_rng_state())
