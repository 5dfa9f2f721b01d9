"""Whose a run's folder is: a run resumes itself, never another one."""

import hashlib
import re
from typing import Any

from hessian_tools.layout import ParamLayout
from hessian_tools.runs.files import read_json, write_json
from hessian_tools.runs.manifest import ForeignRunError
from hessian_tools.train.config import TrainConfig

NAME = "training.json"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object without words of its own; another one in each process


def claim(config: TrainConfig, layout: ParamLayout) -> None:
    """Write down what the run in ``config.folder`` is, or refuse a folder that holds another one.

    What may differ between the runs that make up one: which checkpoints are kept, how often states are saved,
    and how steps are taken (device, workers, batched, checkpointing). A folder from before this was written is taken.
    """
    if config.folder is None:
        return
    path, wanted = config.folder / NAME, _identity(config, layout)
    if not path.exists():
        write_json(path, wanted)
        return
    found = read_json(path)
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ForeignRunError(
                f"{config.folder} holds another run: its {key} is {_short(found.get(key))}, here it is"
                f" {_short(value)};\ngive another folder, or remove that one"
            )


def _identity(config: TrainConfig, layout: ParamLayout) -> dict[str, Any]:
    """All that a run's numbers follow from, in words; networks of equal parameters are not told apart."""
    network = {name: list(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    words = {name: _ADDRESS.sub("", repr(getattr(config, name))) for name in ("learner", "shot", "pretraining")}
    plain = (
        "seed", "meta_batch", "optimiser", "learning_rate", "validation_tasks", "validation_seed", "transductive"
    )  # fmt: skip
    numbers = {name: str(getattr(config, name)) for name in plain}
    start = hashlib.sha256(config.start.read_bytes()).hexdigest() if config.start else None
    return words | {"tasks": config.tasks.digest, "network": network, "head": layout.head, "start": start} | numbers


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 90 else f"{text[:87]}..."
