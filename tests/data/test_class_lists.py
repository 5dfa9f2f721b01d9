"""The lists of classes have the sizes that the literature gives."""

from hessian_tools.data import class_lists as lists
from hessian_tools.data.layouts.birds_and_cars import every_fourth


def test_sizes_and_no_class_twice():
    ravi = list(lists.RAVI.values())
    assert list(lists.RAVI) == ["train", "val", "test"]
    assert [len(part) for part in ravi] == [64, 16, 20] and len({name for part in ravi for name in part}) == 100
    assert {part: len(names) for part, names in lists.CIFAR_FS.items()} == {"val": 16, "test": 20}
    assert not set(lists.CIFAR_FS["val"]) & set(lists.CIFAR_FS["test"])
    sizes = [len(lists.OMNIGLOT["background"]), len(lists.OMNIGLOT["evaluation"]), len(lists.VINYALS["val"])]
    assert sizes == [30, 20, 5]
    assert set(lists.VINYALS["val"]) <= set(lists.OMNIGLOT["background"])
    birds = lists.META_DATASET_CUB["val"], lists.META_DATASET_CUB["test"]
    assert [len(set(part)) for part in birds] == [30, 30] and not set(birds[0]) & set(birds[1])
    assert all(1 <= number <= 200 for part in birds for number in part)
    assert not set(lists.FC100["val"]) & set(lists.FC100["test"])


def test_every_fourth_gives_the_sizes_of_birds_and_cars():
    for classes, expected in ((200, [100, 50, 50]), (196, [98, 49, 49])):
        parts = [every_fourth(number) for number in range(1, classes + 1)]
        assert [parts.count(part) for part in ("train", "val", "test")] == expected
