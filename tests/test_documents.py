"""The worked examples of the documents run."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["new_learner.md"])
def test_the_examples_print_what_the_document_says(name):
    found = doctest.testfile(str(DOCS / name), module_relative=False)
    assert found.attempted > 5
    assert found.failed == 0
