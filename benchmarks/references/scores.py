"""Scores of a tool on the problems: whether its products, its largest eigenvalues and its traces are right."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import hessian_tools as ht
from benchmarks.references.problems import Reference, references

Tool = Callable[[nn.Module, nn.Module, Any], Mapping[str, Any]]

K = 3  # how many eigenvalues of largest magnitude are compared
RTOL = 1e-2  # the largest error of an eigenvalue that counts as right, as a share of the largest magnitude
STANDARD_ERRORS = 4.0  # how far from the truth a trace counts as right; one in 16 000 is farther by chance
# An exact trace has a standard error of zero. An error of this share of the sum of the eigenvalues' magnitudes counts
# as rounding.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Score:
    """Whether one quantity of one problem is right; None where the tool does not offer it. note: what went wrong."""

    right: bool | None
    note: str = ""


def score(tool: Tool, problems: list[Reference] | None = None) -> dict[str, dict[str, Score]] | str:
    """The scores of a tool by problem and quantity, or why it cannot be run here. problems: None takes all."""
    try:
        return {problem.name: _scores(tool, problem) for problem in problems or references()}
    except ImportError as error:
        return f"not installed ({error})"


def _scores(tool: Tool, problem: Reference) -> dict[str, Score]:
    """The scores of a tool on one problem, by quantity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for the tools that draw from the global generator
        return {name: _attempt(check, tool, problem) for name, check in CHECKS.items()}


def _attempt(check: Callable[[Tool, Reference], Score], tool: Tool, problem: Reference) -> Score:
    """The score by a check; a tool that raises an error is wrong, unless it is not installed."""
    try:
        return check(tool, problem)
    except ImportError:
        raise
    except Exception as error:  # whatever a tool may raise
        return Score(False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}")


def _product(tool: Tool, problem: Reference) -> Score:
    """Whether the tool's product passes ``ht.audit``."""

    def factory(model: nn.Module, batch: Any) -> Any:
        return tool(model, problem.criterion, batch).get("matvec")

    model = deepcopy(problem.model)
    matvec = factory(model, problem.batch)
    if matvec is None:
        return Score(None)
    found = ht.audit(matvec, model, problem.criterion, problem.batch, factory)
    failed = [finding for finding in found.findings if finding.passed is False]
    # The audit makes several checks. The comparison with exact products tells most, so it is reported if it failed.
    first = next((f for f in failed if f.name == "hessian"), failed[0] if failed else None)
    return Score(found.passed, "" if first is None else f"{first.name} {first.value:.0e}")


def _top(tool: Tool, problem: Reference) -> Score:
    """Whether the tool's largest eigenvalues are the exact ones, up to ``RTOL``."""
    top = tool(deepcopy(problem.model), problem.criterion, problem.batch).get("top")
    if top is None:
        return Score(None)
    # Eigenvalues of equal magnitude have no order among them, so both are sorted by value.
    found, exact = (torch.as_tensor(v).double().sort().values for v in (top(K), problem.eigenvalues[:K]))
    error = float((found - exact).abs().max() / exact.abs().max())
    return Score(error <= RTOL, "" if error <= RTOL else f"{error:.0e}")


def _trace(tool: Tool, problem: Reference) -> Score:
    """Whether the tool's trace is the exact one, up to its own standard error."""
    trace = tool(deepcopy(problem.model), problem.criterion, problem.batch).get("trace")
    if trace is None:
        return Score(None)
    value, stderr = trace()
    distance = abs(value - float(problem.eigenvalues.sum()))
    if distance <= STANDARD_ERRORS * stderr + ROUNDING * float(problem.eigenvalues.abs().sum()):
        return Score(True)
    return Score(False, f"{distance / stderr:.0f} s.e." if stderr else "inf")


CHECKS = {"product": _product, "top": _top, "trace": _trace}


def table(scores: Mapping[str, dict[str, dict[str, Score]] | str], problems: list[Reference] | None = None) -> str:
    """The scores as a Markdown table: a row for each problem (None: all of them), and a column for each tool."""
    lines = [f"| product, top {K}, trace | {' | '.join(scores)} |", "|---" * (len(scores) + 1) + "|"]
    for problem in problems or references():
        # A tool that could not be run has a text in place of its scores.
        cells = [_cell(found[problem.name]) if isinstance(found, dict) else "" for found in scores.values()]
        lines.append(f"| {problem.name} | {' | '.join(cells)} |")
    totals = [_total(found) if isinstance(found, dict) else found for found in scores.values()]
    return "\n".join([*lines, f"| **right of those offered** | {' | '.join(totals)} |"])


def _cell(scores: Mapping[str, Score]) -> str:
    words = {True: "ok", None: "-"}  # a wrong quantity shows its note instead
    return ", ".join(words.get(each.right, f"**{each.note}**") for each in scores.values())


def _total(scores_by_problem: Mapping[str, Mapping[str, Score]]) -> str:
    given = [each.right for scores in scores_by_problem.values() for each in scores.values() if each.right is not None]
    return f"{sum(given)} of {len(given)}"
