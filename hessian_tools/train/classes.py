"""Labelled images of all training classes, in batches of an episode's size: what supervised training sees."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hessian_tools.data import Episode, ImageTasks
from hessian_tools.rng import numpy_stream


@dataclass(frozen=True)
class ClassBatches:
    """Episodes of as many images as the few-shot task's, drawn from all classes of a split, with the class as label.

    Each image is a uniform draw of a class and of one of its images; a seed's learners of both kinds
    see equally many images, and equally many labels, per outer step.
    """

    tasks: ImageTasks

    @property
    def kind(self) -> str:
        """``"classification"``."""
        return self.tasks.kind

    @property
    def input_shape(self) -> tuple[int, ...]:
        """That of the tasks."""
        return self.tasks.input_shape

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the tasks' digest and the drawing recipe."""
        return hashlib.sha256(f"class-batches-1/{self.tasks.digest}".encode()).hexdigest()

    @property
    def outputs(self) -> int:
        """One for each training class."""
        return len(self.tasks.dataset.classes("train"))

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Images in what stands for the support and the query set."""
        return self.tasks.ways * self.tasks.shots, self.tasks.ways * self.tasks.queries

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        """Batch number ``index``; labels are positions among the split's classes."""
        data = self.tasks.dataset
        classes = np.asarray(data.classes(split))
        rng = numpy_stream(seed, "class batch", split, index)
        labels = rng.randint(len(classes), size=sum(self.sizes))
        chosen = classes[labels]
        examples = rng.randint([data.count(int(position)) for position in chosen])  # classes may differ in size
        x, y = data.take(chosen, examples[None]), torch.from_numpy(labels)
        cut = self.sizes[0]
        return Episode((x[:cut], y[:cut]), (x[cut:], y[cut:]))
