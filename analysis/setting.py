"""From a configuration to the things it names: tasks, network, learner, training run."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from math import prod
from pathlib import Path

from torch import nn

from analysis import algorithms
from analysis.config import NETWORK_SETTINGS, DataConfig, StepSizeSearch, StudyConfig
from analysis.errors import UserError
from hessian_tools.data import CrossDomainTasks, TaskSource, open_tasks
from hessian_tools.inner.descent import row_parts
from hessian_tools.inner.meta_loss import joined
from hessian_tools.layout import ParamLayout, flatten
from hessian_tools.nets import MLP, load_network, refuse_unfit, seeded, source_digest
from hessian_tools.train import TrainConfig, meta_train

OWN = {
    "conv4": "hessian_tools.nets:Conv4",
    "resnet12": "hessian_tools.nets:ResNet12",
    "vit": "hessian_tools.nets:VisionTransformer",
}


def tasks(config: StudyConfig, *, held_out: bool = False) -> TaskSource:
    """The study's tasks, with the query size of training or of held-out measurement."""
    data = config.data
    try:
        return _opened(data, data.test_queries if held_out else data.queries)
    except ValueError as e:
        raise UserError(f"data: {e}") from None


@lru_cache(maxsize=8)
def _opened(data: DataConfig, queries: int) -> TaskSource:
    """Opened once a process: looking at the files again for each unit of work would take half a second each time."""
    if data.test_split and not data.test_path:
        raise ValueError("test_split needs test_path, whose split it is")
    if data.source == "sine-line":
        return open_tasks("sine-line")
    home = partial(
        open_tasks,
        ways=data.ways,
        shots=data.shots,
        queries=queries,
        image_size=data.image_size,
        channels=data.channels,
    )
    source = home(data.source, split=data.split, rotations=data.rotations, crop=data.crop)
    return CrossDomainTasks(source, home(data.test_path, split=data.test_split)) if data.test_path else source


def needed_splits(config: StudyConfig) -> tuple[str, ...]:
    """Which splits a study draws from: validation only where something is validated."""
    validates = config.train.validation_tasks or isinstance(config.inner.step_size, StepSizeSearch)
    return ("train", "val", "test") if validates else ("train", "test")


def network(config: StudyConfig) -> Callable[[], nn.Module]:
    """What builds the study's network."""
    source, net = tasks(config), config.network
    if net.name == "mlp":
        return partial(MLP, (prod(source.input_shape), *net.hidden, source.outputs))
    if net.name in OWN and len(source.input_shape) != 3:
        raise UserError(f"network: {net.name} needs images, {config.data.source} has none; use name: mlp")
    target = OWN.get(net.name, net.name)
    settings = {field: getattr(net, field) for field, names in NETWORK_SETTINGS.items() if net.name in names}
    try:
        return load_network(
            target, outputs=source.outputs, input_shape=source.input_shape, options=settings | net.options
        )
    except ValueError as e:
        raise UserError(f"network: {e}") from None


def network_source(config: StudyConfig) -> dict[str, str]:
    """What a run notes of a network of the user's besides its import path and options: the digest of its file."""
    return {"network_source": source_digest(config.network.name)} if ":" in config.network.name else {}


def checkpoints(config: StudyConfig, name: str) -> tuple[int, ...]:
    """The meta-iterations a learner is kept at; the untrained control has only the first."""
    return config.train.checkpoints if config.learners[name].trained else (0,)


def training(
    config: StudyConfig,
    name: str,
    seed: int,
    *,
    step_size: float,
    folder: Path | None,
    device: str,
    start: Path | None = None,
) -> TrainConfig:
    """The training run of one learner with one seed.

    start: the checkpoint file it begins from; by default the seed's network.
    """
    outer, own = config.train, config.learners[name]
    try:
        return TrainConfig(
            learner=algorithms.learner(config, name, step_size=step_size),
            tasks=tasks(config),
            network=network(config),
            seed=seed,
            shot=algorithms.shot(own),
            checkpoints=checkpoints(config, name),
            meta_batch=outer.meta_batch,
            optimiser=algorithms.optimiser(config, name),
            learning_rate=algorithms.learning_rate(config, name),
            validation_tasks=outer.validation_tasks,
            device=device,
            folder=folder,
            save_every=outer.save_every,
            start=start,
            pretraining=algorithms.pretraining(own),
            transductive=config.measure.transductive,
            head=config.network.head,
        )
    except ValueError as e:
        raise UserError(f"learners.{name}: {e}") from None


def check(config: StudyConfig) -> None:
    """Refuse what the data or the learners cannot do, before anything is written."""
    build = network(config)
    for source in (tasks(config), tasks(config, held_out=True)):
        for split in needed_splits(config):
            try:
                source.episode(seed=0, split=split, index=0)
            except ValueError as e:
                raise UserError(f"data: {e}") from None
    try:
        model = seeded(build, seed=config.seeds[0])
        layout = flatten(model, head=config.network.head)[1]
        refuse_unfit(model, outputs=tasks(config).outputs, input_shape=tasks(config).input_shape)
    except ValueError as e:
        raise UserError(f"network: {e}") from None
    wanted = max(config.measure.full.eigenvalues, 1)
    if wanted > layout.numel:
        raise UserError(f"measure.full.eigenvalues={wanted} of a network with {layout.numel} parameters; ask for fewer")
    for name in config.learners:
        _check_learner(config, name, layout)


def _check_learner(config: StudyConfig, name: str, layout: ParamLayout) -> None:
    planned = training(config, name, config.seeds[0], step_size=1.0, folder=None, device="cpu")
    own = config.learners[name]
    if own.algorithm in ("leo", "supervised") and planned.tasks.kind != "classification":
        raise UserError(f"learners.{name}: {own.algorithm} needs classes, {config.data.source} has none")
    try:
        algorithms.moved_params(planned.learner, layout)
        row_parts(joined(*planned.tasks.episode(seed=0, split="train", index=0)), planned.learner.minibatches)
        if own.algorithm in ("leo", "supervised"):  # what they learn besides the network depends on its head
            next(meta_train(replace(planned, checkpoints=(0,), validation_tasks=0)))
    except ValueError as e:
        raise UserError(f"learners.{name}: {e}") from None
