"""Where a learner that begins from another one begins: the other's best checkpoint by validation, of the same seed."""

from pathlib import Path

from analysis.errors import UserError
from analysis.folder import StudyFolder
from hessian_tools.runs.checkpoints import checkpoint_path
from hessian_tools.runs.files import read_json, write_json
from hessian_tools.train import best_checkpoint, saved_checkpoints

BEGUN = "begun.json"


def start_of(folder: StudyFolder, learner: str, seed: int) -> Path | None:
    """The checkpoint file that a learner begins from, chosen once and noted in its run; None: the seed's network."""
    other = folder.config.learners[learner].start
    if other is None:
        return None
    source, note = folder.run(other, seed), folder.run(learner, seed) / BEGUN
    if not note.exists():
        try:
            best = best_checkpoint(saved_checkpoints(source))
        except ValueError as e:
            raise UserError(f"{learner} cannot begin from {other} seed {seed}: {e}") from None
        write_json(note, {"learner": other, "meta_step": best.meta_step})
    return checkpoint_path(source, int(read_json(note)["meta_step"]))
