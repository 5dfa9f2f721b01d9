"""What a report says about how a study was made; it is read from the configuration and the manifests of the runs."""

from math import prod
from typing import Any

from analysis import kept
from analysis.config import StepSizeSearch
from analysis.folder import CLAIMS, STUDY
from analysis.learner_text import OPTIMISERS, learner_description, notes_on_learners
from analysis.networks import source_of
from analysis.study import Study
from analysis.study_file import BUNDLED, load_study
from analysis.times import cpu_seconds
from analysis.training import WARM_START
from hessian_tools.data import summary
from hessian_tools.runs.files import read_json
from hessian_tools.runs.manifest import read_manifest, recorded_layout
from hessian_tools.train import diverged_at
from hessian_tools.train.evaluate import INDUCTIVE, TRANSDUCTIVE


def facts(study: Study) -> dict[str, str]:
    """The set-up of a study: texts by their headings, in the order of the report."""
    config, data = study.config, study.config.data
    train_settings, measure_settings = config.train, config.measure
    light, full = measure_settings.light, measure_settings.full
    tasks, manifest = described(study), environment_of(study, *study.runs[0])
    libraries = ", ".join(f"{name} {version}" for name, version in manifest["libraries"].items())
    if tasks["kind"] == "classification":
        sizes = f", {data.ways}-way {data.shots}-shot, {data.queries} query images a class in training"
        described_data = f"{tasks['summary']}{sizes} and {data.test_queries} on held-out tasks"
        protocol = f" ({TRANSDUCTIVE if measure_settings.transductive else INDUCTIVE}); classes never trained on"
    else:
        described_data, protocol = f"{tasks['summary']} regression", ""
    source = source_of(study.path)
    trained = f"; trained in the study in {source.name}, from which they were taken over" if source else ""
    return {
        "Data": described_data,
        "Network": f"{config.network.name}, {tasks['num_params']:,} parameters{trained}",
        "Learners": "; ".join(f"{name}: {learner_description(study, name)}" for name in study.learners),
        "Inner loop": f"{config.inner.steps} steps of alpha = {study.chosen_step_size:g}, {_how_chosen(study)}",
        "Outer loop": f"{OPTIMISERS[train_settings.optimiser]} {train_settings.learning_rate:g} unless said above,"
        f" {train_settings.meta_batch} tasks a meta-iteration, checkpoints at"
        f" {', '.join(map(str, train_settings.checkpoints))}",
        "Seeds": f"{len(config.seeds)}: {', '.join(map(str, config.seeds))} (initial parameters, training tasks and"
        f" held-out tasks){_fewer_seeds(study)}",
        "Held-out tasks": f"{measure_settings.tasks} a seed with curvature at every inner step"
        f" ({measure_settings.full_tasks} of them in full at the first and the last checkpoint),"
        f" {measure_settings.evaluation_tasks} a seed for accuracy{protocol}",
        "Curvature": f"of the support loss; a full measurement has {full.probes} probes and the {full.eigenvalues}"
        f" eigenvalues of largest magnitude to a relative tolerance of {full.tolerance:g}; all others are light, with"
        f" {light.probes} probes, {light.eigenvalues} of these eigenvalues and a tolerance of {light.tolerance:g}",
        "Precision": f"{manifest['dtype']} on {manifest['device']}, {manifest['threads']} thread per process",
        "Versions": f"hessian-tools {manifest['code']}, Python {manifest['python']}, {libraries}",
        "Plan of the claims": f"{CLAIMS}, SHA-256 {manifest['claims_digest'][:16]}, fixed before anything was measured",
        "Data digest": manifest["data_digest"][:16],
    }


def described(study: Study) -> dict[str, Any]:
    """What a report says of the data and the network.

    The command ``keep`` stores it with the results, because a report on kept results is made without the data.
    """
    for seed in study.kept:  # the first one serves, because all kept seeds have the same data and network
        return dict(kept.seed_facts(study.path, seed)["described"])
    tasks = study.problem.tasks
    # The record is read and the network is not built, because a report must not import what a study names.
    num_params = sum(map(prod, recorded_layout(study.run(*study.runs[0])).values()))
    return {"summary": summary(tasks), "kind": tasks.kind, "num_params": num_params}


def environment_of(study: Study, learner: str, seed: int) -> dict[str, Any]:
    """With what a run was made: the entries of its manifest, when it diverged, how it began, and the time it took."""
    if learner in study.kept.get(seed, ()):
        facts = kept.seed_facts(study.path, seed)
        return facts | facts["runs"][learner]
    run = study.run(learner, seed)
    begun = read_json(run / WARM_START) if (run / WARM_START).exists() else None
    return read_manifest(run) | {"diverged": diverged_at(run), "begun": begun, "cpu_seconds": cpu_seconds(run)}


def command(study: Study) -> str:
    """The command that makes the same study in another folder."""
    config = study.config
    if config.name in BUNDLED and config == load_study(config.name).model_copy(update={"seeds": config.seeds}):
        return f"hessian-tools study {config.name} --seeds {' '.join(map(str, config.seeds))} --out NEW_FOLDER"
    return f"hessian-tools study {STUDY} --out NEW_FOLDER"


def notes(study: Study) -> list[str]:
    """Notes that a reader must not overlook, on learners that are unlike the others and on runs that diverged."""
    diverged = {run: environment_of(study, *run)["diverged"] for run in study.runs}  # the meta-iteration, or None
    return [
        *notes_on_learners(study),
        *_warm_starts(study),
        *(
            f"{learner}, seed {seed}, diverged at meta-iteration {step}: its later checkpoints hold no numbers."
            for (learner, seed), step in diverged.items()
            if step is not None
        ),
    ]


def _fewer_seeds(study: Study) -> str:
    """The clause that names the learners which have only some of the study's seeds; "" if all have all."""
    config = study.config
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in study.learners:
        groups.setdefault(config.seeds_of(name), []).append(name)
    groups.pop(config.seeds, None)  # the learners with all seeds
    return "".join(
        f"; {', '.join(names)}: only {', '.join(map(str, seeds)) or 'none'}" for seeds, names in groups.items()
    )


def _warm_starts(study: Study) -> list[str]:
    """A line for each learner that began from another learner's checkpoint.

    The line names that checkpoint, and it says so if there is no untrained network to compare the learner with.
    """
    lines = []
    for name, learner in study.learners.items():
        start = learner.settings.start
        records = [environment_of(study, name, seed)["begun"] for seed in study.config.seeds_of(name) if start]
        steps = ", ".join(str(record["meta_step"]) for record in records if record)
        if steps:
            line = (
                f"{name} begins from the best checkpoint of {start} by validation (meta-iteration {steps},"
                " seed by seed): its meta-iteration 0 is that network, not the untrained one."
            )
            if name not in study.untrained_start:
                line += (
                    " The study has no untrained network with the same inner loop, so there is no verdict on"
                    " suppression for it."
                )
            lines.append(line)
    return lines


def _how_chosen(study: Study) -> str:
    """The clause that says how the study's inner step size was chosen."""
    search = study.config.inner.step_size
    if not isinstance(search, StepSizeSearch):
        return "set in the study file, for all learners without a step size of their own"
    is_classification = described(study)["kind"] == "classification"
    criterion = "highest mean accuracy" if is_classification else "lowest mean loss"
    return (
        f"for all learners without a step size of their own, chosen by a search: {search.learner} (no SHOT) was trained"
        f" with each candidate for {search.meta_steps} meta-iterations with seed {search.seed}, and the candidate with"
        f" the {criterion} on {search.validation_tasks} validation tasks was taken"
    )
