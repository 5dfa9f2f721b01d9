"""What a report says about how a study was made: read from its configuration and its manifests."""

from analysis import setting
from analysis.config import LearnerConfig, StepSizeSearch
from analysis.folder import CLAIMS, STUDY, StudyFolder
from analysis.study_file import BUNDLED
from hessian_tools.data import summary
from hessian_tools.flat import flatten
from hessian_tools.nets import seeded
from hessian_tools.runs.manifest import read_manifest
from hessian_tools.train import diverged_at


def facts(folder: StudyFolder) -> dict[str, str]:
    """The set-up, one line each, in the order a reader asks."""
    config, data, outer, plan = folder.config, folder.config.data, folder.config.train, folder.config.measure
    layout = flatten(seeded(setting.network(config), seed=0))[1]
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
        "Learners": "; ".join(f"{name}: {_describe(learner)}" for name, learner in config.learners.items()),
        "Inner loop": f"{config.inner.steps} gradient steps of alpha = {folder.step_size:g}, {_chosen(folder)}",
        "Outer loop": f"Adam {outer.learning_rate:g}, {outer.meta_batch} tasks a meta-iteration, checkpoints at"
        f" {', '.join(map(str, outer.checkpoints))}",
        "Seeds": f"{len(config.seeds)}: {', '.join(map(str, config.seeds))} (initial parameters, training tasks and"
        " held-out tasks)",
        "Held-out tasks": f"{plan.tasks} a seed with curvature at every inner step ({plan.full_tasks} of them in full),"
        f" {plan.evaluation_tasks} a seed for accuracy" + ("; classes never trained on" if classes else ""),
        "Curvature": f"of the support loss; light: {plan.light.probes} probes, eigenvalues to {plan.light.tolerance:g};"
        f" full: {plan.full.probes} probes, top {plan.full.eigenvalues} to {plan.full.tolerance:g}",
        "Precision": f"{manifest['dtype']} on {manifest['device']}, {manifest['threads']} thread per process",
        "Versions": f"hessian-tools {manifest['code']}, Python {manifest['python']}, {libraries}",
        "Plan of the claims": f"{CLAIMS}, SHA-256 {manifest['claims_digest'][:16]}, fixed before the runs",
        "Data digest": manifest["data_digest"][:16],
    }


def command(folder: StudyFolder) -> str:
    """What makes the study again."""
    if folder.config.name in BUNDLED:
        seeds = " ".join(map(str, folder.config.seeds))
        return f"hessian-tools study {folder.config.name} --seeds {seeds} --out NEW_FOLDER"
    return f"hessian-tools study {STUDY} --out NEW_FOLDER"


def notes(folder: StudyFolder) -> list[str]:
    """What a reader must not overlook: runs that diverged."""
    stopped = {run: diverged_at(folder.run(*run)) for run in folder.runs}
    return [
        f"{learner}, seed {seed}, diverged at meta-iteration {step}: its later checkpoints hold no numbers."
        for (learner, seed), step in stopped.items()
        if step is not None
    ]


def _describe(learner: LearnerConfig) -> str:
    if learner.algorithm == "untrained":
        return "the initial network, adapted by the same inner loop"
    order = "first-order" if learner.first_order else "second-order"
    shot = learner.shot
    if shot is None:
        return f"{order} MAML"
    reference = shot.reference_steps or "K"
    detached = "detached" if shot.detach_reference else "not detached"
    return (
        f"{order} MAML + SHOT (weight {shot.weight:g}, {shot.distance}, T = {shot.target_steps}, R = {reference},"
        f" reference {detached})"
    )


def _chosen(folder: StudyFolder) -> str:
    search = folder.config.inner.step_size
    if not isinstance(search, StepSizeSearch):
        return "given, the same for all learners"
    return (
        f"the same for all learners, chosen on {search.learner} (no SHOT): {search.meta_steps} meta-iterations with"
        f" seed {search.seed} for each candidate, best mean accuracy on {search.validation_tasks} validation tasks"
    )
