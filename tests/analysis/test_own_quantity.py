"""Tests of the choice of quantities, of one's own quantities, and of the documents about them."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
import zarr
from hand_made_points import MAML, TASKS, points_of
from quantities_document import DOCUMENT, updated
from refused_commands import refused

from analysis import open_study, store
from analysis.cli import run
from analysis.errors import UserError
from analysis.quantities import QUANTITIES, REQUIRED, STANDARD, chosen_quantities
from analysis.quantities.values import is_bundled, values_of
from analysis.quantities.variants import variant_quantities
from analysis.study_file import study_text
from analysis.trust import trusted_object

EXAMPLE = DOCUMENT.with_name("your_own_quantity.md")
NAME = "my_quantities.py:ALONG_DISPLACEMENT"


@pytest.fixture
def load(tmp_path: Path):
    """A function that returns an object of the document's example, which is written into a file and imported."""
    code = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "my_quantities.py").write_text(code)
    return lambda name: trusted_object(f"{tmp_path}/{name}", trust=True)


def names(quantities) -> list[str]:
    return [quantity.name for quantity in quantities]


def test_the_documents_example_is_chosen_and_measured(load):
    assert NAME in EXAMPLE.read_text(encoding="utf-8")  # the example of the YAML names it so
    chosen = chosen_quantities(["standard", NAME], [], load)
    assert names(chosen) == [*names(chosen_quantities(["standard"], [], load)), "along_displacement"]
    points = points_of(MAML)
    values = chosen[-1].measure(points)["rho_displacement"]
    for task in range(TASKS):
        d = points.thetas[task, -1] - points.thetas[task, 0]
        for k, theta in enumerate(points.thetas[task]):
            H = torch.func.hessian(points.loss)(theta, tuple(leaf[task] for leaf in points.support))
            assert float(values[task, k]) == pytest.approx(float(d @ H @ d / (d @ d)), rel=1e-9)


def test_what_a_quantity_returns_is_checked_and_copied(load):
    quantity, points = load(NAME), points_of(MAML)
    losses = points.trajectory.support_loss
    values = values_of(replace(quantity, measure=lambda _: {"rho_displacement": losses}), points)["rho_displacement"]
    values[:] = 0.0
    assert values.dtype == torch.float64 and not (losses == 0).any()
    as_array = values_of(replace(quantity, measure=lambda _: {"rho_displacement": losses.numpy()}), points)
    assert torch.equal(as_array["rho_displacement"], losses.double())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'rho_displacement': points.thetas.sum(-1)[:, 0]}", r"with the shape \[.\]; give a tensor \[task, st"),
        ("return {'rho_displacement': points.thetas}", r"give a tensor \[task, step\], here \[\d, \d\]"),
        ("return {'rho_displacement': [1.0]}", r"with the type list; give a tensor"),
        ("return {'rho': points.thetas.sum(-1)}", "returns a dict with rho; its measure.. must return a dict"),
        ("return points.thetas.sum(-1)", "returns a Tensor; .* for each of its variables: rho_displacement"),
        (
            "x = 1\n    return points.thetas @ points.hessian",
            r"along_displacement fails in line 3 of .*bad.py: TypeError: ",
        ),
    ],
)
def test_a_quantity_that_returns_something_else_is_refused(load, tmp_path, body, said):
    (tmp_path / "bad.py").write_text(f"def measure(points):\n    {body}\n")
    measure = trusted_object(f"{tmp_path}/bad.py:measure", trust=True)
    with pytest.raises(UserError, match=said):
        values_of(replace(load(NAME), measure=measure), points_of(MAML))


def test_the_packages_own_quantities_are_known_and_their_errors_are_not_hidden(load):
    assert all(map(is_bundled, QUANTITIES.values())) and all(map(is_bundled, variant_quantities("query")))
    assert not is_bundled(load(NAME))
    with pytest.raises(AttributeError):
        values_of(QUANTITIES["trace"], None)


@pytest.mark.heavy
@pytest.mark.slow
def test_a_quantity_is_tried_before_the_training_and_may_be_mended_until_it_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = (
        "from analysis.quantities import Quantity\nfrom analysis.schema import point_variable\n"
        "def measure(points):\n    return {'mine': points.thetas.norm(dim=-1) * POWER}\n"
        "MINE = Quantity('mine', 't', 'f', (point_variable('mine', 'my number'),), measure, 'l', 'none')\n"
    )
    settings = yaml.safe_load(study_text("micro"))
    del settings["learners"]["maml-shot"]
    settings["measure"]["quantities"] = ["standard", "mine.py:MINE"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    study = ["study", "study.yaml", "--seeds", "0", "--out", "out", "--workers", "0", "--trust"]

    def write(text: str) -> None:
        (tmp_path / "mine.py").write_text(text)
        for name in [name for name in sys.modules if name.startswith("mine_")]:
            del sys.modules[name]  # another process would read the file anew

    write(code)  # POWER is not defined
    assert "the quantity mine fails in line 4 of" in refused(capsys, study)
    assert not (tmp_path / "out").exists()
    write(code.replace("POWER", "1"))
    assert run(["train", *study[1:]]) == 0
    write(code.replace("POWER", "2"))  # nothing has been measured with the first one
    assert run(["measure", "out", "--workers", "0", "--trust"]) == 0
    ds = open_study("out")
    assert float(abs(ds["mine"] - 2 * ds["theta_norm"]).max()) < 1e-4 * float(ds["theta_norm"].max())
    write(code.replace("POWER", "3"))
    capsys.readouterr()
    assert "mine.py has changed since maml seed 0 was measured with it" in refused(capsys, study)
    for measurements in tmp_path.rglob(store.NAME):
        zarr.open_array(measurements, path="done", mode="r+")[0] = 0  # a part of each run is still to be measured
    assert "mine.py has changed since maml seed 0 was measured with it" in refused(capsys, study)


def test_quantities_are_measured_in_one_order_and_the_required_ones_always(load):
    assert names(chosen_quantities([], [], load)) == list(REQUIRED)
    assert set(names(chosen_quantities(["standard"], [], load))) == set(STANDARD)
    assert names(chosen_quantities(["all"], [], load)) == list(QUANTITIES)
    assert names(chosen_quantities(["trace", "layer_norms"], [], load)) == names(
        chosen_quantities(["layer_norms", "trace"], [], load)
    )
    across = chosen_quantities([], ["across"], load)[-1]
    assert across.name == "gradient_curvature_across"
    assert {variable.name for variable in across.variables} >= {"rho_across", "rho_error_across"}


def test_what_is_no_quantity_is_refused_with_the_name(load):
    with pytest.raises(ValueError, match="'sharpness' is none of inner_loop.* such as my_quantities.py"):
        chosen_quantities(["sharpness"], [], load)
    with pytest.raises(
        ValueError, match=r"my_quantities.py:measure is a function, not an analysis.quantities.Quantity"
    ):
        chosen_quantities(["my_quantities.py:measure"], [], load)
    with pytest.raises(ValueError, match="the variable rho_displacement of along_displacement exists already"):
        chosen_quantities([NAME, NAME], [], load)


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_of_the_package_says_what_it_is_where_it_comes_from_and_what_it_costs(name):
    quantity = QUANTITIES[name]
    for text in (quantity.title, quantity.formula, quantity.library, quantity.cost, quantity.reference):
        assert text.strip()
    assert all(variable.long_name and variable.units for variable in quantity.variables)


@pytest.mark.skipif(not DOCUMENT.exists(), reason="an installed package has no documents")
def test_the_list_of_quantities_is_up_to_date():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert updated(text) == text, "run python tests/analysis/quantities_document.py"
    for quantity in QUANTITIES.values():
        for variable in quantity.variables:
            assert f"| `{variable.name}` |" in text


def test_every_error_is_a_variable_and_every_text_says_something():
    for quantity in QUANTITIES.values():
        declared = {variable.name for variable in quantity.variables}
        assert {variable.error for variable in quantity.variables if variable.error} <= declared
        assert all((quantity.title, quantity.formula, quantity.library, quantity.cost))
        assert all(variable.long_name for variable in quantity.variables)
        assert "|" not in quantity.title
