"""Lines that say what the folder of a study or of a run holds and how far it is, for the command ``info``."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np

from analysis import store
from analysis.claims.verdict import Verdict, counted, final_outcome
from analysis.folder import (
    EXPLORER,
    README,
    REPORT,
    STUDY,
    VERDICTS,
    command_of,
    measurements,
    open_verdicts,
    stale_parts,
)
from analysis.kept import FOLDER as KEPT
from analysis.kept import seed_facts
from analysis.learner_text import learner_description
from analysis.study import Study
from analysis.times import PARTS, cpu_seconds, duration
from hessian_tools.runs import checkpoints
from hessian_tools.runs.checkpoints import checkpoint_path
from hessian_tools.runs.manifest import entries
from hessian_tools.train import diverged_at, saved_checkpoints

MAX_ROWS = 10
"""The most learners of a study, or checkpoints of a run, that have lines of their own; all must fit in 24 lines."""
MAX_TEXT = 76  # characters of a list of names


@dataclass(frozen=True)
class RunState:
    """How far a run of a study is, in words.

    A run is kept if only its results are there, in the small files that the command ``keep`` writes.

    trained: such as "to 300", "30 of 300" meta-iterations, "diverged at 17", "not yet" or "kept".
    measured: "all", a percentage of the measurements, "not yet" or "kept".
    """

    trained: str
    measured: str

    @property
    def complete(self) -> bool:
        """True if nothing of the run is left to do."""
        return self.measured in ("all", "kept")


def run_state(study: Study, learner: str, seed: int) -> RunState:
    """How far a run of a study is; raises DamagedFileError where its measurements are damaged."""
    if (learner, seed) not in study.runs_to_measure:
        return RunState("kept", "kept")
    run, steps = study.run(learner, seed), study.learners[learner].checkpoints
    reached, stopped = meta_iteration(study, learner, seed), diverged_at(run)
    if stopped is not None:
        trained = f"diverged at {stopped}"
    elif reached is None:
        trained = "not yet"
    else:
        trained = f"to {reached}" if reached == steps[-1] else f"{reached} of {steps[-1]}"
    done, total = num_measured(study, learner, seed)
    percentage = f"{math.floor(100 * done / total)} %" if done else "not yet"
    return RunState(trained, "all" if done == total else percentage)


def meta_iteration(study: Study, learner: str, seed: int) -> int | None:
    """The meta-iteration of the last checkpoint that a run has; None where it has none."""
    run = study.run(learner, seed)
    reached = [step for step in study.learners[learner].checkpoints if checkpoint_path(run, step).exists()]
    return reached[-1] if reached else None


def num_measured(study: Study, learner: str, seed: int) -> tuple[int, int]:
    """How many measurements a run has, and how many it will have.

    A measurement is one task at one checkpoint, or the evaluation at one checkpoint.
    """
    num_checkpoints = len(study.learners[learner].checkpoints)
    total = num_checkpoints * (study.config.measure.tasks + 1)
    path = study.run(learner, seed) / store.NAME
    if not path.exists():
        return 0, total
    ds = store.open_run(path)
    return sum(int(np.sum(ds[flag].values == 1)) for flag in store.FLAGS), total


def describe(study: Study) -> Iterator[str]:
    """The lines that ``info`` prints of a study: at most 24."""
    config = study.config
    states = {run: run_state(study, *run) for run in study.runs}
    complete = all(state.complete for state in states.values())
    measured = bool(study.kept) or any((study.run(*run) / store.NAME).exists() for run in study.runs)
    # The parts that were made from other measurements or other files than the present ones.
    outdated = stale_parts(study, measurements(study)) if measured else []
    verdicts = open_verdicts(study.path) if (study.path / VERDICTS).exists() else None
    drawn = sorted({path.stem for suffix in ("pdf", "png") for path in study.figures.glob(f"*.{suffix}")})
    report = study.path / REPORT
    made = {"verdicts": verdicts is not None, "figures": bool(drawn), "report": report.exists()}
    missing = [part for part, exists in made.items() if not exists or part in outdated]
    to_do = f"all is measured; to do: {', '.join(missing)}" if missing else "complete"
    state = to_do if complete else "not complete"
    yield f"study {config.name} ({config.digest[:12]}) in {study.path}: {state}"
    yield _set_up(study)
    # The names as they stand in the YAML, because the user's own files are not imported here.
    losses = f"; also on other losses: {', '.join(config.measure.losses)}" if config.measure.losses else ""
    yield f"quantities: {_listed(config.measure.quantities)}{losses}"
    yield from _rows_of_learners(study, states)
    old = {part: " (of older measurements)" if part in outdated else "" for part in made}
    outcomes = "none yet" if verdicts is None else counted(verdicts) or "none"
    yield f"verdicts: {outcomes}{old['verdicts']}"
    yield f"figures: {_listed(drawn) or 'none yet'}{old['figures']}"
    yield f"report: {report if report.exists() else 'none yet'}{old['report']}"
    yield f"on disk: {_sizes(study.path)}"
    yield from _what_next(study, complete=complete, missing=missing, verdicts=verdicts or [])


def describe_run(path: Path, study: Study | None) -> Iterator[str]:
    """The lines that ``info`` prints of a training run, which may be one of a study: at most 24.

    path: the run's folder. study: the study to which the run belongs, if any.
    Raises DamagedFileError where a file of the run is damaged.
    """
    stopped, saved = diverged_at(path), saved_checkpoints(path)
    if study is None:
        yield f"a training run of no study, in {path}"
        yield f"learner: {entries(path).get('training', {}).get('learner', 'not recorded')}"
        if stopped is not None:
            yield f"trained: diverged at {stopped}"
    else:
        learner, seed = next(run for run in study.runs if study.run(*run).name == path.resolve().name)
        yield f"run of the learner {learner} with seed {seed}, of the study {study.config.name}: {path}"
        yield f"learner: {learner_description(study, learner)}"
        yield _set_up(study)
        state = run_state(study, learner, seed)
        yield f"trained: {state.trained}; measured: {state.measured}"
    # Of many checkpoints, the first three and the last ones.
    shown = saved if len(saved) <= MAX_ROWS else [*saved[:3], *saved[3 - MAX_ROWS :]]
    yield f"checkpoints: {len(saved)}" + (f", of which {len(shown)} are listed" if len(shown) < len(saved) else "")
    if shown:
        yield "  meta-iteration  validation loss  validation accuracy"
    for checkpoint in shown:
        numbers = (checkpoint.validation_loss, checkpoint.validation_accuracy)
        loss, accuracy = ("not validated" if math.isnan(number) else f"{number:.4g}" for number in numbers)
        yield f"  {checkpoint.meta_step:>14}  {loss:>15}  {accuracy:>19}"
    if seconds := cpu_seconds(path):
        yield "processor time: " + ", ".join(f"{part} {duration(time)}" for part, time in seconds.items())
    yield f"on disk: {_sizes(path)}"
    if study is None:
        yield f'next: ht.saved_checkpoints("{path}") reads the parameters'
    else:
        yield f"next: hessian-tools info {quote(str(study.path))}"


def more_seeds(verdicts: Sequence[Verdict], num_seeds: int) -> tuple[int, int] | None:
    """A number of seeds with which more verdicts would probably be decided, and how many; None if there is none.

    The first is twice the present number of seeds or, if that would decide none, the smallest number that would.
    """
    undecided = [v for v in verdicts if final_outcome(v) == "inconclusive"]
    needed = [v.seeds_to_decide for v in undecided if v.seeds_to_decide is not None and v.seeds_to_decide > num_seeds]
    if not needed:
        return None
    number = max(2 * num_seeds, min(needed))
    return number, sum(each <= number for each in needed)


def seeds_line(study: Study, verdicts: Sequence[Verdict]) -> str | None:
    """Two lines: what more seeds would probably decide, and the command that adds them; None if they would not help."""
    suggestion = more_seeds(verdicts, len(study.config.seeds))
    if suggestion is None:
        return None
    number, decided = suggestion
    seeds = list(study.config.seeds)
    # The smallest seeds that the study does not have are added.
    seeds += [seed for seed in range(number + len(seeds)) if seed not in seeds][: number - len(seeds)]
    undecided = sum(final_outcome(verdict) == "inconclusive" for verdict in verdicts)
    listed = " ".join(map(str, seeds)) if len(seeds) <= 20 else f"... ({number} seeds)"
    return (
        f"{number} seeds would decide about {decided} of the {undecided} inconclusive verdicts, if means and spreads"
        f" stay as they are:\n  {_command(study, 'study')} --seeds {listed}"
    )


def _set_up(study: Study) -> str:
    """The line on a study's tasks, network, inner loop and seeds."""
    data, inner = study.config.data, study.config.inner
    tasks = data.source if data.source == "sine-line" else f"{data.source} {data.ways}-way {data.shots}-shot"
    step_size = "not chosen yet" if study.step_size is None else f"{study.step_size:g}"
    return (
        f"{tasks}, {study.config.network.name}, {inner.steps} inner steps, step size {step_size}, seeds "
        + ", ".join(map(str, study.config.seeds))
    )


def _rows_of_learners(study: Study, states: Mapping[tuple[str, int], RunState]) -> Iterator[str]:
    """A table with a row for each learner; in a large study, those that are complete are summed up in the last row."""
    names = list(study.learners)
    if len(names) > MAX_ROWS:
        # Rows are for learners with something left to do, and then for others; the order is that of the study.
        waiting = [name for name in names if not all(states[run].complete for run in states if run[0] == name)]
        names = [*waiting, *(name for name in names if name not in waiting)][: MAX_ROWS - 1]
        names = [name for name in study.learners if name in names]
    rows = [("learner", "trained", "measured", *(f"{part}, time" for part in PARTS))]
    for name in names:
        rows.append((name, *_row(study, {run: state for run, state in states.items() if run[0] == name})))
    others = {run: state for run, state in states.items() if run[0] not in names}
    if others:
        rows.append((f"{len(study.learners) - len(names)} others", *_row(study, others)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        yield f"  {first:<{widths[0]}}  {'  '.join(cells)}".rstrip()


def _row(study: Study, states: Mapping[tuple[str, int], RunState]) -> tuple[str, ...]:
    """The cells of a row: how far the runs are, by seeds where these differ, and the processor time of their parts."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for learner, seed in states:
        for part, time in recorded_times(study, learner, seed).items():
            seconds[part] += time
    trained = _by_seed({run: state.trained for run, state in states.items()})
    measured = _by_seed({run: state.measured for run, state in states.items()})
    return trained, measured, *(duration(time) if time else "-" for time in seconds.values())


def recorded_times(study: Study, learner: str, seed: int) -> dict[str, float]:
    """The processor time that each part of a run has taken so far; for a kept run, the kept results hold it."""
    if learner not in study.kept.get(seed, ()):
        return cpu_seconds(study.run(learner, seed))
    facts = seed_facts(study.goes_on_from or study.path, seed)
    return dict(facts["runs"][learner].get("cpu_seconds", {}))


def _by_seed(states: Mapping[tuple[str, int], str]) -> str:
    """The state of runs: one word where all agree, and otherwise each state with its seeds.

    >>> _by_seed({("maml", 0): "to 5", ("maml", 1): "to 5"})
    'to 5'
    >>> _by_seed({("maml", 0): "to 5", ("maml", 1): "2 of 5"})
    'to 5 (seed 0); 2 of 5 (seed 1)'
    """
    seeds: dict[str, list[int]] = {}
    for (_, seed), state in states.items():
        seeds.setdefault(state, []).append(seed)
    if len(seeds) <= 1:
        return "".join(seeds)  # the only state, or nothing
    if len(seeds) > 3 or len({learner for learner, _ in states}) > 1:
        return f"{len(states)} runs, of {len(seeds)} states"
    return "; ".join(
        f"{state} (seed {_listed(map(str, dict.fromkeys(in_state)))})" for state, in_state in seeds.items()
    )


def _listed(names: Iterator[str] | Sequence[str] | Mapping[str, None]) -> str:
    """Names with commas; of a long list, the first ones and the number of the others."""
    names = list(names)
    shown = names
    while len(", ".join(shown)) > MAX_TEXT:
        shown = shown[:-1]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


def _sizes(folder: Path) -> str:
    """The space that the files and folders below a folder take on the disk, by what they are."""
    num_bytes: dict[str, int] = {}
    for path in folder.rglob("*"):
        if not path.is_symlink():
            facts = path.stat()
            # Blocks rather than bytes, because a store has hundreds of files and folders that are smaller than a block.
            # The operating system counts them in units of 512 bytes.
            taken = 512 * facts.st_blocks if hasattr(facts, "st_blocks") else facts.st_size
            part = _part(path.relative_to(folder).parts)
            num_bytes[part] = num_bytes.get(part, 0) + taken
    parts = sorted(num_bytes.items(), key=lambda item: -item[1])
    return f"{megabytes(sum(num_bytes.values()))}: " + ", ".join(f"{name} {megabytes(size)}" for name, size in parts)


def _part(place: Sequence[str]) -> str:
    """What a file of a study's or a run's folder is, by its path below that folder."""
    if any(name.startswith("measurements.") for name in place):
        return "measurements"
    if checkpoints.FOLDER in place:
        return "checkpoints"
    if place[0] in ("figures", "paper"):
        return "figures"
    if place[0] in (REPORT, EXPLORER):
        return "report"
    return "kept results" if place[0] == KEPT else "other"


def megabytes(num_bytes: float) -> str:
    """A number of bytes in words.

    >>> megabytes(30_000), megabytes(15_600_000), megabytes(2.5e9)
    ('0.03 MB', '16 MB', '2.5 GB')
    """
    return f"{num_bytes / 1e9:.2g} GB" if num_bytes >= 1e9 else f"{float(f'{num_bytes / 1e6:.2g}'):g} MB"


def _what_next(study: Study, *, complete: bool, missing: Sequence[str], verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The command that comes next and, for a complete study, those that go further."""
    if not complete:
        yield f"next: {_command(study, 'study')}  (with --dry-run, only says what is left to do)"
        return
    if missing:
        yield f"next: {_command(study, command_of(missing[0]))}"
        return
    yield f"next: open {study.path / REPORT}"
    yield f"      {_command(study, 'explore')}"
    if not (study.path / README).exists() and (seeds := seeds_line(study, verdicts)):
        yield seeds


def _command(study: Study, name: str) -> str:
    """A command on a study's folder, with ``--trust`` where it would import the user's own code."""
    config = study.config
    own = ":" in config.network.name or any(":" in target for target in config.measure.quantities) or config.claims
    trust = " --trust" if own and name in ("study", "measure", "test") else ""
    return f"hessian-tools {name} {quote(str(study.path))}{trust}"


def study_above(path: Path) -> Path | None:
    """The folder of the study to which the folder of a run belongs, if any."""
    above = path.resolve().parents[1]  # a run is in STUDY/runs/RUN
    return above if (above / STUDY).is_file() else None
