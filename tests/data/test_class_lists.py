"""The lists of classes have the sizes that the literature gives."""

from hessian_tools.data import class_lists as lists
from hessian_tools.data.layouts.birds_and_cars import every_fourth


def test_sizes_and_no_class_twice():
    ravi = lists.RAVI_TRAIN, lists.RAVI_VAL, lists.RAVI_TEST
    assert [len(part) for part in ravi] == [64, 16, 20] and len({name for part in ravi for name in part}) == 100
    assert len(lists.CIFAR_FS_VAL) == 16 and len(lists.CIFAR_FS_TEST) == 20
    assert not set(lists.CIFAR_FS_VAL) & set(lists.CIFAR_FS_TEST)
    assert [len(lists.OMNIGLOT_BACKGROUND), len(lists.OMNIGLOT_EVALUATION), len(lists.VINYALS_VAL)] == [30, 20, 5]
    assert set(lists.VINYALS_VAL) <= set(lists.OMNIGLOT_BACKGROUND)
    birds = lists.META_DATASET_CUB_VAL, lists.META_DATASET_CUB_TEST
    assert [len(set(part)) for part in birds] == [30, 30] and not set(birds[0]) & set(birds[1])
    assert all(1 <= number <= 200 for part in birds for number in part)
    assert not set(lists.FC100_VAL) & set(lists.FC100_TEST)


def test_every_fourth_gives_the_sizes_of_birds_and_cars():
    for classes, expected in ((200, [100, 50, 50]), (196, [98, 49, 49])):
        parts = [every_fourth(number) for number in range(1, classes + 1)]
        assert [parts.count(part) for part in ("train", "val", "test")] == expected
