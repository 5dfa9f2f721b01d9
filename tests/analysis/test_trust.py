"""Tests that a study from a stranger runs no code: nothing that it names is imported unless the user trusts it."""

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from refused_commands import refused
from torch import nn

from analysis import UserError, open_study, run_study
from analysis.cli import run
from analysis.folder import refuse_occupied, write_settings
from analysis.study import build
from analysis.study_file import load_study, overridden, study_text
from analysis.trust import HARMLESS, trusted_object
from hessian_tools.nets import Conv4

DOCUMENTS = Path(__file__).parents[2] / "docs"
# A module that shows whether it was imported: its code writes a file into the working folder.
SOURCE = """
from pathlib import Path
Path("executed").touch()
from torch import nn

def small(outputs, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.Tanh(), nn.Linear(4, outputs))
"""

HARMLESS_COMMANDS = (
    "test out",
    "figures out",
    "report out",
    "info out",
    "verify out",
    "keep out --out kept",
)


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
        "os:system",
        "stranger:small",
        "stranger.py:small",
        "hessian_tools.nets.building:import_object",
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
    Path("own.py").write_text("from fractions import Fraction\nclass Mine:\n    pass\nFLAT = Mine()\n")
    with pytest.raises(ValueError, match="has no 'FLTA'; did you mean 'FLAT'"):
        trusted_object("own.py:FLTA", trust=True)
    with pytest.raises(ValueError, match="has no 'other'; it has Mine$"):
        trusted_object("own.py:other", trust=True)


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


@pytest.mark.heavy
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
    for command in HARMLESS_COMMANDS:
        assert run(command.split()) == 0, (command, capsys.readouterr().err)
    assert "stranger:small, 3,155 parameters" in (stranger / "out" / "report.html").read_text()
    assert not (stranger / "executed").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["os:system", "stranger.py:small"])
def test_a_folder_from_a_stranger_runs_no_code(stranger, capsys, micro_study, name):
    """The stranger has put a network of theirs into study.yaml of a complete study, and its module beside it."""
    out = stranger / "out"
    shutil.copytree(micro_study, out)
    shutil.copy("stranger.py", out)
    settings = yaml.safe_load((out / "study.yaml").read_text())
    settings["network"] = {"name": name}
    settings["measure"]["quantities"] = ["standard", "stranger.py:small"]
    settings["claims"] = {"theirs": "stranger:small"}
    (out / "study.yaml").write_text(yaml.safe_dump(settings))
    for command in (*HARMLESS_COMMANDS, "compare out kept", "measure out", "study out"):
        run(command.split())
        assert not (stranger / "executed").exists(), command
    assert "add --trust" in capsys.readouterr().err
    assert os.getcwd() not in sys.path


def example(document: str, file: str) -> None:
    """Write the first Python code of a document into a file, which leaves a file named after it when it is imported."""
    code = re.findall(r"```python\n(.*?)```", (DOCUMENTS / document).read_text(encoding="utf-8"), re.DOTALL)[0]
    Path(file).write_text(f'from pathlib import Path\nPath("{Path(file).stem}.executed").touch()\n{code}')


def setting(document: str) -> str:
    """The piece of a study's YAML in a document."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCUMENTS / document).read_text(encoding="utf-8"), re.DOTALL)
    return text


def executed() -> set[str]:
    """The stems of the files that were imported since the last call."""
    marks = list(Path().glob("*.executed"))
    for mark in marks:
        mark.unlink()
    for name in [name for name in sys.modules if name.startswith(("my_quantities_", "my_claims_"))]:
        del sys.modules[name]
    return {mark.stem for mark in marks}


@pytest.mark.heavy
@pytest.mark.skipif(not DOCUMENTS.exists(), reason="an installed package has no documents")
def test_the_documents_quantity_and_claim_are_measured_and_judged_with_trust_only(stranger, capsys):
    """Their files stand beside the YAML, which is in another folder than the one in which the commands run."""
    (stranger / "mine").mkdir()
    example("your_own_quantity.md", "mine/my_quantities.py")
    example("claims.md", "mine/my_claims.py")
    text = Path(write_study("{name: conv4, width: 4}")).read_text()
    text = text.replace("measure:\n", setting("your_own_quantity.md")).replace("seeds: [0]", "seeds: [0, 1]")
    file = stranger / "mine" / "study.yaml"
    file.write_text(text + setting("claims.md"))
    shutil.move("mine.yaml", "mine/as_bundled.yaml")

    message = refused(capsys, ["study", str(file), "--out", "out"])
    assert "measure.quantities: " in message
    assert "my_quantities.py:ALONG_DISPLACEMENT is not part of this library" in message
    assert executed() == set()
    assert not Path("out").exists()

    assert run(["train", str(file), "--out", "out", "--workers", "0", "--trust"]) == 0
    assert executed() == {"my_quantities", "my_claims"}
    capsys.readouterr()
    assert "add --trust" in refused(capsys, ["measure", "out"])
    assert executed() == set()
    assert run(["measure", "out", "--workers", "1", "--trust"]) == 0
    assert executed() == {"my_quantities"}
    assert np.isfinite(open_study("out")["rho_displacement"].sel(learner="maml", checkpoint=1)).all()
    assert executed() == set()

    capsys.readouterr()
    assert "claims.lower-query-loss: " in refused(capsys, ["test", "out"])
    assert run(["test", "out", "--trust"]) == 0
    assert executed() == {"my_claims"}
    capsys.readouterr()
    assert "lower-query-loss" in (stranger / "out" / "verdicts.json").read_text()
    for command in HARMLESS_COMMANDS[1:]:
        assert run(command.split()) == 0, (command, capsys.readouterr().err)
    assert executed() == set()
    assert "meta-training lowers the query loss after adaptation" in (stranger / "out" / "report.html").read_text()
    settings = (stranger / "kept" / "study.yaml").read_text()
    assert "lower-query-loss: my_claims.py:judge" in settings
    assert str(stranger) not in settings

    # Kept results hold no path of this machine, so the file of the claim is put beside them.
    capsys.readouterr()
    assert "there is no file" in refused(capsys, ["test", "kept", "--trust"])
    shutil.copy("mine/my_claims.py", "kept")
    assert run(["test", "kept", "--trust"]) == 0
    assert executed() == {"my_claims"}
    assert run(["compare", "out", "kept", "--out", "compared"]) == 0
    assert executed() == set()

    # The quantity's file must not change between training and measuring.
    capsys.readouterr()
    with (stranger / "mine" / "my_quantities.py").open("a") as code:
        code.write("# changed\n")
    said = refused(capsys, ["measure", "out", "--trust"])
    assert "my_quantities.py has changed since" in said and "put the old file back" in said


def test_a_claim_may_be_added_to_a_study_and_none_taken_away_or_changed(tmp_path):
    config = load_study("micro")
    one, both = (overridden(config, {"claims": claims}) for claims in ({"a": "m:f"}, {"a": "m:f", "b": "m:g"}))
    assert "claims" not in config.model_dump(mode="json")  # folders begun before this setting can be resumed
    for before, after in ((config, one), (one, both), (one, one)):
        write_settings(before, tmp_path, plan="")
        refuse_occupied(build(after, tmp_path))
    for after in (config, overridden(config, {"claims": {"a": "m:other", "b": "m:g"}})):
        with pytest.raises(UserError, match=r"its claims is .*only seeds, learners and claims may be added"):
            refuse_occupied(build(after, tmp_path))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("stranger.py:SOURCE", "has no 'SOURCE'"),
        ("stranger.py:Path", "is a Path, not a function of the Dataset and the plan"),
        ("absent.py:judge", "there is no file"),
    ],
)
def test_a_claim_that_is_no_function_is_named(stranger, target, said):
    study = build(overridden(load_study("micro"), {"claims": {"mine": target}}), trust=True)
    with pytest.raises(UserError, match=f"^claims.mine: .*{said}"):
        _ = study.own_claims


def test_files_of_code_count_from_the_folder_of_the_yaml(stranger):
    (stranger / "below").mkdir()
    text = study_text("micro").replace("{name: conv4, width: 4, normalisation: batch}", "{name: 'nets.py:small'}")
    Path("below/mine.yaml").write_text(text + "claims: {own: '../c.py:judge', other: 'm.n:judge'}\n")
    config = load_study("below/mine.yaml")
    assert config.network.name == f"{stranger}/below/nets.py:small"
    assert config.claims == {"own": f"{stranger}/c.py:judge", "other": "m.n:judge"}
    assert config.measure.quantities == ("standard",)


def test_the_problem_of_a_study_is_sent_to_workers_with_its_trust():
    import pickle

    config = overridden(load_study("micro"), {"network": {"name": "mlp", "hidden": [3]}})
    for trust in (False, True):
        problem = build(config, trust=trust).problem
        assert pickle.loads(pickle.dumps(problem)).trust is trust
    assert torch.is_tensor(next(problem.network().parameters()))
