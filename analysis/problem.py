"""The tasks of a study and the network that learns them, which are made at their first use."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import prod
from typing import Any

from torch import nn

from analysis.config import DataConfig, NetworkConfig
from analysis.errors import UserError
from analysis.trust import trusted_object
from hessian_tools.data import CrossDomainTasks, TaskSource, open_tasks
from hessian_tools.layout import ParamLayout, flatten
from hessian_tools.nets import MLP, load_network, seeded


@dataclass(frozen=True)
class Problem:
    """The tasks of a study and the network that learns them.

    Tasks and network are made at their first use, so that the measurements of a study can be read without its data, and
    without the code of a network that the study names.

    trust: whether the module of such a network may be imported; see ``analysis.trust``.
    """

    data: DataConfig
    network_config: NetworkConfig
    trust: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Every job that is sent to a worker process holds the problem, and opening the data takes half a second. A
        # problem is therefore unpickled by a cached function, so that a process opens the data only once.
        return open_problem, (self.data, self.network_config, self.trust)

    @cached_property
    def tasks(self) -> TaskSource:
        """The source of all tasks, with query sets of the size used in training."""
        return self._open(self.data.queries)

    @cached_property
    def held_out(self) -> TaskSource:
        """The source of all tasks, with query sets of the size used in measurements on held-out tasks."""
        return self._open(self.data.test_queries)

    @cached_property
    def network(self) -> Callable[[], nn.Module]:
        """A function that builds the network."""
        config, tasks = self.network_config, self.tasks
        if config.name == "mlp":
            return partial(MLP, (prod(tasks.input_shape), *config.hidden, tasks.outputs))
        # A name with a colon is the import path of a network of the user's own, which may take any inputs.
        if ":" not in config.name and len(tasks.input_shape) != 3:
            raise UserError(f"network: {config.name} needs images, but {self.data.source} has none; use name: mlp")
        options = config.settings | config.options
        try:
            factory = trusted_object(config.import_path, trust=self.trust)
            return load_network(factory, outputs=tasks.outputs, input_shape=tasks.input_shape, options=options)
        except (ValueError, UserError) as e:
            raise UserError(f"network: {e}") from None

    @cached_property
    def layout(self) -> ParamLayout:
        """The names and shapes of the network's parameters in the flat parameter vector."""
        return flatten(seeded(self.network, seed=0), head=self.network_config.head)[1]

    def _open(self, queries: int) -> TaskSource:
        """The tasks with ``queries`` query images per class."""
        data = self.data
        if data.source == "sine-line":
            return open_tasks("sine-line")
        open_images = partial(
            open_tasks,
            ways=data.ways,
            shots=data.shots,
            queries=queries,
            image_size=data.image_size,
            channels=data.channels,
        )
        try:
            if data.test_split and not data.test_path:
                raise ValueError(
                    "test_split is the split of the data at test_path and needs test_path; give both or neither"
                )
            source = open_images(data.source, split=data.split, rotations=data.rotations, crop=data.crop)
            if not data.test_path:
                return source
            return CrossDomainTasks(source, open_images(data.test_path, split=data.test_split))
        except ValueError as e:
            raise UserError(f"data: {e}") from None


@lru_cache(maxsize=8)
def open_problem(data: DataConfig, network_config: NetworkConfig, trust: bool) -> Problem:
    """The tasks and the network of a study; equal arguments give the same object within a process."""
    return Problem(data, network_config, trust)
