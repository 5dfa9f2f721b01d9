"""Files of a run in the safetensors format, never pickles: checkpoints, and the state from which a run is resumed."""

import hashlib
import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor

from hessian_tools.runs.files import ASIDE, CHECKSUM, DamagedFileError, json_digest, refuse_unreadable, write_atomic
from hessian_tools.runs.manifest import is_of_first_version, num_parameters, training_digest

FOLDER = "checkpoints"
ABOUT = "about"  # the entry of a file's metadata that holds, as JSON, its checksum and facts such as its run


def save(path: Path, tensors: Mapping[str, Tensor], **facts: Any) -> None:
    """Write tensors atomically, with their checksum and with JSON-like facts such as their run and meta-iteration."""
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One entry holds all facts, because safetensors would write several entries in an order that changes each time.
    about = json.dumps(facts | {CHECKSUM: _digest(copies, facts)}, sort_keys=True)
    # The bytes are written here, because the error that safetensors' writer raises does not show that the disk is full.
    write_atomic(path, lambda part: part.write_bytes(serialised(copies, metadata={ABOUT: about})))


def load(path: Path, *, at_least: int = 1, needs_facts: bool = False, **facts: Any) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; among them is always the vector ``theta`` of the meta-parameters.

    at_least: the smallest number of meta-parameters that the file must hold.
    needs_facts: whether a file without any facts and checksum is refused. Version 0.1 wrote none.
    facts: the facts with which the file must have been saved; a fact that is None is not compared.

    Raises DamagedFileError with the file's name where the file cannot be read, was changed after it was written, was
    saved with other facts, or holds no vector ``theta`` of this length.
    """
    refuse_unreadable(path, max_bytes=inf)  # a network may have any size
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        about = json.loads(metadata[ABOUT]) if metadata else None
        undamaged = about is None or about.pop(CHECKSUM) == _digest(tensors, about)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError) as e:
        raise DamagedFileError(f"{path} cannot be read as safetensors ({e}); {ASIDE}") from e
    if not undamaged:
        raise DamagedFileError(f"{path} was changed after it was written (its checksum does not match); {ASIDE}")
    if about is None and needs_facts:
        raise DamagedFileError(f"{path} has no checksum, so it is not the one that this run saved; {ASIDE}")
    for fact, expected in facts.items():
        if about is not None and expected is not None and about.get(fact) != expected:
            raise DamagedFileError(
                f"{path} does not belong here: its {fact} is {about.get(fact)}, but here it must be {expected}; {ASIDE}"
            )
    theta = tensors.get("theta")
    if theta is None or theta.ndim != 1 or not theta.is_floating_point() or len(theta) < at_least:
        held = "nothing" if theta is None else f"{theta.dtype} of shape {list(theta.shape)}"
        raise DamagedFileError(
            f"{path} is no checkpoint of this run: as theta it holds {held}, but it must hold a vector of {at_least} or"
            f" more floating-point numbers; {ASIDE}"
        )
    return tensors


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the names, shapes, types and bytes of the tensors, and of the facts about them."""
    digest = hashlib.sha256(json_digest(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json_digest([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def checkpoint_path(folder: Path, meta_step: int) -> Path:
    """The file of the parameters at one meta-iteration of a run."""
    return folder / FOLDER / f"{meta_step:07d}.safetensors"


def load_theta(folder: Path, meta_step: int) -> Tensor:
    """The meta-parameters [meta] at one meta-iteration of a run; the file must be of that run and meta-iteration."""
    path = checkpoint_path(folder, meta_step)
    if not path.exists():
        raise DamagedFileError(f"{folder} has no checkpoint at meta-iteration {meta_step}; train the run first")
    return load_checkpoint(folder, meta_step)["theta"]


def load_checkpoint(folder: Path, meta_step: int) -> dict[str, Tensor]:
    """The tensors ``theta`` [meta] and ``validation`` (loss and accuracy) of the checkpoint at one meta-iteration."""
    path = checkpoint_path(folder, meta_step)
    run = training_digest(folder)  # it raises DamagedFileError where the manifest is damaged
    needs_facts = not is_of_first_version(folder)
    tensors = load(path, at_least=num_parameters(folder), needs_facts=needs_facts, run=run, meta_step=meta_step)
    if "validation" not in tensors or tensors["validation"].shape != (2,):
        raise DamagedFileError(f"{path} holds no loss and accuracy of validation; {ASIDE}")
    return tensors


def state_path(folder: Path) -> Path:
    """The file of the newest complete training state of a run."""
    return folder / FOLDER / "state.safetensors"


def state(optimiser: torch.optim.Optimizer, theta: Tensor, meta_step: int) -> dict[str, Tensor]:
    """Everything that resuming needs: the parameters, the moments if the optimiser is Adam, and the meta-iteration.

    The episodes need no saving, because they follow from the seed and the meta-iteration.
    """
    tensors = {"theta": theta.detach(), "meta_step": torch.tensor(meta_step, device="cpu")}
    return tensors | {f"adam.{name}": value for name, value in optimiser.state.get(theta, {}).items()}


def restore(optimiser: torch.optim.Optimizer, theta: Tensor, path: Path, **facts: Any) -> int:
    """Put a saved state back into ``optimiser`` and ``theta``; returns the meta-iteration it was saved at.

    facts: as in :func:`load`. Raises DamagedFileError where the file does not hold the state of such a run.
    """
    tensors = load(path, at_least=len(theta), **facts)
    moments = {name.removeprefix("adam."): t for name, t in tensors.items() if name.startswith("adam.")}
    fits = [tensors["theta"].shape == theta.shape, "meta_step" in tensors and tensors["meta_step"].numel() == 1]
    fits += [moment.shape in (theta.shape, ()) for moment in moments.values()]
    if not all(fits):
        raise DamagedFileError(
            f"{path} does not hold the state of this run, whose theta has {len(theta)} numbers; {ASIDE}"
        )
    with torch.no_grad():
        theta.copy_(tensors["theta"])
    if moments:
        packed = optimiser.state_dict()  # in it, theta, the optimiser's only parameter, has the number 0
        optimiser.load_state_dict({"state": {0: moments}, "param_groups": packed["param_groups"]})
    return int(tensors["meta_step"])
