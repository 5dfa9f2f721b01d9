"""Every kind of file of a study, damaged in every way: refused by name, found by verify, or made again as it was."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damages import cut, empty, flip_a_bit
from forked import ALL, COMMANDS, STUDY, Ended, Stages, make_stages, results, run, scratch
from outcomes import BAD, record

pytestmark = pytest.mark.campaign

TRIALS = 40  # of each damage
MENDED = 5  # of so many trials one also runs the command ``study``, which takes longest
RUN = "runs/maml-seed0"
# Each kind of file, and the command that reads it. A star stands for any files.
KINDS = {
    f"{RUN}/checkpoints/0*.safetensors": "measure",
    f"{RUN}/checkpoints/state.safetensors": "measure",
    f"{RUN}/metrics.jsonl": "train",
    f"{RUN}/manifest.json": "test",
    f"{RUN}/times.jsonl": "report",
    f"{RUN}/measurements.json": "test",
    f"{RUN}/measurements.units/*.json": "test",
    f"{RUN}/measurements.zarr/*/c/*": "test",
    f"{RUN}/measurements.zarr/*/c/*/*": "figures",
    f"{RUN}/measurements.zarr/*/c/*/*/*": "test",
    f"{RUN}/measurements.zarr/*/zarr.json": "report",
    f"{RUN}/measurements.zarr/zarr.json": "measure",
    "study.yaml": "test",
    "claims.yaml": "test",
    "verdicts.json": "report",
    "figures/drawn.json": "report",
    "figures/*.png": "report",
    "figures/*.pdf": "report",
    "report.html": "report",
}
# What no result rests on: the processor times, of which any line may be lost, and the state from which training is
# resumed. Where that is lost, the run is complete, or is trained from its beginning with the same numbers.
WITHOUT_PROMISE = ("times.jsonl", "state.safetensors")


def replace_by_another(file: Path) -> None:
    """Put the file of another run in the place of a file; the test does it, which knows where the other run is."""


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study with another learning rate, so that learner, seed and all shapes are equal."""
    text = STUDY.replace("meta_batch: 1,", "meta_batch: 1, learning_rate: 0.05,")
    return make_stages(tmp_path_factory.mktemp("another"), text).folders["end"] / "study"


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, Path.unlink, replace_by_another], ids=lambda f: f.__name__)
def test_a_damaged_file_is_named_or_made_again_and_never_read_as_other_numbers(
    tmp_path: Path, stages: Stages, another: Path, damage: Callable[..., object]
) -> None:
    problems, original = [], stages.folders["end"] / "study"
    for trial in range(TRIALS):
        kind = list(KINDS)[trial % len(KINDS)]
        rng = random.Random(f"{damage.__name__} {trial}")
        with scratch(tmp_path / "trial") as folder:
            shutil.copytree(original.parent, folder)
            file = rng.choice(sorted(path for path in (folder / "study").glob(kind) if path.is_file()))
            before, name = file.read_bytes(), file.relative_to(folder / "study")
            if damage is replace_by_another:
                shutil.copyfile(another / name, file)
            else:
                damage(file)
            if file.exists() and file.read_bytes() == before:
                flip_a_bit(file)  # that of the other run is equal, such as a flag
            outcome = tried(folder, file, KINDS[kind], results(original), mend=trial % MENDED == 0)
        record("damaged file", outcome, (damage.__name__, trial, name))
        if outcome.partition(":")[0] in BAD:
            problems.append(f"{trial} {name}: {outcome}")
    assert not problems, "\n\n".join(problems)


def tried(folder: Path, file: Path, command: str, expected: dict[str, str], *, mend: bool) -> str:
    """What verify, a command that reads the file, and at times the command study make of a damaged file."""
    name = file.name if file.parent.name != "c" and "zarr" not in str(file) else str(file.relative_to(folder))
    verified = run(["verify", "study"], folder)
    if verified.outcome in ("hang", "traceback") or verified.status not in (0, 1, 2):
        return f"{verified.outcome}: verify: {verified}"
    is_found = verified.status == 1 or (verified.status == 2 and name in verified.errors)
    ended = [run(COMMANDS[command], folder)]
    if mend and not wrong(ended[0], folder, file, name, expected, is_found=is_found):
        ended.append(run(ALL, folder))
    problem = wrong(ended[-1], folder, file, name, expected, is_found=is_found)
    if problem:
        return f"{problem}; verify: {verified}"
    place = file.relative_to(folder / "study").as_posix()
    is_as_it_was = results(folder / "study").get(place) == expected.get(place)
    is_refused = ended[0].status == 2
    if not (is_found or is_refused or is_as_it_was or file.name in WITHOUT_PROMISE):
        return f"wrong: neither found nor made again: {verified}"
    return "refused" if is_refused else "right"


def wrong(ended: Ended, folder: Path, file: Path, name: str, expected: dict[str, str], *, is_found: bool) -> str:
    """What is wrong with the end of a command on a damaged study: other results, or a refusal that does not help.

    A refusal must name the file, unless verify has found the fault (``is_found``).
    """
    if ended.outcome in BAD:
        return f"{ended.outcome}: {ended}"
    if ended.outcome == "refused":
        is_named = is_found or name in ended.errors or file.name in ended.errors
        return "" if is_named else f"wrong: refused without a name: {ended}"
    left = str(file.relative_to(folder / "study"))
    different = [path for path, digest in results(folder / "study").items() if expected.get(path, digest) != digest]
    # The file itself may still be as damaged as before, where the command does not read it.
    different = [path for path in different if path != left]
    return f"wrong: status 0 with other results ({different[:4]}): {ended}" if different else ""
