"""Cross-domain tasks: tasks for training come from one data set, and tasks for test come from another."""

import layouts_on_disk as disk
import pytest
import torch

from hessian_tools.data import CrossDomainTasks, SineLineTasks, TaskSource, open_tasks

SHAPE = {"image_size": 16, "channels": 3}
SIZES = {"ways": 2, "shots": 1, "queries": 2}


def test_drawings_characters_and_photographs_can_be_crossed(tmp_path):
    sources = [
        open_tasks("quickdraw", **SIZES, **SHAPE),
        open_tasks(disk.omniglot(tmp_path / "omniglot"), **SIZES, **SHAPE),
        open_tasks(disk.mini_pickles(tmp_path / "mini"), **SIZES, **SHAPE),
    ]
    for source in sources:
        for target in sources:
            tasks = CrossDomainTasks(source, target)
            assert isinstance(tasks, TaskSource)
            assert (tasks.kind, tasks.input_shape, tasks.outputs) == ("classification", (3, 16, 16), 2)
            for split, source_of_split in (("train", source), ("test", target)):
                drawn, original = (supply.episode(seed=1, split=split, index=2) for supply in (tasks, source_of_split))
                assert torch.equal(drawn.query[0], original.query[0])
    digests = {CrossDomainTasks(source, target).digest for source in sources for target in sources}
    assert len(digests) == 9


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"image_size": 14}, r"input_shape is \(1, 28, 28\) in training and \(1, 14, 14\) in test; open both"),
        ({"ways": 3}, "outputs is 5 in training and 3 in test; open both with the same ways"),
    ],
)
def test_sources_that_do_not_fit_are_refused(target, message):
    with pytest.raises(ValueError, match=message):
        CrossDomainTasks(open_tasks("quickdraw"), open_tasks("quickdraw", **target))
    with pytest.raises(ValueError, match="kind is classification in training and regression in test"):
        CrossDomainTasks(open_tasks("quickdraw"), SineLineTasks())
