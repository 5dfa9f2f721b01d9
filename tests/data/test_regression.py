"""The sine and line tasks have the distributions of the paper's recipe, measured over many tasks."""

import math

import numpy as np
import pytest
import torch

from hessian_tools.data import Line, Sine, SineLineTasks, TaskSource, open_tasks

# The digest of ``SineLineTasks()``. If the recipe is changed on purpose, raise the number in ``CURVE_RECIPE``
# (hessian_tools/data/regression.py) and put the new digest here.
GOLDEN_DIGEST = "d2adc4a1e5f335220b3b4860d16fe25b5ab9e47ac9f27dcf2a661b9ca877e505"
TASKS = SineLineTasks()


def every_point(index: int, tasks: SineLineTasks = TASKS) -> tuple[np.ndarray, np.ndarray]:
    """All x and y of a task, sorted by x."""
    support, query = tasks.episode(seed=0, split="train", index=index)
    x, y = (torch.cat([s, q]).squeeze(1).double().numpy() for s, q in zip(support, query, strict=True))
    return x[np.argsort(x)], y[np.argsort(x)]


def test_a_curve_and_its_support_set_have_their_fixed_values():
    """Numbers are compared instead of a hash, because the last bits of sin and log depend on the machine."""
    assert TASKS.curve(seed=7, split="test", index=16) == Sine(4.695370118940789, 2.240676424237103)
    x, y = TASKS.episode(seed=7, split="test", index=16).support
    np.testing.assert_allclose(x.squeeze(1), [3.7755103, 2.9591837, -4.1836734, -5.0, 2.7551022], rtol=1e-6)
    np.testing.assert_allclose(y.squeeze(1), [-1.5220522, -4.2615414, -4.2117581, -1.7508758, -4.00985], rtol=1e-6)


def test_the_digest_is_fixed_and_depends_on_every_field():
    assert TASKS.digest == GOLDEN_DIGEST
    variants = [TASKS, SineLineTasks(support=6), SineLineTasks(points=51), SineLineTasks(noise=0.0)]
    assert len({tasks.digest for tasks in variants}) == len(variants)


def test_shapes_of_an_episode_and_the_interface_of_a_task_source():
    support, query = TASKS.episode(seed=0, split="val", index=3)
    assert [tuple(part.shape) for part in (*support, *query)] == [(5, 1), (5, 1), (45, 1), (45, 1)]
    assert all(part.dtype == torch.float32 for part in (*support, *query))
    assert isinstance(TASKS, TaskSource)
    assert (TASKS.kind, TASKS.input_shape, TASKS.outputs) == ("regression", (1,), 1)
    assert open_tasks("sine-line") == TASKS


def test_the_values_of_x_are_fixed_and_divided_at_random():
    for index in range(20):
        np.testing.assert_allclose(every_point(index)[0], np.linspace(-5, 5, 50), rtol=1e-6)
    first = {TASKS.episode(seed=0, split="train", index=index).support[0][0].item() for index in range(300)}
    assert len(first) > 40


def test_the_points_lie_on_the_curve_that_the_task_returns():
    tasks = SineLineTasks(noise=0.0)
    for index in range(10):
        x, y = every_point(index, tasks)
        curve = tasks.curve(seed=0, split="train", index=index)
        np.testing.assert_allclose(y, curve(x), atol=1e-5)


def test_curves_and_their_coefficients_have_the_distributions_of_the_recipe():
    curves = [TASKS.curve(seed=0, split="train", index=index) for index in range(2000)]
    sines = [curve for curve in curves if isinstance(curve, Sine)]
    lines = [curve for curve in curves if isinstance(curve, Line)]
    assert abs(len(sines) - 1000) < 5 * math.sqrt(2000 / 4)
    for values, low, high in (
        ([s.amplitude for s in sines], 0.1, 5.0),
        ([s.phase for s in sines], 0.0, math.pi),
        ([line.slope for line in lines], -3.0, 3.0),
        ([line.intercept for line in lines], -3.0, 3.0),
    ):
        stderr = (high - low) / math.sqrt(12 * len(values))  # of the mean of uniform numbers
        assert low <= min(values) < low + 2 * stderr and high - 2 * stderr < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 5 * stderr


def test_the_noise_has_the_documented_standard_deviation():
    clean = SineLineTasks(noise=0.0)
    noise = np.concatenate([every_point(i)[1] - every_point(i, clean)[1] for i in range(200)])
    assert abs(noise.std() - 0.3) < 5 * 0.3 / math.sqrt(2 * len(noise))
    assert abs(noise.mean()) < 5 * 0.3 / math.sqrt(len(noise))


def test_support_size_changes_neither_curve_nor_noise_nor_order():
    few = TASKS.episode(seed=0, split="test", index=0)
    many = SineLineTasks(support=10).episode(seed=0, split="test", index=0)
    for a, b, c, d in zip(few.support, few.query, many.support, many.query, strict=True):
        assert torch.equal(torch.cat([a, b]), torch.cat([c, d]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support": 0}, "support=0 .* at least 1"),
        ({"support": 50}, "support=50 of points=50 leaves no point for the query set; use at most 49"),
        ({"noise": -0.1}, "noise=-0.1 must be a finite number"),
        ({"noise": math.nan}, "noise=nan must be a finite number"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SineLineTasks(**options)
