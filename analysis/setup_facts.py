"""What a report says about how a study was made: read from its configuration and its manifests."""

from analysis import setting
from analysis.algorithms import untrained_start
from analysis.beginning import BEGUN
from analysis.config import StepSizeSearch
from analysis.folder import CLAIMS, STUDY, StudyFolder
from analysis.learner_words import OPTIMISERS, described, partly_moving, trained_on_classes, without_alpha
from analysis.study_file import BUNDLED, load_study
from hessian_tools.data import summary
from hessian_tools.layout import flatten
from hessian_tools.nets import seeded
from hessian_tools.runs.files import read_json
from hessian_tools.runs.manifest import read_manifest
from hessian_tools.train import diverged_at
from hessian_tools.train.evaluate import INDUCTIVE, TRANSDUCTIVE


def facts(folder: StudyFolder) -> dict[str, str]:
    """The set-up, one line each, in the order a reader asks."""
    config, data, outer, plan = folder.config, folder.config.data, folder.config.train, folder.config.measure
    layout = flatten(seeded(setting.network(config), seed=0), head=config.network.head)[1]
    tasks = setting.tasks(config)
    classes = tasks.kind == "classification"
    manifest = read_manifest(folder.run(*folder.runs[0]))
    libraries = ", ".join(f"{name} {version}" for name, version in manifest["libraries"].items())
    return {
        "Data": f"{summary(tasks)}, {data.ways}-way {data.shots}-shot, {data.queries} query images a class in training"
        f" and {data.test_queries} on held-out tasks"
        if classes
        else f"{summary(tasks)} regression",
        "Network": f"{config.network.name}, {layout.numel:,} parameters",
        "Learners": "; ".join(f"{name}: {described(config, name)}" for name in config.learners),
        "Inner loop": f"{config.inner.steps} steps of alpha = {folder.step_size:g}, {_chosen(folder)}",
        "Outer loop": f"{OPTIMISERS[outer.optimiser]} {outer.learning_rate:g} unless said above,"
        f" {outer.meta_batch} tasks a meta-iteration, checkpoints at {', '.join(map(str, outer.checkpoints))}",
        "Seeds": f"{len(config.seeds)}: {', '.join(map(str, config.seeds))} (initial parameters, training tasks and"
        " held-out tasks)",
        "Held-out tasks": f"{plan.tasks} a seed with curvature at every inner step ({plan.full_tasks} of them in full),"
        f" {plan.evaluation_tasks} a seed for accuracy"
        + (f" ({TRANSDUCTIVE if plan.transductive else INDUCTIVE}); classes never trained on" if classes else ""),
        "Curvature": f"of the support loss; light: {plan.light.probes} probes, eigenvalues to {plan.light.tolerance:g};"
        f" full: {plan.full.probes} probes, top {plan.full.eigenvalues} to {plan.full.tolerance:g}",
        "Precision": f"{manifest['dtype']} on {manifest['device']}, {manifest['threads']} thread per process",
        "Versions": f"hessian-tools {manifest['code']}, Python {manifest['python']}, {libraries}",
        "Plan of the claims": f"{CLAIMS}, SHA-256 {manifest['claims_digest'][:16]}, fixed before the runs",
        "Data digest": manifest["data_digest"][:16],
    }


def command(folder: StudyFolder) -> str:
    """What makes the study again."""
    config = folder.config
    if config.name in BUNDLED and config == load_study(config.name).model_copy(update={"seeds": config.seeds}):
        return f"hessian-tools study {config.name} --seeds {' '.join(map(str, config.seeds))} --out NEW_FOLDER"
    return f"hessian-tools study {STUDY} --out NEW_FOLDER"


def notes(folder: StudyFolder) -> list[str]:
    """What a reader must not overlook: learners that are unlike the others, runs that diverged."""
    stopped = {run: diverged_at(folder.run(*run)) for run in folder.runs}
    return [
        *trained_on_classes(folder.config),
        *without_alpha(folder.config),
        *partly_moving(folder.config),
        *_beginnings(folder),
        *(
            f"{learner}, seed {seed}, diverged at meta-iteration {step}: its later checkpoints hold no numbers."
            for (learner, seed), step in stopped.items()
            if step is not None
        ),
    ]


def _beginnings(folder: StudyFolder) -> list[str]:
    """Which checkpoint a learner began from, and whether the study holds the untrained network to compare it with."""
    lines = []
    known = untrained_start(folder.config)
    for name, own in folder.config.learners.items():
        begun = [folder.run(name, seed) / BEGUN for seed in folder.config.seeds if own.start]
        steps = ", ".join(str(read_json(path)["meta_step"]) for path in begun if path.exists())
        if steps:
            compared = "" if name in known else " No learner here is the untrained network under its inner loop:"
            compared += "" if name in known else " there is no verdict on suppression for it."
            lines.append(
                f"{name} begins from the best checkpoint of {own.start} by validation (meta-iteration {steps}, seed by"
                f" seed): its meta-iteration 0 is that network, not the untrained one.{compared}"
            )
    return lines


def _chosen(folder: StudyFolder) -> str:
    search = folder.config.inner.step_size
    if not isinstance(search, StepSizeSearch):
        return "given, the same for all learners that name no other"
    return (
        f"the same for all learners that name no other, chosen on {search.learner} (no SHOT): {search.meta_steps}"
        f" meta-iterations with seed {search.seed} for each candidate, best mean accuracy on"
        f" {search.validation_tasks} validation tasks"
    )
