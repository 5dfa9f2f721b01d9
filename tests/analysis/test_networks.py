"""Tests of the network of a study: one of ours with options, or one of the user's, given by its import path.

The network is recorded in the manifest of a run, and mistakes in its settings are named before anything is written.
"""

import json
import sys

import pytest
import torch
from cases import without_type_checks
from refused_commands import refused

from analysis.cli import run
from analysis.config import NetworkConfig
from analysis.study import build, check
from analysis.study_file import load_study, overridden, study_text
from hessian_tools import adapt, seeded
from hessian_tools.inner.parameters import num_moved
from hessian_tools.nets import MLP, Conv4, ResNet12, VisionTransformer
from hessian_tools.train import task_loss

# The module of the user. Its function ``wide`` is wrong: the network that it makes has one output too many.
SOURCE = """
from torch import nn

def small(outputs, input_shape, hidden=3, dropout=0.0):
    pixels = input_shape[1] * input_shape[2]
    layers = [nn.Flatten(), nn.AvgPool1d(49), nn.Linear(pixels // 49, hidden), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))

def wide(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs + 1))
"""
# The line of the micro study that tests replace by another network.
MICRO_NETWORK = "network: {name: conv4, width: 4, normalisation: batch}"


@pytest.fixture
def mine(working_folder):
    """A working folder with the user's module own_networks.py."""
    (working_folder / "own_networks.py").write_text(SOURCE)
    yield working_folder
    sys.modules.pop("own_networks", None)


def write_study_file(working_folder, network: str, *changes: tuple[str, str]) -> str:
    """Write the micro study with another network to mine.yaml, and return the name of the file.

    changes: pairs (old text, new text) to be replaced as well.
    """
    text = study_text("micro")
    for old, new in ((MICRO_NETWORK, f"network: {network}"), *changes):
        assert old in text
        text = text.replace(old, new, 1)
    (working_folder / "mine.yaml").write_text(text)
    return "mine.yaml"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ({"name": "conv4", "width": 6}, lambda: Conv4(3, width=6)),
        (
            {"name": "conv4", "width": 4, "normalisation": "group", "options": {"groups": 2}},
            lambda: Conv4(3, width=4, normalisation="group", groups=2),
        ),
        (
            {"name": "resnet12", "options": {"widths": [2, 2, 2, 4], "residual": [True, True, True, False]}},
            lambda: ResNet12(3, widths=(2, 2, 2, 4), residual=(True, True, True, False), input_shape=(1, 28, 28)),
        ),
        (
            {"name": "vit", "options": {"patch": 14, "width": 8, "depth": 1}},
            lambda: VisionTransformer(3, patch=14, width=8, depth=1),
        ),
        ({"name": "mlp", "hidden": [5]}, lambda: MLP((784, 5, 3))),
        ({"name": "hessian_tools.nets:Conv4", "options": {"width": 6}}, lambda: Conv4(3, width=6)),
    ],
)
def test_the_configured_network_is_built(network, expected):
    config = overridden(load_study("micro"), {"network": network})
    study = build(config)
    network, wanted = seeded(study.problem.network, seed=1), seeded(expected, seed=1)
    assert type(network) is type(wanted)
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert network(x).equal(wanted(x))
    again = NetworkConfig.model_validate(json.loads(config.network.model_dump_json()))
    assert again == config.network
    assert hash(again) == hash(config.network)
    check(study)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("{name: resnet}", "'resnet' is not one of conv4, resnet12, vit, mlp, nor an import path"),
        ("{name: 'own networks:small'}", "nor an import path package.module:name"),
        ("{name: mlp, width: 4}", "width is a setting of conv4, not of mlp; leave it out"),
        ("{name: vit, normalisation: group}", "normalisation is a setting of conv4 and resnet12, not of vit"),
        ("{name: 'own_networks:small', hidden: [4]}", "not of own_networks:small; write it under options"),
        ("{name: conv4, options: {width: 4}}", "width of conv4 is written directly under network, not under options"),
        ("{name: mlp, options: {depth: 4}}", "mlp has no options, got depth"),
        ("{name: conv4, option: {groups: 4}}", "unknown key 'network.option'; did you mean 'options'?"),
        ("{name: conv4, options: {gruops: 4}}", "unexpected keyword argument 'gruops'"),
        ("{name: conv4, width: 12, normalisation: group}", "network: groups=8 does not divide 12 channels"),
        ("{name: vit, options: {patch: 5}}", "network: patch=5 does not divide images of 28x28"),
        ("{name: vit, options: {patch: big}}", "patch='big' must be a whole number, 1 or more"),
        ("{name: 'own_network:small'}", "there is no module 'own_network' in"),
        ("{name: 'own_networks:smal'}", "module own_networks has no 'smal'; did you mean 'small'?"),
        ("{name: 'own_networks:wide'}", "returns shape (4, 4) for 4 examples of shape (1, 28, 28)"),
        ("{name: conv4, width: 4, head: neck}", "network: head='neck' holds no parameter; the parameters are body.0.0"),
        ("{name: 'own_networks:small', options: {dropout: 0.5}}", "network: module '4' (Dropout) draws random numbers"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(mine, capsys, network, said):
    with without_type_checks():  # their messages would come before ours
        assert said in refused(capsys, ["study", write_study_file(mine, network), "--trust"])
    assert {path.name for path in mine.iterdir()} - {"__pycache__"} == {"mine.yaml", "own_networks.py"}


@pytest.mark.heavy
def test_a_study_runs_with_a_network_of_the_user(mine, capsys):
    """It is trained and measured, and refused once the file of the network has changed.

    The manifest records the import path of the network, its options, and a digest of the file.
    """
    removed_learners = "  untrained: {algorithm: untrained}\n  maml-shot: {algorithm: maml, shot: {weight: 0.1}}\n"
    removals = [(line + "\n", "") for line in removed_learners.splitlines()]
    short = [("seeds: [0, 1]", "seeds: [0]"), ("[0, 2, 5]", "[0, 1]"), *removals]
    file = write_study_file(mine, "{name: 'own_networks:small', options: {hidden: 4}}", *short)
    assert run(["train", file, "--out", "out", "--workers", "0", "--trust"]) == 0
    manifest = json.loads((mine / "out" / "runs" / "maml-seed0" / "manifest.json").read_text())["config"]
    assert manifest["network"]["name"] == "own_networks:small"
    assert manifest["network"]["options"] == {"hidden": 4}
    assert len(manifest["network_source"]) == 64  # a SHA-256 digest in hexadecimal
    assert run(["measure", "out", "--workers", "0", "--trust"]) == 0
    (mine / "own_networks.py").write_text(SOURCE + "\n# changed\n")
    capsys.readouterr()
    assert "holds another run: its network_source is" in refused(capsys, ["train", file, "--out", "out", "--trust"])


def test_the_head_can_be_another_module():
    """With another head, ANIL moves this module alone, and BOIL moves everything else."""
    learners = {"anil": {"algorithm": "anil"}, "boil": {"algorithm": "boil"}}
    settings = {"name": "mlp", "hidden": [5, 4]}
    for head, moved in (("body.2", {"body.2.weight", "body.2.bias"}), (None, {"head.weight", "head.bias"})):
        config = overridden(load_study("micro"), {"network": settings | {"head": head}, "learners": learners})
        study = build(config)
        check(study)
        for name in learners:
            training = study.training(name, 0)
            loss, theta = task_loss(training)
            support, _ = training.tasks.episode(seed=0, split="train", index=0)
            change = loss.layout.unflatten(adapt(training.learner, loss, theta, support) - theta)
            changed = {parameter for parameter, value in change.items() if value.any()}
            assert changed == (moved if name == "anil" else set(loss.layout.names) - moved)
            count = num_moved(training.learner, loss.layout)
            assert count == sum(change[parameter].numel() for parameter in changed)
