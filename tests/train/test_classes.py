"""Batches for supervised training are drawn as documented, even where classes differ in size."""

import layouts_on_disk as disk
import numpy as np
import torch

from hessian_tools.data import ImageTasks, load_quickdraw, open_data
from hessian_tools.rng import numpy_stream
from hessian_tools.train import ClassBatches


def test_each_image_is_a_uniform_draw_of_a_class_and_of_one_of_its_images():
    """The draws are written out for the bundled drawings: if they changed, earlier runs could not be repeated."""
    data = load_quickdraw()
    x, y = ClassBatches(ImageTasks(data, ways=3, shots=1, queries=2)).episode(seed=4, split="train", index=7).support
    rng = numpy_stream(4, "class batch", "train", 7)
    labels, examples = rng.randint(220, size=9), rng.randint(20, size=9)
    assert y.tolist() == labels[:3].tolist()
    images = data.images[np.array(data.splits["train"])[labels], examples]
    assert torch.equal(x, torch.from_numpy(images[:3]).float())


def test_a_smaller_class_gives_each_of_its_images(tmp_path):
    disk.class_folders(tmp_path, ["ant", "bee", "cat", "dog", "eel"])
    data = open_data(tmp_path)
    smaller_class = data.class_names[data.splits["train"][1]]
    (tmp_path / smaller_class / "3.png").unlink()
    data = open_data(tmp_path)
    batches = ClassBatches(ImageTasks(data, ways=2, shots=1, queries=2))
    seen: dict[int, set[bytes]] = {}
    for index in range(60):
        for x, y in batches.episode(seed=0, split="train", index=index):
            for image, label in zip(x, y.tolist(), strict=True):
                seen.setdefault(label, set()).add(image.numpy().tobytes())
    assert {label: len(images) for label, images in seen.items()} == {0: 4, 1: 3, 2: 4}
