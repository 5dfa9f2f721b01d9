"""Saves a Lanczos run at each of its restarts, so that a run that was ended goes on from there with the same numbers.

A folder holds one run. Each process of the run keeps files of its own in the folder, one for each vector, so that
saving needs the memory of one vector only. The file with the numbers of the run is written last; without this file a
save does not count.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hessian_tools.curvature.eigen.batched_lanczos import BatchedLanczos, Limits
from hessian_tools.curvature.eigen.selection import Selection, rounding
from hessian_tools.curvature.operators.operator import Operator

STATE = "run.safetensors"  # the numbers of a run, beside its vectors
# The products of the saved matrix and of the present one with a random vector may differ by so many times ``rounding``.
SAME_PRODUCT = 100
# The arrays of a run and of its basis that change from step to step, by the names of their attributes.
RUN_ARRAYS = ("next_check", "last_check", "last_excess", "had_breakdown")
BASIS_ARRAYS = ("diagonal", "coupling", "scale", "breakdown", "dimension")
T = TypeVar("T")


class SavedRun:
    """The files of one Lanczos run at a single point. z: a random vector [param], the same in every run.

    A saved run is continued for H if the product of its matrix with z is that of H, and if the settings on which the
    numbers of the run depend are the same. ``rtol`` and ``max_matvecs`` may be others than before.
    """

    def __init__(self, folder: Path, H: Operator, selections: tuple[Selection, ...], limits: Limits, z: Tensor) -> None:
        if H.num_points not in (None, 1):
            raise ValueError(
                f"folder= keeps the run of one point, but the operator has {H.num_points}; give one point at a time, "
                "each with a folder of its own"
            )
        self.ranks = H.ranks
        rank, size = (0, 1) if self.ranks is None else (self.ranks.rank, self.ranks.size)
        self.folder = Path(folder) / f"process-{rank}-of-{size}"
        self.settings = {
            "wanted": [f"{selection.k} {selection.which}" for selection in selections if selection.k],
            "seed": limits.seed,
            "max_basis": limits.max_basis,
            "parameters": H.num_params,  # of this process
            "dtype": str(H.dtype),
        }
        product = H.products(z.expand(1, -1)[..., None].contiguous())[0, :, 0]
        # Three numbers stand for the product: its inner product with z and the norms of its two halves.
        parts = product.double().tensor_split(2)
        self.product = [float(product.double() @ z.double()), *(float(part.norm()) for part in parts)]
        self.rounding = SAME_PRODUCT * rounding(H.dtype)

    def save(self, run: BatchedLanczos) -> None:
        """Writes the state of a run that has just restarted, and removes the one before."""
        self._with_shared_errors(partial(self._write, run))
        for step in self._steps():  # only once all processes have written
            if step != run.steps:
                shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def resume(self, run: BatchedLanczos) -> None:
        """Brings a new run to the state that was saved last, if there is one.

        Raises ValueError where the folder holds a run of another matrix or with other settings.
        """
        steps = self._with_shared_errors(self._steps)
        common = set(steps) if self.ranks is None else set.intersection(*map(set, self.ranks.gather(steps)))
        if common:  # the saves that all processes have finished, of which the last one counts
            self._with_shared_errors(partial(self._read, run, max(common)))

    def remove(self) -> None:
        """Removes the files of a run that has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _with_shared_errors(self, function: Callable[[], T]) -> T:
        """``function()``; if it fails on one process, an error is raised on every process."""
        return function() if self.ranks is None else self.ranks.with_shared_errors(function)

    def _steps(self) -> list[int]:
        """The steps at which this process has finished a save; each save is a folder with this number as its name."""
        return sorted(int(path.parent.name) for path in self.folder.glob(f"[0-9]*/{STATE}"))

    def _write(self, run: BatchedLanczos) -> None:
        """Writes the files of this process."""
        basis, at = run.basis, self.folder / str(run.steps)
        at.mkdir(parents=True, exist_ok=True)
        checksums = []
        for i, row in enumerate(basis.rows[0, : basis.size + 1]):  # the last one is the vector to multiply next
            vector = row.cpu().contiguous()
            checksums.append(_checksum(vector))
            save_file({"vector": vector}, at / f"vector-{i}.safetensors")
        tensors = {name: torch.from_numpy(getattr(run, name)).clone() for name in RUN_ARRAYS}
        tensors |= {f"basis.{name}": torch.from_numpy(getattr(basis, name)).clone() for name in BASIS_ARRAYS}
        tensors["at_breakdown"] = run.rule.memory
        about: dict[str, Any] = {"settings": self.settings, "product": self.product, "checksums": checksums}
        about |= {"size": basis.size, "num_restarted": basis.num_restarted, "steps": run.steps}
        unfinished = at / f".{STATE}"
        save_file(tensors, unfinished, metadata={"about": json.dumps(about)})
        os.replace(unfinished, at / STATE)

    def _read(self, run: BatchedLanczos, step: int) -> None:
        """Brings a run to the state that this process has saved at a step."""
        at, basis = self.folder / str(step), run.basis
        tensors, header = _tensors(at / STATE)
        about = json.loads(header.get("about", "{}"))
        if (held := about.get("settings")) != self.settings:
            raise ValueError(
                f"{self.folder} holds a Lanczos run with {_words(held, self.settings)}; give the same, "
                "or another folder"
            )
        scale = max(map(abs, about["product"]))
        pairs = zip(about["product"], self.product, strict=True)
        if not all(abs(a - b) <= self.rounding * scale for a, b in pairs):
            raise ValueError(
                f"{self.folder} holds a Lanczos run of another matrix (another theta, loss or data): its product with "
                "a random vector differs; give another folder"
            )
        for i, checksum in enumerate(about["checksums"]):
            path = at / f"vector-{i}.safetensors"
            vector = _tensors(path)[0]["vector"]
            if _checksum(vector) != checksum:
                raise ValueError(
                    f"{path} was changed after it was written; move {self.folder} elsewhere, and start again"
                )
            basis.rows[0, i] = vector.to(basis.rows)
        for name in RUN_ARRAYS:
            setattr(run, name, tensors[name].numpy())
        for name in BASIS_ARRAYS:
            setattr(basis, name, tensors[f"basis.{name}"].numpy())
        basis.size, basis.num_restarted, run.steps = about["size"], about["num_restarted"], about["steps"]
        basis.next = basis.rows[:, basis.size]
        run.rule.memory = tensors["at_breakdown"]


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); move its folder elsewhere, and start again") from None


def _checksum(vector: Tensor) -> int:
    return zlib.crc32(vector.view(torch.uint8).numpy().data)


def _words(held: Any, wanted: dict[str, Any]) -> str:
    """The first setting in which a saved run differs, with both values."""
    held = held if isinstance(held, dict) else {}
    name = next(name for name, value in wanted.items() if held.get(name) != value)
    return f"{name} {held.get(name)}, and not {wanted[name]}"
