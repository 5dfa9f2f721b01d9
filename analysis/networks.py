"""Trained networks that a study takes over from the folder of another one, to measure other quantities of them.

``hessian-tools study FILE --from FOLDER`` does so where FOLDER has runs and no kept results. Everything on which
training depends must be the same; how the networks are measured, and the held-out tasks, may differ.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from analysis import store
from analysis.study import Study
from analysis.times import take_times
from hessian_tools.runs.files import fsync, read_json, write_atomic, write_json
from hessian_tools.runs.manifest import NAME as MANIFEST
from hessian_tools.runs.manifest import entries

RECORD = "networks.json"  # a file in the study's folder, which names the folder of the other study
# The settings of a run, and the facts about it, that may differ from those with which its network was trained. Of the
# data, the digest of the training tasks is compared in place of the settings (``training.refuse_changed_data``).
NOT_OF_TRAINING = ("measure", "quantity_sources", "data")
OF_THIS_STUDY = ("held_out_digest", "claims_digest")


def source_of(path: Path) -> Path | None:
    """The folder from which the study in a folder takes its networks, where it takes over any and the folder exists."""
    source = Path(read_json(path / RECORD, "folder")["folder"]) if (path / RECORD).exists() else None
    return source if source is not None and source.is_dir() else None


def write_source(study: Study) -> None:
    """Record from where the study takes its networks, so that an interrupted command goes on without ``--from``."""
    if study.networks_from is not None:
        write_json(study.path / RECORD, {"folder": str(study.networks_from.absolute())})


def trained_in(study: Study, learner: str, seed: int) -> Study:
    """The study in whose folder a run is or will be trained: the one whose networks are taken over, where it has it."""
    if study.networks_from is None or study.run(learner, seed).exists():
        return study
    other = replace(study, path=study.networks_from)
    return other if (other.run(learner, seed) / MANIFEST).exists() else study


def take_network(study: Study, learner: str, seed: int, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Copy a trained run from the other study's folder into the folder of this one, without its measurements.

    identity, facts: what the manifest of the run would hold in this study. The manifest of the copy takes from them
    only what training does not depend on; all else is as the training has recorded it.

    The copy appears under its name only when it is complete, so that an interrupted copy is made again.
    """
    source, run = trained_in(study, learner, seed).run(learner, seed), study.run(learner, seed)
    copy = run.with_name(f".{run.name}.partial")
    shutil.rmtree(copy, ignore_errors=True)
    left_out = (store.NAME, MANIFEST)
    # The times of the other study's measurements are left out too, and so are hidden files, which are unfinished ones.
    for file in source.rglob("*"):
        parts = file.relative_to(source).parts
        if file.is_file() and parts[0] not in left_out and not parts[-1].startswith((".", "times")):
            write_atomic(copy.joinpath(*parts), partial(shutil.copyfile, file))
    take_times(source, copy, "train")
    recorded = entries(source)
    config = recorded["config"] | {key: identity[key] for key in NOT_OF_TRAINING if key in identity}
    write_json(copy / MANIFEST, recorded | {"config": config} | {key: facts[key] for key in OF_THIS_STUDY})
    copy.rename(run)
    fsync(run.parent)
