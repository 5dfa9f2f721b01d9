"""Points (parameter vectors) are read from vectors, state dicts and files; a state that does not fit is refused."""

import pytest
import torch
from cases import quadratic, without_type_checks
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from hessian_tools import flatten, make_loss, stream
from hessian_tools.trajectory.foreign import points_of_states


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight


def model_and_loss(where=None, norm=True):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) if norm else Tied()
    return model, make_loss(model, F.cross_entropy, flatten(model, where)[1])


def shifted(model: nn.Module, k: int) -> dict[str, torch.Tensor]:
    """A state dict with other parameters and the same buffers."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: t + k if name in parameters else t.clone() for name, t in model.state_dict().items()}


def test_vectors_state_dicts_and_files_are_the_same_points(tmp_path):
    model, loss = model_and_loss()
    states = [shifted(model, k) for k in range(3)]
    for k, state in enumerate(states):
        save_file(state, tmp_path / f"{k}.safetensors")
    vectors = torch.stack([loss.layout.flatten(state) for state in states])
    mixed = [states[0], str(tmp_path / "1.safetensors"), tmp_path / "2.safetensors"]
    for given in (vectors, list(vectors), states, mixed, iter(mixed)):
        assert points_of_states(loss, given).equal(vectors)
    only_parameters = [{name: state[name] for name in reversed(loss.layout.names)} for state in states]
    assert points_of_states(loss, only_parameters).equal(vectors)
    assert not points_of_states(loss, [model.state_dict(keep_vars=True)]).requires_grad


def test_points_are_copies():
    _, loss = model_and_loss()
    vector = torch.zeros(loss.layout.numel)
    points_of_states(loss, [vector]).fill_(7)
    assert vector.eq(0).all()


def test_a_layout_of_some_parameters_ignores_or_checks_the_others():
    """Parameters outside the layout must be equal to the model's, or absent."""
    model, loss = model_and_loss(where=["2"])
    state = model.state_dict() | {"2.bias": torch.ones(2)}
    assert (
        points_of_states(loss, [state, {"2.weight": state["2.weight"], "2.bias": state["2.bias"]}])[:, -1].eq(1).all()
    )
    with pytest.raises(
        ValueError, match="state 1: '0.bias' differs from the model's, but the points leave this parameter out"
    ):
        points_of_states(loss, [state, state | {"0.bias": torch.ones(4)}])


@pytest.mark.parametrize("kept", [("a.weight", "b.weight"), ("a.weight",), ("b.weight",)])
def test_a_tied_weight_may_be_stored_under_any_of_its_names(kept):
    model, loss = model_and_loss(norm=False)
    state = {name: tensor for name, tensor in shifted(model, 1).items() if name in kept}
    assert points_of_states(loss, [state]).equal(state[kept[0]].reshape(1, 9))


def test_running_statistics_that_moved_are_refused_or_ignored():
    model, loss = model_and_loss()
    trained = shifted(model, 1) | {"1.running_mean": torch.ones(4)}
    with pytest.raises(ValueError, match="buffer '1.running_mean' differs from the model's, .* buffers='ignore'"):
        points_of_states(loss, [model.state_dict(), trained])
    points = points_of_states(loss, [trained], buffers="ignore")
    assert points.equal(loss.layout.flatten(trained)[None])
    assert model[1].running_mean.eq(0).all()
    untracked = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    other = make_loss(untracked, F.cross_entropy, flatten(untracked)[1])
    with pytest.raises(ValueError, match="has '1.running_mean', which the model does not have"):
        points_of_states(other, [trained])
    assert points_of_states(other, [trained], buffers="ignore").equal(points)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "2.weight"), "state 1 has no parameter '2.weight'; it has 0.weight, 0.bias"),
        (lambda s: s | {"2.weight": torch.ones(2, 3)}, r"'2.weight' has shape \[2, 3\], but the layout's has \[2, 4\]"),
        (lambda s: s | {"3.weight": torch.ones(2)}, "'3.weight', which the model does not have; is this another model"),
        (lambda s: {f"module.{name}": t for name, t in s.items()}, r"a wrapper .* give wrapper.module.state_dict\(\)"),
        (lambda s: torch.ones(5), r"state 1 has shape \[5\]; a vector of all parameters has \[34\]"),
        (lambda s: torch.ones(1, 34), r"state 1 has shape \[1, 34\]"),
        (lambda s: "nowhere.safetensors", "state 1: there is no file nowhere.safetensors"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(change, message):
    model, loss = model_and_loss()
    with pytest.raises(ValueError, match=message) as error:
        points_of_states(loss, [model.state_dict(), change(model.state_dict())])
    assert len(str(error.value).splitlines()) == 1


def test_a_pickle_is_refused(tmp_path):
    model, loss = model_and_loss()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    with pytest.raises(ValueError, match="no safetensors file .* pickles .* can run code"):
        points_of_states(loss, [tmp_path / "state.pt"])


def test_a_plain_function_takes_only_vectors():
    points = torch.randn(2, 3, generator=stream(0))
    assert points_of_states(quadratic, points).equal(points)
    with pytest.raises(ValueError, match="but a plain function has none"):
        points_of_states(quadratic, [{"a": points[0]}])
    with pytest.raises(ValueError, match="state 1 has 2 numbers, but state 0 has 3"):
        points_of_states(quadratic, [points[0], points[1, :2]])
    with pytest.raises(ValueError, match="state 0 has numbers of torch.int64"):
        points_of_states(quadratic, [torch.arange(3)])
    with pytest.raises(ValueError, match="no states given"):
        points_of_states(quadratic, [])
    with without_type_checks(), pytest.raises(ValueError, match="buffers='keep' is not one of refuse, ignore"):
        points_of_states(quadratic, points, buffers="keep")
