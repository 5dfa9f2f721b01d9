"""A Lanczos run that was ended goes on from its last restart, and a folder of another run is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

import hessian_tools as ht

N = 400
SPECTRUM = torch.linspace(0.1, 1, N, dtype=torch.float64) ** 3
OPTIONS: dict[str, Any] = {"k": 3, "rtol": 1e-9, "max_basis": 12, "max_matvecs": 2000, "method": "lanczos"}


class Stopped(Exception):
    """Stands for the end of a process."""


def matrix(spectrum: torch.Tensor = SPECTRUM, *, stop_after: int | None = None) -> Any:
    """A diagonal Hessian, whose products stop after a number of them."""
    H = ht.hessian(lambda t, a: (a * t**2).sum() / 2, torch.zeros(N, dtype=torch.float64), spectrum)
    if stop_after is None:
        return H

    class Stopping(type(H)):
        count = 0

        def products(self, V: torch.Tensor) -> torch.Tensor:
            Stopping.count += 1
            if Stopping.count > stop_after:
                raise Stopped
            return super().products(V)

    return Stopping(H.prepared, H.single)


@pytest.mark.parametrize("copies", [False, True])
def test_a_run_that_was_ended_twice_gives_the_same_bits(tmp_path: Path, copies: bool) -> None:
    whole = ht.top_eigenpairs(matrix(), vectors=True, copies=copies, **OPTIONS)
    for _ in range(2):
        with pytest.raises(Stopped):
            ht.top_eigenpairs(matrix(stop_after=30), vectors=True, copies=copies, folder=tmp_path, **OPTIONS)
    counted = matrix(stop_after=10**6)
    resumed = ht.top_eigenpairs(counted, vectors=True, copies=copies, folder=tmp_path, **OPTIONS)
    assert torch.equal(resumed.values, whole.values) and torch.equal(resumed.vectors, whole.vectors)
    assert torch.equal(resumed.num_matvecs, whole.num_matvecs) and bool(resumed.converged.all())
    assert type(counted).count < int(whole.num_matvecs) - 20  # most products of the ended runs were not made again
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("stop_after", range(8, 13))
def test_a_run_remembers_the_values_at_its_last_breakdown(tmp_path: Path, stop_after: int) -> None:
    """Of five distinct eigenvalues the Krylov space is exhausted after five steps, before the first restart."""
    spectrum = torch.arange(N, dtype=torch.float64) % 5 + 1
    options = OPTIONS | {"k": 1, "max_basis": 8, "copies": False}
    whole = ht.top_eigenpairs(matrix(spectrum), **options)
    with pytest.raises(Stopped):
        ht.top_eigenpairs(matrix(spectrum, stop_after=stop_after), folder=tmp_path, **options)
    resumed = ht.top_eigenpairs(matrix(spectrum), folder=tmp_path, **options)
    assert torch.equal(resumed.num_matvecs, whole.num_matvecs) and torch.equal(resumed.values, whole.values)


def ended(folder: Path) -> None:
    with pytest.raises(Stopped):
        ht.top_eigenpairs(matrix(stop_after=40), copies=False, folder=folder, **OPTIONS)


def test_a_run_of_another_matrix_or_with_other_settings_is_refused(tmp_path: Path) -> None:
    ended(tmp_path)
    with pytest.raises(ValueError, match="another matrix"):
        ht.top_eigenpairs(matrix(SPECTRUM * (1 + 1e-9)), copies=False, folder=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="wanted .'3 LM'., and not .'2 LM'."):
        ht.top_eigenpairs(matrix(), copies=False, folder=tmp_path, **OPTIONS | {"k": 2})
    with pytest.raises(ValueError, match="max_basis 12, and not 14"):
        ht.top_eigenpairs(matrix(), copies=False, folder=tmp_path, **OPTIONS | {"max_basis": 14})
    assert bool(ht.top_eigenpairs(matrix(), copies=False, folder=tmp_path, **OPTIONS | {"rtol": 1e-3}).converged.all())


def test_damaged_files_are_refused_and_unfinished_ones_ignored(tmp_path: Path) -> None:
    ended(tmp_path)
    (tmp_path / "process-0-of-1" / "999").mkdir()  # a save that was ended before its last file
    (vector,) = tmp_path.rglob("[1-9]*/vector-1.safetensors")
    content = bytearray(vector.read_bytes())
    content[-1] ^= 1
    vector.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"vector-1.safetensors was changed"):
        ht.top_eigenpairs(matrix(), copies=False, folder=tmp_path, **OPTIONS)
    vector.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        ht.top_eigenpairs(matrix(), copies=False, folder=tmp_path, **OPTIONS)


def test_several_points_are_refused(tmp_path: Path) -> None:
    H = ht.hessian(lambda t, a: (a * t**2).sum(), torch.zeros(2, N), SPECTRUM.float(), shared=True)
    with pytest.raises(ValueError, match="keeps the run of one point, but the operator has 2"):
        ht.top_eigenpairs(H, folder=tmp_path, method="lanczos")
