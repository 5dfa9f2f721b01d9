"""The values that a selection wants, on short rows for which they are obvious, with and without padding."""

import pytest
import torch
from torch import Tensor

from hessian_tools.curvature.eigen.selection import ROUNDING, Selection, Which, rounding

VALUES = torch.tensor([[2.0, -5.0, 4.0, 0.5], [1.0, 3.0, -2.0, 0.0]], dtype=torch.float64)
COUNT = torch.tensor([4, 3])  # the last value of the second row is padding
INF = torch.inf


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("LM", [[-5.0, 4.0, 2.0], [3.0, -2.0, 1.0]]),
        ("LA", [[4.0, 2.0, 0.5], [3.0, 1.0, -2.0]]),
        ("SA", [[-5.0, 0.5, 2.0], [-2.0, 1.0, 3.0]]),
        ("BE", [[4.0, 2.0, -5.0], [3.0, 1.0, -2.0]]),
    ],
)
def test_the_wanted_values_are_picked_in_order_and_padding_is_ignored(which: Which, wanted: list[list[float]]) -> None:
    selection = Selection(which, k=3, rtol=0.0)
    assert VALUES.gather(-1, selection.pick(VALUES, COUNT)).tolist() == wanted
    for padding in (9.0, -9.0):
        padded = torch.cat([VALUES, torch.full((2, 2), padding, dtype=VALUES.dtype)], dim=1)
        assert padded.gather(-1, selection.pick(padded, COUNT)).tolist() == wanted
    assert VALUES[0].gather(-1, selection.pick(VALUES[0])).tolist() == wanted[0]


def test_a_single_value_of_nan_stands_for_all_wanted_values() -> None:
    values = torch.tensor([[torch.nan, 0.0], [1.0, 2.0]])
    picked = values.gather(-1, Selection("SA", k=2, rtol=0.0).pick(values, torch.tensor([1, 2])))
    assert picked[0].isnan().all()
    assert picked[1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("which", "k", "high", "low"),
    [
        ("LM", 2, [4.0, 2.0], [-4.0, -2.0]),
        ("LA", 2, [2.0, 1.0], [-INF, -INF]),
        ("SA", 2, [INF, INF], [0.5, 1.0]),
        ("BE", 3, [2.0, 1.0], [-5.0, -2.0]),
        ("BE", 1, [4.0, 3.0], [-INF, -INF]),
        ("LA", 0, [INF, INF], [-INF, -INF]),
    ],
)
def test_a_further_value_is_wanted_exactly_beyond_the_thresholds(
    which: Which, k: int, high: list[float], low: list[float]
) -> None:
    selection = Selection(which, k, rtol=0.0)
    thresholds = selection.thresholds(VALUES, COUNT)
    assert [threshold.tolist() for threshold in thresholds] == [high, low]
    for row, count in zip(VALUES, COUNT.tolist(), strict=True):
        wanted = set(row[selection.pick(row[:count])].tolist())
        for new in (-9.0, -4.5, -3.0, 0.75, 1.5, 3.5, 9.0):
            longer = torch.cat([row[:count], torch.tensor([new], dtype=row.dtype)])
            changes = set(longer[selection.pick(longer)].tolist()) != wanted
            above, below = (float(threshold) for threshold in selection.thresholds(row[:count]))
            assert changes == (new > above or new < below)


@pytest.mark.parametrize(
    ("which", "order"),
    [
        ("LM", [-5.0, 4.0, 2.0, 0.5]),
        ("LA", [4.0, 2.0, 0.5, -5.0]),
        ("SA", [-5.0, 0.5, 2.0, 4.0]),
    ],
)
def test_preference_ranks_the_values(which: Which, order: list[float]) -> None:
    rank = Selection(which, k=1, rtol=0.0).preference(VALUES[:1])
    assert VALUES[0, rank[0].argsort()].tolist() == order


def test_preference_treats_both_ends_alike() -> None:
    assert Selection("BE", k=2, rtol=0.0).preference(VALUES[:1]).tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("which", "distance"),
    [
        ("LM", [2.0, -1.0, 0.0, 3.5]),
        ("LA", [0.0, 7.0, -2.0, 1.5]),
        ("SA", [1.5, -5.5, 3.5, 0.0]),
        ("BE", [2.0, 0.0, 0.0, 3.5]),
    ],
)
def test_the_distance_of_values_from_being_wanted(which: Which, distance: list[float]) -> None:
    selection = Selection(which, k=2, rtol=0.0)
    assert selection.distance(VALUES[:1], selection.pick(VALUES[:1])).tolist() == [distance]


def test_the_tolerance_is_relative_down_to_rounding() -> None:
    norm: Tensor = torch.tensor([1.0], dtype=torch.float64)
    values = torch.tensor([[1.0, 1e-20]], dtype=torch.float64)
    floor = ROUNDING * torch.finfo(torch.float64).eps
    assert Selection("LM", k=1, rtol=0.1).tolerance(values, rounding(torch.float64) * norm).tolist() == [[0.1, floor]]
