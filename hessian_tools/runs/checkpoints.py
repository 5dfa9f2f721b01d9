"""Checkpoints on disk, as safetensors and never as pickle, and the newest state, from which a run is resumed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor

from hessian_tools.runs.files import DamagedFileError, write_atomic

FOLDER = "checkpoints"


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically."""
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # The bytes are written here, because safetensors' own writer hides a full disk behind an error of its own.
    write_atomic(path, lambda part: part.write_bytes(serialised(copies)))


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; raises DamagedFileError with the file's name where it cannot be read."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        raise DamagedFileError(
            f"{path} cannot be read as safetensors ({e}); remove it and run the same command again"
        ) from e


def checkpoint_path(folder: Path, meta_step: int) -> Path:
    """The file of the parameters at one meta-iteration of a run."""
    return folder / FOLDER / f"{meta_step:07d}.safetensors"


def load_theta(folder: Path, meta_step: int) -> Tensor:
    """The meta-parameters [meta] at one meta-iteration of a run."""
    path = checkpoint_path(folder, meta_step)
    if not path.exists():
        raise DamagedFileError(f"{folder} has no checkpoint at meta-iteration {meta_step}; train the run first")
    return load(path)["theta"]


def state_path(folder: Path) -> Path:
    """The file of the newest complete training state of a run."""
    return folder / FOLDER / "state.safetensors"


def state(optimiser: torch.optim.Optimizer, theta: Tensor, meta_step: int) -> dict[str, Tensor]:
    """Everything that resuming needs: the parameters, Adam's moments, and the meta-iteration.

    The episodes need no saving, because they follow from the seed and the meta-iteration.
    """
    tensors = {"theta": theta.detach(), "meta_step": torch.tensor(meta_step, device="cpu")}
    return tensors | {f"adam.{name}": value for name, value in optimiser.state.get(theta, {}).items()}


def restore(optimiser: torch.optim.Optimizer, theta: Tensor, tensors: Mapping[str, Tensor]) -> int:
    """Put a saved state back into ``optimiser`` and ``theta``; returns the meta-iteration it was saved at."""
    with torch.no_grad():
        theta.copy_(tensors["theta"])
    moments = {name.removeprefix("adam."): t for name, t in tensors.items() if name.startswith("adam.")}
    if moments:
        packed = optimiser.state_dict()
        optimiser.load_state_dict({"state": {0: moments}, "param_groups": packed["param_groups"]})
    return int(tensors["meta_step"])
