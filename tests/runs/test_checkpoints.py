"""A checkpoint must hold the vector of meta-parameters; anything else is a damaged file, named in the message."""

import json
import os
from itertools import product

import pytest
import torch
from safetensors.torch import save_file

from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import DamagedFileError, file_digest, read_json, write_json
from hessian_tools.runs.manifest import record_ownership, training_digest

THETA = torch.arange(6.0)


@pytest.mark.parametrize(
    ("tensors", "held"),
    [
        ({"other": THETA}, "it holds nothing"),
        ({"theta": THETA.long()}, r"torch.int64 of shape \[6\]"),
        ({"theta": THETA[None]}, r"torch.float32 of shape \[1, 6\]"),
        ({"theta": THETA[:5]}, r"torch.float32 of shape \[5\], but it must hold a vector of 6 or more"),
        ({"theta": THETA[:0]}, r"torch.float32 of shape \[0\]"),
    ],
)
def test_a_file_without_the_meta_parameters_is_damaged(tensors, held, tmp_path):
    record_ownership(tmp_path, "training", {"network": {"weight": [2, 3]}})
    validation = torch.zeros(2)
    for step, content in enumerate(({"theta": THETA}, tensors)):
        path, run = checkpoints.checkpoint_path(tmp_path, step), training_digest(tmp_path)
        checkpoints.save(path, {"validation": validation, **content}, run=run, meta_step=step)
    assert torch.equal(checkpoints.load_theta(tmp_path, 0), THETA)
    with pytest.raises(DamagedFileError, match=rf"0000001.safetensors is no checkpoint of this run: .*{held}"):
        checkpoints.load_theta(tmp_path, 1)


def test_a_checkpoint_without_facts_is_damaged_unless_version_0_1_began_the_run(tmp_path):
    record_ownership(tmp_path, "training", {"network": {"weight": [2, 3]}})
    path = checkpoints.checkpoint_path(tmp_path, 0)
    path.parent.mkdir()
    save_file({"theta": THETA, "validation": torch.zeros(2)}, path)
    with pytest.raises(DamagedFileError, match="0000000.safetensors has no checksum"):
        checkpoints.load_checkpoint(tmp_path, 0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert torch.equal(checkpoints.load_theta(tmp_path, 0), THETA)


def test_a_checkpoint_without_its_validation_is_damaged(tmp_path):
    checkpoints.save(checkpoints.checkpoint_path(tmp_path, 0), {"theta": THETA}, meta_step=0)
    with pytest.raises(DamagedFileError, match="holds no loss and accuracy of validation"):
        checkpoints.load_checkpoint(tmp_path, 0)


@pytest.mark.parametrize(
    "change",
    [{"theta": torch.zeros(7)}, {"adam.exp_avg": torch.zeros(5)}, {"meta_step": torch.zeros(3)}],
)
def test_a_state_of_another_size_is_damaged(change, tmp_path):
    theta = THETA.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta])
    theta.square().sum().backward()
    optimiser.step()
    tensors = checkpoints.state(optimiser, theta, 4)
    checkpoints.save(tmp_path / "state.safetensors", tensors)
    assert checkpoints.restore(optimiser, theta, tmp_path / "state.safetensors") == 4
    checkpoints.save(tmp_path / "state.safetensors", tensors | change)
    with pytest.raises(DamagedFileError, match="does not hold the state of this run, whose theta has 6 numbers"):
        checkpoints.restore(optimiser, theta, tmp_path / "state.safetensors")


def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, read in product(("pipe", "folder"), (checkpoints.load, read_json, metrics.read, file_digest)):
        with pytest.raises(DamagedFileError, match=f"{name} is no file but a folder, a device or a pipe; put it back"):
            read(tmp_path / name)


def test_a_json_file_without_a_needed_entry_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json", "a") == {"a": 1}
    with pytest.raises(DamagedFileError, match="a.json lacks b; put it back"):
        read_json(tmp_path / "a.json", "a", "b")


@pytest.mark.parametrize(("fact", "other"), [("run", "b"), ("meta_step", 3)])
def test_a_checkpoint_of_another_run_or_meta_iteration_is_refused(tmp_path, fact, other):
    facts = {"run": "a", "meta_step": 2}
    checkpoints.save(tmp_path / "a.safetensors", {"theta": THETA}, **facts)
    assert torch.equal(checkpoints.load(tmp_path / "a.safetensors", **facts)["theta"], THETA)
    with pytest.raises(
        DamagedFileError, match=f"does not belong here: its {fact} is {facts[fact]}, but here it must be"
    ):
        checkpoints.load(tmp_path / "a.safetensors", **facts | {fact: other})


def test_a_changed_number_in_the_metrics_is_noticed(tmp_path):
    file = tmp_path / metrics.NAME
    for step in (1, 2):
        metrics.append(file, {"meta_step": step, "loss": 0.5}, run=None)
    file.write_text(file.read_text().replace("0.5", "0.6", 1))
    with pytest.raises(DamagedFileError, match=r"line 1 of .* was changed after it was written"):
        metrics.read(file)


def test_a_line_of_metrics_of_another_run_is_noticed(tmp_path):
    for name in ("a", "b"):
        record_ownership(tmp_path / name, "training", {"run": name})
        metrics.append(tmp_path / name / metrics.NAME, {"meta_step": 1}, run=training_digest(tmp_path / name))
    metrics.append(tmp_path / "a" / metrics.NAME, {"meta_step": 2}, run=None)  # as earlier versions wrote them
    assert [row["meta_step"] for row in metrics.read(tmp_path / "a" / metrics.NAME)] == [1, 2]
    (tmp_path / "a" / metrics.NAME).write_bytes((tmp_path / "b" / metrics.NAME).read_bytes())
    with pytest.raises(DamagedFileError, match=r"line 1 of .* is that of another run"):
        metrics.read(tmp_path / "a" / metrics.NAME)
