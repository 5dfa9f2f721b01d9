"""Writes the results of a study into a small folder that can be kept in a repository: the command ``keep``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from analysis import folder, kept, store, times
from analysis.config import StudyConfig
from analysis.errors import UserError
from analysis.folder import CLAIMS, README, STEP_SIZE
from analysis.progress import Reporter
from analysis.setup_facts import described, environment_of
from analysis.study import Study
from analysis.study_file import overridden, with_own_files
from hessian_tools.runs.files import write_text

# The entries of a run's manifest that are kept with its results.
MANIFEST_FACTS = ("code", "python", "libraries", "device", "dtype", "threads")


def keep(study: Study, out: Path, reporter: Reporter) -> list[int]:
    """Write the reduced measurements of every completely measured seed into the folder ``out``; returns these seeds.

    A seed is completely measured if all of its learners are. The files of other seeds in ``out`` are left alone, and a
    seed that is kept there already is replaced if its numbers have changed. The folder gets the study's settings with
    the seeds that it holds, the plan of the claims and the result of a search for the step size, if there was one. The
    commands ``test``, ``figures`` and ``report`` make verdicts, figures and report from these files alone.

    Raises UserError if no seed is complete, or if ``out`` holds anything but results of the same study.
    """
    complete = [seed for seed in study.config.seeds if _is_complete(study, seed)]
    if not complete:
        raise UserError(
            f"no seed of {study.path} is measured completely, so there is nothing to keep; run"
            f" 'hessian-tools measure {study.path}' first"
        )
    present = _refuse_other_results(study, out)
    with folder.locked(out):
        for seed in complete:
            seeds = tuple(sorted({*present, seed}))
            folder.write_settings(_kept_config(study.config, seeds), out, plan=(study.path / CLAIMS).read_text("utf-8"))
            if (study.path / STEP_SIZE).exists():
                write_text(out / STEP_SIZE, (study.path / STEP_SIZE).read_text("utf-8"))
            outcome = kept.write_seed(out, seed, _runs(study, seed), _facts(study, seed))
            file, _ = kept.files(out, seed)
            too_large = f"; more than {kept.MAX_BYTES / 1e6} MB, so measure fewer tasks or quantities"
            size = file.stat().st_size
            reporter.say(f"{file}: {outcome}, {size / 1e6:.2f} MB{too_large if size > kept.MAX_BYTES else ''}")
            present = seeds
        write_text(out / README, "\n".join(_readme(folder.open_folder(out))) + "\n")
    return complete


def _is_complete(study: Study, seed: int) -> bool:
    """True if all runs of a seed are measured completely, or kept already."""
    runs = [run for run in study.runs if run[1] == seed]
    paths = [study.run(*run) / store.NAME for run in runs if run in study.runs_to_measure]
    return bool(runs) and all(path.exists() and store.is_complete(path) for path in paths)


def _refuse_other_results(study: Study, out: Path) -> tuple[int, ...]:
    """The seeds that are kept in ``out`` already; raises UserError if it holds anything but results of this study."""
    if out.resolve() == study.path.resolve():
        raise UserError(f"--out {out} is the study's own folder; choose another, such as docs/results/NAME")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but --out needs a folder; choose another --out")
    if not (out / folder.STUDY).exists():
        if out.exists() and any(path for path in out.iterdir() if not path.name.startswith(".")):
            raise UserError(f"{out} is not empty and holds no kept results; choose another --out")
        return ()
    if (out / "runs").exists():
        raise UserError(f"{out} is a study's folder with runs, not one of kept results; choose another --out")
    before = folder.open_folder(out)
    folder.refuse_other_settings(study, before, advice="choose another --out")
    if folder.plan_of(before).digest != folder.plan_of(study).digest:
        raise UserError(f"{out} was kept with another plan of the claims than {study.path}; choose another --out")
    return tuple(before.kept)


def _kept_config(config: StudyConfig, seeds: tuple[int, ...]) -> StudyConfig:
    """The settings with the seeds that are kept, and without paths of the machine that made the study."""
    config = with_own_files(config, lambda file: Path(file.name))
    data = config.data.model_dump(mode="json")
    data |= {key: f"PATH/TO/{Path(data[key]).name}" for key in folder.DATA_PATHS if data[key]}
    return overridden(config, {"seeds": seeds, "data": data})


def _runs(study: Study, seed: int) -> dict[str, xr.Dataset]:
    """The measurements of each learner of a seed, from the results that are kept already or from the run's store."""
    from_before = kept.open_seed(study.path, seed) if seed in study.kept else {}
    return {
        name: from_before[name] if name in from_before else store.open_run(study.run(name, seed) / store.NAME)
        for name in study.learners
        if (name, seed) in study.runs
    }


def _facts(study: Study, seed: int) -> dict[str, Any]:
    """What is kept of the runs of a seed besides their numbers."""
    runs, digests = {}, {}
    for name in (name for name in study.learners if (name, seed) in study.runs):
        recorded = environment_of(study, name, seed)
        # All runs of a study have the same data and plan, so the digests of the last run serve.
        digests = {key: recorded.get(key) for key in ("data_digest", "held_out_digest", "claims_digest")}
        runs[name] = {key: recorded[key] for key in (*MANIFEST_FACTS, "diverged", "begun", "cpu_seconds")}
    return {
        "study": study.config.name,
        "seed": seed,
        **digests,
        "step_size": study.step_size,
        "described": described(study),
        "runs": runs,
    }


def _readme(study: Study) -> Iterator[str]:
    """The lines of the README of a folder of kept results."""
    name, where = study.config.name, "."
    yield f"# Results of the study {name}"
    yield ""
    yield (
        "The command `hessian-tools keep` made this page and the files in `seeds/`: the measurements of each seed, as"
        " netCDF. `study.yaml` holds the settings and `claims.yaml` the plan of the claims, which was fixed before"
        " anything was measured. In this folder:"
    )
    yield ""
    yield "```"
    yield f"hessian-tools test {where}       # verdicts.json"
    yield f"hessian-tools figures {where}    # figures/"
    yield f"hessian-tools report {where}     # report.html"
    yield f"hessian-tools verify {where}     # is any file missing, damaged, changed or out of date?"
    yield "```"
    yield ""
    yield 'In Python, `analysis.open_study(".")` opens all measurements. These commands make the runs anew:'
    yield ""
    yield "```"
    given = " --data PATH" if study.config.data.path else ""
    for seed in study.kept:
        yield f"hessian-tools study study.yaml --seeds {seed}{given} --out FOLDER"
        yield f"hessian-tools keep FOLDER --out {where}"
    yield "```"
    yield ""
    yield "| seed | learners | processor time, train | measure | made with | SHA-256 of the data |"
    yield "|---|---|---|---|---|---|"
    for seed in study.kept:
        facts = kept.seed_facts(study.path, seed)
        runs = facts["runs"].values()
        train, measure = (_minutes([run["cpu_seconds"].get(part) for run in runs]) for part in times.PARTS)
        versions = {
            f"hessian-tools {run['code']}, torch {run['libraries']['torch']} on {run['device']}" for run in runs
        }
        yield (
            f"| {seed} | {len(facts['learners'])} | {train} | {measure} |"
            f" {'; '.join(sorted(versions))} | {facts['data_digest'][:16]} |"
        )


def _minutes(seconds: Sequence[float | None]) -> str:
    """The total of the processor times of some runs, of which older versions recorded only a part."""
    recorded = [each for each in seconds if each is not None]
    if not recorded:
        return "not recorded"
    return f"{'at least ' if len(recorded) < len(seconds) else ''}{sum(recorded) / 60:.1f} min"
