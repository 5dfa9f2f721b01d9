"""Initial parameters depend on the seed, and on nothing that the process was set to."""

import pytest
import torch
from torch import nn

from hessian_tools import flatten, seeded


def test_the_default_device_is_not_asked() -> None:
    expected, _ = flatten(seeded(lambda: nn.Linear(3, 2), seed=1))
    torch.set_default_device("meta")
    try:
        found, _ = flatten(seeded(lambda: nn.Linear(3, 2), seed=1))
    finally:
        torch.set_default_device(None)
    assert found.equal(expected)


def test_random_states_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of a GPU which is not in use yet, and which torch.manual_seed would seed once it is."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)
    before = torch.get_rng_state()
    seeded(lambda: nn.Linear(3, 2), seed=1)
    assert torch.get_rng_state().equal(before)
