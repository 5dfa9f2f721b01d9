"""Tests of ``analysis.open_checkpoint``, the network of a study at a checkpoint."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from quantities_document import DOCUMENT
from small_study import SMALL_STUDY, train_and_measure

import analysis
import hessian_tools as ht
from analysis import UserError
from analysis.engines.place import Place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study that is trained and measured."""
    folder = tmp_path_factory.mktemp("small")
    text = SMALL_STUDY.replace(
        "learners: {maml: {algorithm: maml}}",
        "learners: {maml: {algorithm: maml}, meta-sgd: {algorithm: meta-sgd}, untrained: {algorithm: untrained}}",
    ).replace("  block: 1", "  block: 1\n  seed: 3")  # not 0, so that the held-out tasks depend on the right seed
    (folder / "small.yaml").write_text(text)
    train_and_measure(folder / "small.yaml", folder / "study", Place(0))
    return folder / "study"


@pytest.mark.parametrize("learner", ["maml", "meta-sgd"])
@pytest.mark.parametrize("meta_iteration", [0, 2])
def test_its_numbers_are_those_of_the_study(study: Path, learner: str, meta_iteration: int) -> None:
    ds = analysis.open_study(study).sel(learner=learner, seed=0, checkpoint=meta_iteration)
    checkpoint = analysis.open_checkpoint(study, learner, 0, meta_iteration)
    assert checkpoint.meta_iteration == meta_iteration
    assert (
        len(checkpoint.theta)
        == checkpoint.loss.layout.numel
        == sum(p.numel() for p in checkpoint.loss.model.parameters())
    )
    assert (len(checkpoint.meta_theta) > len(checkpoint.theta)) == (learner == "meta-sgd")
    for index in range(2):
        task = checkpoint.task(index)
        path = ht.record(checkpoint.learner, checkpoint.loss, checkpoint.meta_theta, *task, save=ht.SaveAt(thetas=True))
        assert path.thetas is not None
        torch.testing.assert_close(path.thetas[0], checkpoint.theta)
        rho = ht.gradient_curvature(ht.hessian(checkpoint.loss, path.thetas, task.support, shared=True)).rho
        torch.testing.assert_close(rho.double(), torch.tensor(ds["rho"].sel(task=index).values), rtol=1e-4, atol=1e-6)


def test_the_last_checkpoint_is_opened_unless_another_is_named(study: Path) -> None:
    last = analysis.open_checkpoint(str(study), "maml", 0)
    assert last.meta_iteration == 2
    assert repr(last).startswith("StudyCheckpoint('")
    assert repr(last).endswith("maml-seed0' at meta-iteration 2: 10 parameters of MLP, maml)")
    assert analysis.open_checkpoint(study, "untrained", 0).meta_iteration == 0


def test_what_is_not_there_is_named_with_what_is(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learner='mamll' is not one of .*; did you mean 'maml'"):
        analysis.open_checkpoint(study, "mamll", 0)
    with pytest.raises(UserError, match="seed=3: maml has the seeds 0 in .*; give one of them"):
        analysis.open_checkpoint(study, "maml", 3)
    with pytest.raises(UserError, match="meta_iteration=1: .* has checkpoints at 0, 2; give one of them"):
        analysis.open_checkpoint(study, "maml", 0, 1)
    with pytest.raises(ValueError, match="index=-1 must be at least 0"):
        analysis.open_checkpoint(study, "maml", 0).task(-1)
    kept = DOCUMENT.parent / "results" / "regression"
    with pytest.raises(UserError, match="no checkpoints, because its results are kept without them"):
        analysis.open_checkpoint(kept, "maml", 0)
    shutil.copytree(study, tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "runs")
    with pytest.raises(UserError, match="no checkpoints, because it is not trained yet; run 'hessian-tools train'"):
        analysis.open_checkpoint(tmp_path / "study", "maml", 0)


def test_the_example_of_the_document_runs(study: Path) -> None:
    text = DOCUMENT.with_name("your_own_quantity.md").read_text(encoding="utf-8")
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "open_checkpoint" in code)
    code = code.replace('"runs/demo"', "study")
    names: dict = {"study": study}
    exec(code, names)
    assert names["top"].values.shape == (3,)
    assert names["along_the_loop"].values.shape == (2, 1)
