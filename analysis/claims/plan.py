"""The pre-registered plan: every choice that a verdict depends on.

It is read from YAML, where a missing or unknown key is an error, and it has a digest by which two plans are compared.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SkipValidation, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from analysis.config.base import Natural
from analysis.config.mistakes import first_mistake
from analysis.config.yaml_reader import parse_yaml, read_settings

BUNDLED = Path(__file__).with_name("claims.yaml")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Margin = Annotated[float, Field(gt=0, lt=1e6, strict=True)]
Text = Annotated[str, Field(min_length=1)]
# The bound is loose. It only refuses a slip, such as a percentage (50) in place of a fraction (0.50).
BelowTen = Annotated[float, Field(gt=0, lt=10, strict=True)]


# The statements of the claims of version 0.1. The plans of that version do not state their claims.
EARLIER_STATEMENTS = {
    "suppression": "Meta-training lowers the curvature along the inner gradient.",
    "shot": "SHOT lowers the curvature along the inner gradient further.",
    "alignment": "The inner gradients of the meta-trained network are aligned.",
}


class PlanError(ValueError):
    """Raised for a plan that cannot be used; the message names the key and what to write instead."""


@dataclass(frozen=True, config=STRICT)
class ClaimPlan:
    """What is fixed beforehand about one claim, in words; only the smallest effect of interest is a number.

    A claim is judged by one or several comparisons of a learner with its baseline, such as "raw" and "equal support
    loss". The modules of ``analysis.claims`` give a comparison its name, as ``Question.comparison``.

    statement: the claim in one plain sentence.
    estimand: the number that is estimated, and from what. null_hypothesis: the hypothesis that is tested.
    unit: the unit of replication. rule: how the outcome follows from the interval. interval: how the interval is made.
    kind: the verdicts on all "primary" claims are corrected for their number (Holm 1979). Those on "exploratory" claims
        are not.
    margin: the smallest effect of interest. margin_unit: the unit of the margin, in words.
    corrected: of a primary claim, the names of the comparisons whose verdicts are corrected; empty for all of them. The
        verdicts on its other comparisons count as exploratory.
    learners: of a primary claim, the learners whose verdicts are corrected: "all", or "plain". Plain learners are not
        controls, which are untrained or trained in another way for comparison, and use neither SHOT (a penalty on the
        distance between the ends of few large and many small inner steps) nor the penalty on the curvature. The
        verdicts on other learners count as exploratory, because other claims are about those learners.
    """

    statement: Text
    estimand: Text
    null_hypothesis: Text
    unit: Text
    rule: Text
    interval: Text
    kind: Literal["primary", "exploratory"]
    margin: Margin
    margin_unit: Text
    corrected: tuple[str, ...] = ()
    learners: Literal["plain", "all"] = "all"


@dataclass(frozen=True, config=STRICT)
class Margins:
    """The smallest effects of interest in a plan of version 0.1, which had three claims and described none.

    suppression, shot: fractions of the baseline's mean |curvature|. alignment: a difference of the alignment A itself
        (0 for orthogonal inner gradients, 1 for equal ones), not a fraction of the baseline's A.
    """

    suppression: Margin
    shot: Margin
    alignment: Margin


@dataclass(frozen=True, config=STRICT)
class StepGroup:
    """The inner steps from ``first`` to ``last``, both included, which are judged together.

    "adapted" is the point after the last inner step.
    """

    first: Natural
    last: SkipValidation[int | Literal["adapted"]]  # checked below, for a message that names both alternatives

    @model_validator(mode="after")
    def _in_order(self) -> "StepGroup":
        if self.last != "adapted" and (type(self.last) is not int or self.last < self.first):
            raise ValueError(
                f'last is {self.last!r}; give an inner step not before first, which is {self.first}, or "adapted"'
            )
        return self

    def rows(self, steps: int) -> slice:
        """The group as a slice of the axis ``inner_step``, which has ``steps`` + 1 points for ``steps`` inner steps."""
        return slice(self.first, (steps if self.last == "adapted" else self.last) + 1)


@dataclass(frozen=True, config=STRICT)
class EqualLoss:
    """The settings of the comparison at equal support loss.

    A point is one inner step of one task.

    caliper: the largest difference between the logarithms of the support losses of a point and its match.
    least_share: the fraction of a seed's points that must have a match for the seed to be compared. Above 1, no seed is
        ever compared.
    """

    caliper: BelowTen
    least_share: BelowTen


@dataclass(frozen=True, config=STRICT)
class Bootstrap:
    """The number of times that the tasks are resampled, and the seed of these draws."""

    resamples: Annotated[int, Field(ge=100, strict=True)]
    seed: Natural


@dataclass(frozen=True, config=STRICT)
class Plan:
    """The whole plan; two plans with equal content have equal digests, however their files are laid out.

    confidence: the confidence of all intervals.
    step_groups: the ranges of inner steps that are judged together, by name.
    claims: the claims that are judged, by name. margins: what a plan of version 0.1 has in place of ``claims``.
    """

    confidence: Annotated[float, Field(gt=0.5, lt=1, strict=True)]
    step_groups: dict[str, StepGroup]
    equal_loss: EqualLoss
    bootstrap: Bootstrap
    claims: dict[str, ClaimPlan] = field(default_factory=dict)
    margins: Margins | None = None

    @model_validator(mode="after")
    def _judges_some_claims(self) -> "Plan":
        has_claims, has_margins = bool(self.claims), self.margins is not None
        if has_claims == has_margins:  # both or neither
            raise ValueError("give either claims, as in analysis/claims/claims.yaml, or margins, as version 0.1 did")
        return self

    @model_validator(mode="after")
    def _judges_some_steps(self) -> "Plan":
        if not self.step_groups:
            raise ValueError("step_groups must name at least one group, such as step 0: {first: 0, last: 0}")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content in a canonical form: sorted keys, no layout, no comments."""
        # A plan has either ``claims`` or ``margins``, and the empty one is left out. So a plan of version 0.1, which
        # had no ``claims``, keeps the digest that it had then.
        content = {key: value for key, value in asdict(self).items() if value}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the claims that are judged."""
        return tuple(self.claims) or tuple(EARLIER_STATEMENTS)

    def margin(self, claim: str) -> float:
        """The smallest effect of interest of a claim."""
        return self.claims[claim].margin if self.margins is None else float(getattr(self.margins, claim))

    def title(self, claim: str) -> str:
        """The statement of a claim as a part of a longer sentence: without its full stop and its first capital.

        A first word such as "SHOT" or "ANIL" stays as it is.
        """
        text = (self.claims[claim].statement if self.margins is None else EARLIER_STATEMENTS[claim]).rstrip(".")
        return text[:1].lower() + text[1:] if text[1:2].islower() else text

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
        data = parse_yaml(read_settings(source))
    except ValueError as error:
        raise PlanError(f"{source.name} {error}") from error
    try:
        return plan_from_mapping(data)
    except PlanError as error:
        raise PlanError(f"{source.name}: {error}") from None


def plan_from_mapping(data: Any) -> Plan:
    """Make a plan from nested mappings, which must have every key and no other; raise PlanError otherwise."""
    if not isinstance(data, Mapping):
        raise PlanError(f"the plan must be a mapping with the keys {', '.join(Plan.__dataclass_fields__)}")
    try:
        return TypeAdapter(Plan).validate_python(data)
    except ValidationError as e:
        raise PlanError(first_mistake(e, Plan)) from None
