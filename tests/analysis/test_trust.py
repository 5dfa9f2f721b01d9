"""Tests that a study from a stranger runs no code: nothing that it names is imported unless the user trusts it."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from refused_commands import refused
from torch import nn

from analysis import UserError, run_study
from analysis.cli import run
from analysis.study import build
from analysis.study_file import load_study, overridden, study_text
from analysis.trust import HARMLESS, trusted_object
from hessian_tools.nets import Conv4

# A module that shows whether it was imported: its code writes a file into the working folder.
SOURCE = """
from pathlib import Path
Path("executed").touch()
from torch import nn

def small(outputs, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.Tanh(), nn.Linear(4, outputs))
"""
NAMES = ("os:system", "stranger:small", "stranger.py:small", "hessian_tools.nets.building:import_object")


@pytest.fixture
def stranger(working_folder):
    """A working folder with a module whose import leaves a file."""
    (working_folder / "stranger.py").write_text(SOURCE)
    yield working_folder
    sys.modules.pop("stranger", None)


def write_study(network: str) -> str:
    text = study_text("micro").replace("network: {name: conv4, width: 4, normalisation: batch}", f"network: {network}")
    learners = "  untrained: {algorithm: untrained}\n  maml-shot: {algorithm: maml, shot: {weight: 0.1}}\n"
    for line in learners.splitlines():
        text = text.replace(line + "\n", "")
    Path("mine.yaml").write_text(text.replace("seeds: [0, 1]", "seeds: [0]").replace("[0, 2, 5]", "[0, 1]"))
    return "mine.yaml"


@pytest.mark.parametrize(
    "target",
    [
        *NAMES,
        "builtins:exec",
        "builtins:eval",
        "subprocess:Popen",
        "posix:system",
        "hessian_tools.nets:load_network",
        "hessian_tools.nets:building",
        "hessian_tools.importing:import_object",
        "torch.nn:Module.__init_subclass__",
        "torch.nn:modules",
        "torch.nn:init",
        "torch.nn:functional",
        "torch.nn:Parameter",
        "torch.nn:DataParallel",
        "torch.nn:factory_kwargs",
        "torch.nn.init:normal_",
        "torch.nn.functional:relu",
        "torch.nn.modules.module:torch",
        "torch.nn:__builtins__",
        "torch:load",
        "torch.nn: Linear",
        "./torch.nn:Linear",
        "",
        ":",
        "x" * 5000 + ":y",
    ],
)
def test_without_trust_nothing_is_imported(stranger, monkeypatch, target):
    monkeypatch.setattr("analysis.trust.import_object", lambda *_, **__: pytest.fail("imported"))
    with pytest.raises(UserError, match="importing it runs its code; if you trust the study, add --trust") as error:
        trusted_object(target, trust=False)
    assert len(str(error.value)) < 500
    assert not (stranger / "executed").exists()


def test_our_networks_and_the_modules_of_torch_need_no_trust():
    assert trusted_object("hessian_tools.nets:Conv4", trust=False) is Conv4
    assert trusted_object("torch.nn:Linear", trust=False) is nn.Linear
    assert all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in HARMLESS.values())


def test_with_trust_a_module_is_imported_and_a_file_is_run_once(stranger):
    (stranger / "below").mkdir()
    shutil.copy("stranger.py", stranger / "below" / "stranger.py")
    assert trusted_object("stranger:small", trust=True).__module__ == "stranger"
    there = trusted_object(f"{stranger}/below/stranger.py:small", trust=True)
    assert there.__code__.co_filename == str(stranger / "below" / "stranger.py")
    assert trusted_object("below/stranger.py:small", trust=True) is there
    assert trusted_object("stranger.py:small", trust=True) is not there
    with pytest.raises(ValueError, match="there is no file"):
        trusted_object("absent.py:small", trust=True)
    with pytest.raises(ValueError, match="has no 'smal'; did you mean 'small'"):
        trusted_object("stranger.py:smal", trust=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ModuleList", {"modules": ["import os"]}),
        ("ModuleList", {}),
        ("ModuleDict", {"modules": {"a": "b"}}),
        ("Sequential", {}),
        ("Linear", {"in_features": "__import__('os').system('touch executed')", "out_features": 3}),
        ("Linear", {"in_features": 784, "out_features": 3, "device": "meta"}),
        ("Linear", {"in_features": 784, "out_features": 3, "device": "cuda:77"}),
        ("Linear", {"in_features": 784, "out_features": 3, "dtype": "float32"}),
        ("TransformerEncoderLayer", {"d_model": 28, "nhead": 1, "activation": "os.system"}),
        ("LSTM", {"input_size": 28, "hidden_size": 3}),
        ("LazyLinear", {"out_features": 3}),
        ("Upsample", {"size": 10}),
        ("Module", {}),
    ],
)
def test_no_option_of_a_module_of_torch_does_harm(stranger, capsys, name, options):
    import yaml

    file = write_study(yaml.safe_dump({"name": f"torch.nn:{name}", "options": options}, default_flow_style=True))
    assert "network: " in refused(capsys, ["study", file])
    assert {path.name for path in stranger.iterdir()} == {"mine.yaml", "stranger.py"}


@pytest.mark.parametrize(
    "network", ["{name: 'stranger:small'}", "{name: 'os:system', options: {command: touch executed}}"]
)
def test_a_study_that_names_a_module_is_refused_without_trust(stranger, capsys, network):
    file = write_study(network)
    for command in ("study", "train"):
        assert "add --trust" in refused(capsys, [command, file, "--workers", "0"])
    with pytest.raises(UserError, match="trust=True in Python"):
        run_study(file)
    assert {path.name for path in stranger.iterdir()} == {"mine.yaml", "stranger.py"}


def test_a_study_of_a_trusted_module_runs_in_worker_processes_too(stranger, capsys):
    file = write_study("{name: 'stranger:small'}")
    assert run(["train", file, "--out", "out", "--workers", "1", "--trust"]) == 0
    (stranger / "executed").unlink()
    sys.modules.pop("stranger")
    capsys.readouterr()
    assert "add --trust" in refused(capsys, ["measure", "out", "--workers", "1"])
    assert not (stranger / "executed").exists()
    assert run(["measure", "out", "--workers", "1", "--trust"]) == 0
    sys.modules.pop("stranger", None)
    (stranger / "executed").unlink()
    for command in ("test", "figures", "report", "info", "verify"):
        assert run([command, "out"]) == 0, capsys.readouterr().err
    assert "4 x" not in (stranger / "out" / "report.html").read_text()
    assert "stranger:small, 3,155 parameters" in (stranger / "out" / "report.html").read_text()
    assert not (stranger / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_from_a_stranger_runs_no_code(stranger, capsys, micro_study, name):
    """The stranger has put a network of theirs into study.yaml of a complete study, and its module beside it."""
    out = stranger / "out"
    shutil.copytree(micro_study, out)
    shutil.copy("stranger.py", out)
    text = (out / "study.yaml").read_text()
    assert "name: conv4" in text
    (out / "study.yaml").write_text(text.replace("name: conv4\n", f"name: {name}\n").replace("width: 4\n", ""))
    for command in ("report", "figures", "info", "verify", "test", "measure", "study"):
        run([command, "out"])
        assert not (stranger / "executed").exists(), command
    assert "add --trust" in capsys.readouterr().err
    assert os.getcwd() not in sys.path


def test_the_problem_of_a_study_is_sent_to_workers_with_its_trust():
    import pickle

    config = overridden(load_study("micro"), {"network": {"name": "mlp", "hidden": [3]}})
    for trust in (False, True):
        problem = build(config, trust=trust).problem
        assert pickle.loads(pickle.dumps(problem)).trust is trust
    assert torch.is_tensor(next(problem.network().parameters()))
