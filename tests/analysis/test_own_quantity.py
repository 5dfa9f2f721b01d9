"""Tests of the choice of quantities, of one's own quantities, and of the documents about them."""

import re
from pathlib import Path

import pytest
import torch
from hand_made_points import MAML, TASKS, points_of
from quantities_document import DOCUMENT, updated

from analysis.quantities import QUANTITIES, REQUIRED, STANDARD, chosen_quantities
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
