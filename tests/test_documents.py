"""Documents that promise to run do."""

import doctest
from pathlib import Path

import pytest

DOCUMENTS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["your_own_training.md", "new_learner.md"])
def test_the_document_runs(name):
    found = doctest.testfile(str(DOCUMENTS / name), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 5
    assert found.failed == 0
