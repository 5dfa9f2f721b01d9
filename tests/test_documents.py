"""Tests that the examples in the documents run, and that the files, links and names that they mention exist."""

import doctest
import re
import warnings
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A file or folder of the repository, perhaps with a pattern in it. The dot that ends a sentence is not part of it.
PATH = re.compile(r"(?<![\w/.-])(?:hessian_tools|analysis|benchmarks|tests|docs|notebooks)/(?:[\w./*-]*[\w*/])?")
# A link that stays in the repository: its target and its anchor, each of which may be missing.
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
# A dotted name that begins with a package of ours or with the abbreviation of one.
NAME = re.compile(r"(?<![\w/.-])(ht|hessian_tools|analysis|benchmarks|curvature)((?:\.[A-Za-z_]\w*)+)")
SHORT = {"ht": "hessian_tools", "curvature": "hessian_tools.curvature"}


def anchors(document: Path) -> set[str]:
    """The anchors that a Markdown page has, by GitHub's rule: a heading in lower case, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(dotted: str) -> bool:
    """True if a dotted name is a module, or an attribute of a module that is not deprecated; False otherwise."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            try:
                for name in parts[length:]:
                    thing = getattr(thing, name)
            except (AttributeError, DeprecationWarning):
                return False
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["your_own_training.md", "new_learner.md", "models.md"])
def test_the_examples_of_a_document_run(name):
    path = ROOT / "docs" / name
    result = doctest.testfile(str(path), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 5  # there are examples at all
    assert result.failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document):
    paths = set(PATH.findall(document.read_text(encoding="utf-8")))
    missing = [path for path in sorted(paths) if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing, f"{document.name} names {', '.join(missing)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_of_a_document_leads_somewhere(document):
    for target, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        path = document.parent / target if target else document
        assert path.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{document.name} links to {target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_name_of_ours_that_a_document_mentions_exists(document):
    names = {SHORT.get(package, package) + rest for package, rest in NAME.findall(document.read_text(encoding="utf-8"))}
    missing = [name for name in sorted(names) if not exists(name)]
    assert not missing, f"{document.name} mentions {', '.join(missing)}"


def test_a_wrong_path_and_a_wrong_name_would_be_noticed():
    text = "see `hessian_tools/nowhere.py`, docs/gotchas.md. Then ht.cubic_term, ht.trace and curvature.nonsense"
    assert PATH.findall(text) == ["hessian_tools/nowhere.py", "docs/gotchas.md"]
    names = [SHORT[package] + rest for package, rest in NAME.findall(text)]
    assert [exists(name) for name in names] == [False, True, False]  # the first is an old name
