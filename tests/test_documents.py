"""Tests that the code in the documents runs, and that the files, links and names that they mention exist."""

import doctest
import os
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch.distributed
from simulated_studies import simulated_study

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("reference/*.md"))]
# The documents whose examples are doctests, and those whose blocks of code other tests run.
DOCTESTS = [
    "your_own_training",
    "new_learner",
    "models",
    "audit",
    "coming_from",
    "explanation",
    "gpu",
    "my_claim",
    "my_data",
]
RUN_ELSEWHERE = {
    "claims.md": "tests/analysis/test_trust.py",
    "your_own_quantity.md": "tests/analysis/test_own_quantity.py",
    "explorer.md": "below",
    "scale.md": "below",
}
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
@pytest.mark.parametrize("name", DOCTESTS)
def test_the_examples_of_a_document_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # an example may open the results that are kept in the repository
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testfile(str(DOCS / f"{name}.md"), module_relative=False, optionflags=flags)
    assert result.attempted > 5  # there are examples at all
    assert result.failed == 0


def code_blocks(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_block_of_python_code_is_run_by_a_test():
    for document in DOCUMENTS:
        blocks = code_blocks(document)
        examples = [block for block in blocks if block.startswith(">>>")]
        if document.name != "README.md" and document.stem not in DOCTESTS:
            assert not examples, f"{document.name} has examples: add it to DOCTESTS"
        if document.name not in RUN_ELSEWHERE:
            assert blocks == examples, f"{document.name} has code that no test runs"


@pytest.mark.slow
def test_the_code_on_the_explorer_runs(monkeypatch, tmp_path):
    pytest.importorskip("anywidget", reason="the explorer in a notebook needs anywidget")
    monkeypatch.chdir(tmp_path)
    (block,) = code_blocks(DOCS / "explorer.md")
    names = {"ds": simulated_study(tasks=2)}
    exec(block.replace('"runs/demo"', "ds"), names)
    names["explorer"].save("page.html")
    assert Path("page.html").exists()


@pytest.mark.slow
def test_the_code_on_several_processes_runs_in_one(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    given = """
from functools import partial
import torch
from hessian_tools import MLP, TrainConfig, learners
from hessian_tools.data import SineLineTasks
model, criterion = torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy
batches = [(torch.randn(6, 3), torch.arange(6) % 2), (torch.randn(4, 3), torch.arange(4) % 2)]
build_model, my_batch = partial(torch.nn.Linear, 3, 2), batches[0]
config = TrainConfig(
    learners.maml(1, 0.01), SineLineTasks(), partial(MLP, [1, 4, 1]), checkpoints=(0, 1), meta_batch=1,
    validation_tasks=1,
)
"""
    lines = [given, *code_blocks(DOCS / "scale.md"), "assert checkpoint.meta_step == 1 and pairs.values.shape == (5,)"]
    (tmp_path / "script.py").write_text("\n".join([*lines, "dist.destroy_process_group()"]), encoding="utf-8")
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=os.environ | one, check=True)


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
