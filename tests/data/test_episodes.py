"""Episodes of image classes are the same on every machine, and are drawn as documented."""

import hashlib
import pickle
import random
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hessian_tools.data import Episode, ImageClasses, ImageTasks, SineLineTasks, TaskSource, load_quickdraw, open_tasks
from hessian_tools.data.episodes import check_count

# These digests are fixed: if one changes, the tasks of every study change. If that is intended, raise the number in
# EPISODE_RECIPE.
GOLDEN_EPISODE = "c7eebf0a3a6032e39ebbddf9a928cc995bd0ebd09332c187de34488abe987d1f"
GOLDEN_DIGEST = "2868470f77904dfbd19d53b7300ec412386713d05f06e98df99d4cc109a5b8bf"

CLASSES, EXAMPLES = 30, 9
SPLITS = {"train": tuple(range(3, 19)), "val": (0, 1, 2, 29), "test": tuple(range(19, 29))}


def numbered_classes(scale: int = 255) -> ImageClasses:
    """A set of images of two pixels, which hold the class and the example, so that an episode shows what was drawn."""
    images = np.zeros((CLASSES, EXAMPLES, 1, 1, 2), dtype=np.uint8)
    images[..., 0] = np.arange(CLASSES)[:, None, None, None]
    images[..., 1] = np.arange(EXAMPLES)[:, None, None]
    return ImageClasses("numbered", images, tuple(f"n{k}" for k in range(CLASSES)), SPLITS, "0" * 64, scale)


NUMBERED = numbered_classes()


def origin(x: torch.Tensor, ways: int) -> torch.Tensor:
    """Read the class and the example from each of the numbered images: [example, way, (class, example)]."""
    return (x.flatten(1) * 255).round().to(torch.int64).unflatten(0, (-1, ways))


def episode_sha256(episode: Episode) -> str:
    parts = (tensor.numpy() for pair in episode for tensor in pair)
    return hashlib.sha256(b"".join(part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts)).hexdigest()


def same(first: Episode, second: Episode) -> bool:
    return all(torch.equal(a, b) for p, q in zip(first, second, strict=True) for a, b in zip(p, q, strict=True))


# Determinism


def test_an_episode_and_its_digest_have_their_fixed_values():
    tasks = ImageTasks(load_quickdraw(), ways=5, shots=2, queries=3)
    assert episode_sha256(tasks.episode(seed=7, split="test", index=11)) == GOLDEN_EPISODE
    assert tasks.digest == GOLDEN_DIGEST


def test_a_fixed_episode_drawing_by_drawing():
    """A drawn episode in a legible form: the class and the example of each row of the query set."""
    x, _ = ImageTasks(NUMBERED, ways=3, shots=1, queries=2).episode(seed=0, split="val", index=0).query
    assert origin(x, 3).tolist() == [[[29, 5], [2, 2], [1, 4]], [[29, 1], [2, 1], [1, 7]]]


def test_an_episode_repeats_and_does_not_depend_on_earlier_calls():
    tasks = ImageTasks(NUMBERED, ways=3, shots=2, queries=4)
    first = tasks.episode(seed=1, split="train", index=5)
    tasks.episode(seed=1, split="train", index=4)
    assert same(first, tasks.episode(seed=1, split="train", index=5))
    assert same(
        first, ImageTasks(numbered_classes(), ways=3, shots=2, queries=4).episode(seed=1, split="train", index=5)
    )


def test_numpy_integers_and_python_integers_name_the_same_episode():
    tasks = ImageTasks(NUMBERED, ways=3, shots=1, queries=1)
    plain = tasks.episode(seed=3, split="train", index=2)
    assert same(plain, tasks.episode(seed=np.int64(3), split=np.str_("train"), index=np.int32(2)))


def test_the_episode_depends_on_seed_split_and_index():
    # Two splits of images differ in their classes anyway. Two splits of regression tasks differ only in their random
    # stream, so they show whether the stream depends on the split.
    keys = list(product((0, 1), ("train", "test"), (0, 1, 10)))
    tasks = open_tasks("sine-line")
    assert len({episode_sha256(tasks.episode(seed=s, split=p, index=i)) for s, p, i in keys}) == len(keys)
    images = ImageTasks(NUMBERED, ways=4, shots=2, queries=3)
    assert len({episode_sha256(images.episode(seed=s, split=p, index=i)) for s, p, i in keys}) == len(keys)


@pytest.mark.parametrize("tasks", [ImageTasks(NUMBERED, shots=2, queries=3, ways=4), SineLineTasks()])
def test_global_random_states_are_neither_used_nor_moved(tasks):
    episodes = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        episodes.append(tasks.episode(seed=5, split="val", index=0))
        # Under jaxtyping's import hook, the type checker itself draws from ``random`` to pick the items that it checks.
        assert states[0] == random.getstate() or hasattr(ImageTasks.episode, "__wrapped__")
        np.testing.assert_array_equal(states[1], np.random.get_state()[1])
        assert torch.equal(states[2], torch.get_rng_state())
    assert same(*episodes)


# What is in an episode


@settings(max_examples=40, deadline=None)
@given(
    ways=st.integers(1, 10),
    shots=st.integers(1, 4),
    queries=st.integers(1, 5),
    seed=st.integers(-3, 2**40),
    split=st.sampled_from(["train", "test"]),
    index=st.integers(0, 10**12),
)
def test_any_episode_is_well_formed(ways, shots, queries, seed, split, index):
    tasks = ImageTasks(NUMBERED, ways=ways, shots=shots, queries=queries)
    support, query = tasks.episode(seed=seed, split=split, index=index)
    for (x, y), count in ((support, shots), (query, queries)):
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.shape == (count * ways, *tasks.input_shape)
        assert y.tolist() == list(range(ways)) * count
    seen = torch.cat([origin(support[0], ways), origin(query[0], ways)])
    classes = seen[0, :, 0]
    assert (seen[:, :, 0] == classes).all(), "one class to a label"
    assert len(set(classes.tolist())) == ways, "classes distinct"
    assert set(classes.tolist()) <= set(SPLITS[split])
    assert all(len(set(seen[:, way, 1].tolist())) == shots + queries for way in range(ways)), "examples distinct"


@settings(max_examples=25, deadline=None)
@given(ways=st.integers(1, 5), shots=st.integers(1, 3), queries=st.integers(1, 5), index=st.integers(0, 10**6))
def test_fewer_queries_are_the_first_of_more(ways, shots, queries, index):
    few = ImageTasks(NUMBERED, ways=ways, shots=shots, queries=queries).episode(seed=0, split="train", index=index)
    many = ImageTasks(NUMBERED, ways=ways, shots=shots, queries=6).episode(seed=0, split="train", index=index)
    assert same(few, Episode(many.support, tuple(part[: queries * ways] for part in many.query)))


def test_more_ways_and_shots_extend_the_support():
    small = ImageTasks(NUMBERED, ways=3, shots=1, queries=1).episode(seed=0, split="train", index=0)
    large = ImageTasks(NUMBERED, ways=7, shots=4, queries=1).episode(seed=0, split="train", index=0)
    assert torch.equal(origin(small.support[0], 3), origin(large.support[0], 7)[:1, :3])


def test_classes_labels_and_examples_are_drawn_evenly():
    tasks = ImageTasks(NUMBERED, ways=5, shots=1, queries=1)
    origins = torch.stack([origin(tasks.episode(seed=0, split="test", index=i).support[0], 5)[0] for i in range(2000)])
    by_class = torch.bincount(origins[..., 0].flatten(), minlength=CLASSES)[list(SPLITS["test"])]
    by_label = torch.bincount(origins[:, 0, 0], minlength=CLASSES)[list(SPLITS["test"])]
    by_example = torch.bincount(origins[..., 1].flatten(), minlength=EXAMPLES)
    # 2000 tasks have 10 000 draws of 10 classes or 9 examples, and 2000 draws of the class with label 0. Each count is
    # binomial, and the largest deviation of the 29 must lie within 5 standard deviations.
    assert (by_class - 1000).abs().max() < 5 * (2000 * 0.5 * 0.5) ** 0.5
    assert (by_label - 200).abs().max() < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert (by_example - 10000 / 9).abs().max() < 5 * (10000 / 9 * 8 / 9) ** 0.5


def test_quickdraw_episode_shows_the_drawings_themselves():
    data = load_quickdraw()
    support, query = ImageTasks(data).episode(seed=0, split="test", index=0)
    assert support[0].shape == (5, 1, 28, 28) and query[0].shape == (75, 1, 28, 28)
    assert set(support[0].unique().tolist()) == {0.0, 1.0}
    held_out = data.images[list(data.splits["test"])].reshape(-1, 784)
    for row in torch.cat([support[0], query[0]]).flatten(1).numpy():
        assert (held_out == row).all(axis=1).any()


def test_pixels_are_divided_by_scale_and_returned_tensors_are_our_own():
    data = numbered_classes()
    tasks = ImageTasks(data, ways=2, shots=1, queries=1)
    before = data.images.copy()
    episode = tasks.episode(seed=0, split="train", index=0)
    x = episode.support[0].clone()
    again = ImageTasks(numbered_classes(scale=1), ways=2, shots=1, queries=1).episode(seed=0, split="train", index=0)
    assert torch.equal(x, again.support[0] / 255)
    episode.support[0].fill_(9.0)
    np.testing.assert_array_equal(data.images, before)
    assert torch.equal(x, tasks.episode(seed=0, split="train", index=0).support[0])


def test_memory_mapped_images_work(tmp_path):
    np.save(tmp_path / "images.npy", NUMBERED.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    data = ImageClasses("mapped", mapped, NUMBERED.class_names, SPLITS, "0" * 64, 255)
    ours, theirs = (ImageTasks(d, ways=3, queries=2).episode(seed=0, split="val", index=1) for d in (data, NUMBERED))
    assert same(ours, theirs)


# Sources of tasks are values: they are pickled, compared and identified by a digest


def test_image_tasks_are_a_task_source_and_can_be_pickled():
    tasks = open_tasks("quickdraw", ways=4, shots=2, queries=3)
    assert isinstance(tasks, TaskSource)
    assert (tasks.kind, tasks.input_shape, tasks.outputs) == ("classification", (1, 28, 28), 4)
    copy = pickle.loads(pickle.dumps(tasks))  # worker processes receive their tasks as a pickle
    assert copy.digest == tasks.digest
    assert same(copy.episode(seed=0, split="val", index=0), tasks.episode(seed=0, split="val", index=0))
    assert tasks == open_tasks("quickdraw", ways=4, shots=2, queries=3)


def test_digest_tells_sources_apart():
    other_splits = ImageClasses("n", NUMBERED.images, NUMBERED.class_names, {"train": tuple(range(30))}, "0" * 64, 255)
    other_images = ImageClasses("n", NUMBERED.images, NUMBERED.class_names, SPLITS, "1" * 64, 255)
    sources = [
        ImageTasks(NUMBERED, queries=2),
        ImageTasks(NUMBERED, queries=3),
        ImageTasks(NUMBERED, queries=2, shots=2),
        ImageTasks(NUMBERED, queries=2, ways=4),
        ImageTasks(other_splits, queries=2),
        ImageTasks(other_images, queries=2),
        ImageTasks(numbered_classes(scale=1), queries=2),
    ]
    assert len({source.digest for source in sources}) == len(sources)
    assert ImageTasks(numbered_classes(), queries=2).digest == sources[0].digest


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 17}, "ways=17 but the split 'train' of numbered has 16 classes; use at most 16"),
        ({"shots": 4, "queries": 6}, r"shots=4 and queries=6 need 10 images .* numbered has 9; use at most 9 in all"),
        ({"ways": 0}, "ways=0 must be at least 1"),
        ({"shots": -1}, "shots=-1 .* at least 1"),
        ({"queries": 0}, "queries=0 .* at least 1"),
    ],
)
def test_impossible_sizes_are_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        ImageTasks(NUMBERED, **{"queries": 2, **options})


@pytest.mark.parametrize("value", [2.0, True, "3", None])
def test_counts_are_whole_numbers(value):
    with pytest.raises(ValueError, match=f"shots={value!r} .* whole number of at least 1"):
        check_count("shots", value)
    check_count("shots", np.int64(3))


@pytest.mark.parametrize("make", [lambda: ImageTasks(NUMBERED, ways=5, queries=2), SineLineTasks])
def test_bad_split_and_index_are_refused(make):
    with pytest.raises(ValueError, match="split='tset' is not one of train, val, test; did you mean 'test'"):
        make().episode(seed=0, split="tset", index=0)
    with pytest.raises(ValueError, match="split='zzz' is not one of train, val, test$"):
        make().episode(seed=0, split="zzz", index=0)
    with pytest.raises(ValueError, match="index=-1 must be at least 0"):
        make().episode(seed=0, split="train", index=-1)
    with pytest.raises(ValueError, match="seed=0.5 is not a whole number"):
        make().episode(seed=0.5, split="train", index=0)


def test_a_split_with_fewer_classes_than_ways_is_refused_when_a_task_of_it_is_requested():
    tasks = ImageTasks(NUMBERED, ways=5, queries=2)
    tasks.episode(seed=0, split="train", index=0)
    with pytest.raises(
        ValueError, match="ways=5 but the split 'val' of numbered has 4 classes; use at most 4, or a split of your own"
    ):
        tasks.episode(seed=0, split="val", index=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": NUMBERED.images.astype(np.float32)}, "images of n are float32 .* use uint8"),
        ({"images": NUMBERED.images[0]}, r"of shape \(9, 1, 1, 2\); use uint8 \[class, example"),
        ({"class_names": ("a", "b")}, "30 classes of images and 2 different class names"),
        ({"class_names": ("a",) * 30}, "30 classes of images and 1 different class names"),
        ({"splits": {"train": (0, 1), "test": (1, 2)}}, "a class of n is in two splits"),
        ({"splits": {"train": (0, 30)}}, "holds class 30; use positions 0 to 29"),
        ({"splits": {"train": (-1, 3)}}, "holds class -1; use positions 0 to 29"),
        ({"splits": {}}, "hold no class; give at least one split"),
    ],
)
def test_inconsistent_image_classes_are_refused(changes, message):
    parts = {"images": NUMBERED.images, "class_names": NUMBERED.class_names, "splits": SPLITS} | changes
    with pytest.raises(ValueError, match=message):
        ImageClasses(name="n", digest="0" * 64, **parts)


def test_open_tasks_suggests_the_nearest_name():
    with pytest.raises(
        ValueError, match="name='quickdraws' is not one of quickdraw, sine-line; did you mean 'quickdraw'"
    ):
        open_tasks("quickdraws")
