"""The examples of supervised training: labelled images of all training classes, in batches of an episode's size."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from hessian_tools.data import Episode, ImageTasks
from hessian_tools.rng import numpy_stream


@dataclass(frozen=True)
class ClassBatches:
    """Episodes whose images are drawn from all classes of a split, with the class as the label.

    Each image is a uniform draw of a class and then of one of its images. An episode has as many images as a few-shot
    task, so supervised and meta-trained learners see equally many images and labels in an outer step.
    """

    tasks: ImageTasks

    @property
    def kind(self) -> str:
        """The kind of the tasks, ``"classification"``."""
        return self.tasks.kind

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, which is that of the tasks."""
        return self.tasks.input_shape

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the tasks' digest and the drawing recipe."""
        return hashlib.sha256(f"class-batches-1/{self.tasks.digest}".encode()).hexdigest()

    @property
    def outputs(self) -> int:
        """The number of outputs: one for each training class."""
        return len(self.tasks.dataset.classes("train"))

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        """Batch number ``index``; a label is the position of the class among the split's classes."""
        data = self.tasks.dataset
        classes = np.asarray(data.classes(split))
        rng = numpy_stream(seed, "class batch", split, index)
        labels = rng.randint(len(classes), size=self.tasks.ways * (self.tasks.shots + self.tasks.queries))
        chosen = classes[labels]
        examples = rng.randint([data.count(int(position)) for position in chosen])  # classes may differ in size
        # ``take`` reads one example of each entry of ``chosen``, which may hold a class several times.
        x, y = data.take(chosen, examples[None]), torch.from_numpy(labels)
        cut = self.tasks.ways * self.tasks.shots  # the number of images that a support set would have
        return Episode((x[:cut], y[:cut]), (x[cut:], y[cut:]))
