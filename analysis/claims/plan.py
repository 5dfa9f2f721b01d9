"""The pre-registered plan: every choice that a verdict depends on.

It is read from YAML, where a missing or unknown key is an error, and it has a digest by which two plans are compared.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

BUNDLED = Path(__file__).with_name("claims.yaml")


class PlanError(ValueError):
    """Raised for a plan that cannot be used; the message names the key and what to write instead."""


@dataclass(frozen=True)
class Margins:
    """The smallest effects of interest.

    suppression, shot: shares of the baseline's mean |curvature|. alignment: an absolute value of the alignment A.
    """

    suppression: float
    shot: float
    alignment: float


@dataclass(frozen=True)
class StepGroup:
    """The inner steps from ``first`` to ``last``, both included, which are judged together.

    "adapted" is the point after the last inner step.
    """

    first: int
    last: int | Literal["adapted"]

    def rows(self, steps: int) -> slice:
        """The group as a slice of the axis ``inner_step``, which has ``steps`` + 1 points for ``steps`` inner steps."""
        return slice(self.first, (steps if self.last == "adapted" else self.last) + 1)


@dataclass(frozen=True)
class EqualLoss:
    """The settings of the comparison at equal support loss.

    caliper: the largest difference in log loss between a point and its match.
    least_share: the fraction of a seed's points that must have a match for the seed to be compared.
    """

    caliper: float
    least_share: float


@dataclass(frozen=True)
class Bootstrap:
    """The number of times that the tasks are resampled, and the seed of these draws."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """The whole plan; two plans with equal content have equal digests, however their files are laid out."""

    confidence: float
    margins: Margins
    step_groups: Mapping[str, StepGroup]
    equal_loss: EqualLoss
    bootstrap: Bootstrap

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content in a canonical form: sorted keys, no layout, no comments."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def check_steps(self, steps: int) -> None:
        """Raise PlanError if a step group names a point that a study of ``steps`` inner steps does not have."""
        for name, group in self.step_groups.items():
            for key, step in (("first", group.first), ("last", group.last)):
                if step != "adapted" and step > steps:
                    raise PlanError(
                        f"step_groups: {name}: {key} is {step}; this study has {steps} inner steps, so give at most "
                        f"{steps}, which is the point after the last step"
                    )


def load_plan(path: Path | str | None = None) -> Plan:
    """Read the plan in a YAML file, or the bundled plan for None; raise PlanError for anything unexpected."""
    source = BUNDLED if path is None else Path(path)
    try:
        data = yaml.safe_load(source.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise PlanError(f"{source.name} is not a text file; a plan is YAML in UTF-8") from error
    except yaml.YAMLError as error:
        raise PlanError(f"{source.name} is not valid YAML: {' '.join(str(error).split())}") from error
    return plan_from_mapping(data)


def plan_from_mapping(data: Any) -> Plan:
    """Make a plan from nested mappings, which must have every key and no other; raise PlanError otherwise."""
    top = _keys(Plan, data, "the plan")
    groups = top["step_groups"]
    if not isinstance(groups, Mapping) or not groups:
        raise PlanError("step_groups must name at least one group, such as step 0: {first: 0, last: 0}")
    plan = Plan(
        confidence=_number(top["confidence"], "confidence", 0.5, 1.0),
        margins=Margins(**_numbers(Margins, top["margins"], "margins", 0.0, 1e6)),
        step_groups={str(name): _step_group(group, f"step_groups: {name}") for name, group in groups.items()},
        equal_loss=EqualLoss(**_numbers(EqualLoss, top["equal_loss"], "equal_loss", 0.0, 10.0)),
        bootstrap=Bootstrap(**{k: int(v) for k, v in _numbers(Bootstrap, top["bootstrap"], "bootstrap").items()}),
    )
    if plan.bootstrap.resamples < 100:
        raise PlanError(f"bootstrap: resamples is {plan.bootstrap.resamples}; give at least 100")
    return plan


def _step_group(data: Any, where: str) -> StepGroup:
    values = _keys(StepGroup, data, where)
    first, last = values["first"], values["last"]
    if type(first) is not int or first < 0:
        raise PlanError(f"{where}: first is {first!r}; give the number of an inner step, 0 or more")
    if last != "adapted" and (type(last) is not int or last < first):
        raise PlanError(
            f'{where}: last is {last!r}; give an inner step not before first, which is {first}, or "adapted"'
        )
    return StepGroup(first, last)


def _numbers(kind: type, data: Any, where: str, low: float = -1.0, high: float = 2.0**63) -> dict[str, Any]:
    """The mapping, checked to have exactly the fields of ``kind``, each a number between ``low`` and ``high``."""
    return {key: _number(value, f"{where}: {key}", low, high) for key, value in _keys(kind, data, where).items()}


def _number(value: Any, where: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise PlanError(f"{where} is {value!r}; give a number above {low:g} and below {high:g}")
    return float(value)


def _keys(kind: type, data: Any, where: str) -> dict[str, Any]:
    """The mapping, checked to have exactly the fields of ``kind``."""
    names = [field.name for field in fields(kind)]
    if not isinstance(data, Mapping):
        raise PlanError(f"{where} must be a mapping with the keys {', '.join(names)}")
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"the known keys are {', '.join(names)}"
            raise PlanError(f"{where} has an unknown key {key!r}; {advice}")
    missing = [name for name in names if name not in data]
    if missing:
        raise PlanError(f"{where} lacks the required keys {', '.join(missing)}")
    return dict(data)
