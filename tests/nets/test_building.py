"""Networks are built from a seed or by import path, and every mistake gives a readable error."""

import sys

import pytest
import torch
from cases import without_type_checks
from torch import nn

from hessian_tools import HiddenStateError, flatten, load_network, seeded
from hessian_tools.nets import Conv4, refuse_unfit

SOURCE = """
import torch
from textwrap import dedent
from torch import nn

made = nn.Linear(2, 2)
NUMBER = 3

class Net(nn.Module):
    def __init__(self, outputs, input_shape, hidden=4):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], hidden), nn.Tanh())
        self.head = nn.Linear(hidden, outputs)
    def forward(self, x):
        return self.head(self.body(x))

def fixed(hidden):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, hidden), nn.Linear(hidden, 3))

def anything(**options):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, options["outputs_wanted"]))

def a_dict(outputs):
    return {"outputs": outputs}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the working folder, which is not on the path of a console script."""
    (tmp_path / "networks_of_mine.py").write_text(SOURCE)
    (tmp_path / "broken_of_mine.py").write_text("import no_such_thing_at_all\n")
    (tmp_path / "failing_of_mine.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    yield "networks_of_mine"
    sys.modules.pop("networks_of_mine", None)


def load(target, **options):
    return load_network(target, outputs=3, input_shape=(2, 3), options=options)


def test_outputs_and_input_shape_are_passed_if_the_network_accepts_them(mine):
    before = list(sys.path)
    x = torch.ones(5, 2, 3)
    assert seeded(load(f"{mine}:Net"), seed=0)(x).shape == (5, 3)
    assert load(f"{mine}:Net", hidden=7)().head.in_features == 7
    assert load(f"{mine}:Net", outputs=9)().head.out_features == 9  # the user's option has priority
    assert load(f"{mine}:fixed", hidden=2)()(x).shape == (5, 3)
    assert load(f"{mine}:anything", outputs_wanted=4)()(x).shape == (5, 4)
    assert sys.path == before


def test_a_bundled_network_can_be_named_by_its_import_path():
    build = load_network("hessian_tools.nets:Conv4", outputs=5, input_shape=(1, 28, 28), options={"width": 8})
    ours = seeded(lambda: Conv4(5, width=8), seed=1).state_dict()
    assert all(tensor.equal(ours[name]) for name, tensor in seeded(build, seed=1).state_dict().items())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("Net", "'Net' is not an import path; write package.module:name"),
        (":Net", "write package.module:name"),
        ("networks_of_mine:", "write package.module:name"),
        ("no_such_module:Net", "no module 'no_such_module' in .* add that folder to PYTHONPATH"),
        ("networks_of_mine.deeper:Net", "there is no module 'networks_of_mine.deeper'"),
        ("networks_of_mine:Nett", "module networks_of_mine has no 'Nett'; did you mean 'Net'"),
        ("networks_of_mine:xyz", "has no 'xyz'; it has Net, fixed, anything, a_dict"),
        ("networks_of_mine:made", "is a network that is already built; name a class"),
        ("networks_of_mine:NUMBER", "is a int; name a class or a function"),
        ("networks_of_mine:fixed", "cannot be called with nothing: missing a required argument: 'hidden'"),
        ("broken_of_mine:Net", "importing broken_of_mine failed: No module named 'no_such_thing_at_all'"),
        ("failing_of_mine:Net", "importing failing_of_mine failed: ZeroDivisionError"),
    ],
)
def test_a_network_that_cannot_be_found_or_built_gives_a_message_of_one_line(mine, target, message):
    with pytest.raises(ValueError, match=message) as error:
        load(target)
    assert len(str(error.value).splitlines()) == 1


def test_options_that_the_network_does_not_accept_are_named(mine):
    with pytest.raises(ValueError, match="unexpected keyword argument 'widht'; it takes"):
        load(f"{mine}:Net", widht=4)


def test_a_function_that_does_not_build_a_module_is_refused_when_it_is_called(mine):
    with pytest.raises(ValueError, match="networks_of_mine:a_dict makes a dict, not a torch.nn.Module"):
        load(f"{mine}:a_dict")()


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), ValueError, r"returns shape \(4, 4\) .* need .* \(4, 3\)"),
        (nn.Linear(3, 3), ValueError, r"returns shape \(4, 2, 3\) for 4 examples of shape \(2, 3\)"),
        (nn.LSTM(3, 3, batch_first=True), ValueError, "returns a tuple for 4 examples"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), ValueError, "cannot take examples of shape"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), ValueError, "has lazy layers"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 3)), HiddenStateError, r"module '1' \(Dropout\)"),
        (
            nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3)),
            HiddenStateError,
            "track_running_stats=False",
        ),
        (nn.Sequential(nn.Flatten()), ValueError, "no parameter"),
        # Outputs that no memory could hold are not computed.
        (nn.Conv1d(2, 2, 1, padding=2**40), ValueError, r"returns shape \(4, 2, 2199023255555\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_that_cannot_be_trained_or_measured_are_refused(model, error, message):
    state = torch.get_rng_state()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with without_type_checks(), pytest.raises(error, match=message):
        refuse_unfit(model, outputs=3, input_shape=(2, 3))
    assert torch.get_rng_state().equal(state)
    assert all(b.equal(buffers[name]) for name, b in model.named_buffers())


def test_a_fit_network_passes(mine):
    refuse_unfit(seeded(load(f"{mine}:Net"), seed=0), outputs=3, input_shape=(2, 3))
    refuse_unfit(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval(), outputs=3, input_shape=(2, 3))


# Networks built from a seed


def test_initial_parameters_do_not_depend_on_the_default_device() -> None:
    expected, _ = flatten(seeded(lambda: nn.Linear(3, 2), seed=1))
    torch.set_default_device("meta")
    try:
        theta, _ = flatten(seeded(lambda: nn.Linear(3, 2), seed=1))
    finally:
        torch.set_default_device(None)
    assert theta.equal(expected)


def test_building_leaves_the_global_random_states_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not in use yet is not seeded either; torch.manual_seed would seed it when it comes into use."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)
    before = torch.get_rng_state()
    seeded(lambda: nn.Linear(3, 2), seed=1)
    assert torch.get_rng_state().equal(before)
