"""The result of an audit, and its certificate of one page in text and in HTML."""

from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from textwrap import fill

from hessian_tools.curvature.checks.agreement import EXACT_EPS, OWN_ERROR_FACTOR
from hessian_tools.curvature.checks.findings import Finding
from hessian_tools.curvature.html import findings_html
from hessian_tools.result import Result

VERDICTS = {True: "ok", False: "WRONG", None: "not tested"}


@dataclass(frozen=True, repr=False)
class Audit(Result):
    """The findings of :func:`audit`, with ``passed``, and a certificate of one page by ``text()`` and ``save(path)``.

    state: neither the loss nor the product depends on anything but the parameters; two products with the same vector
    agree, and the model is unchanged after them. symmetry: u'Hv = v'Hu. linearity: H(2u - 3v) = 2Hu - 3Hv. hessian:
    agreement with exact products in float64 at the model's present parameters, as a whole and in each parameter tensor.
    differences: agreement with central differences of the gradient in float64, which use no second derivative.
    weights: agreement at other parameters. data: agreement on a part of the data. The last two are tested only if
    :func:`audit` is given ``factory``, a function that makes a product of a model and a batch.
    setting: what was audited, in words.
    """

    setting: dict[str, str]
    state: Finding
    symmetry: Finding
    linearity: Finding
    hessian: Finding
    differences: Finding
    weights: Finding
    data: Finding

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, in order."""
        return tuple(getattr(self, field.name) for field in fields(self) if field.name != "setting")

    @property
    def passed(self) -> bool:
        """True if no check failed and the product was compared with the exact one."""
        return all(finding.passed is not False for finding in self.findings) and self.hessian.passed is True

    @property
    def not_tested(self) -> tuple[str, ...]:
        """The names of the checks that were not made."""
        return tuple(finding.name for finding in self.findings if finding.passed is None)

    def __repr__(self) -> str:
        failed = tuple(finding.name for finding in self.findings if finding.passed is False)
        return f"Audit(passed={self.passed}, failed={failed}, not_tested={self.not_tested})"

    def __str__(self) -> str:
        return "\n".join(f"{VERDICTS[f.passed]:10} {f.name}: {f.sentence}" for f in self.findings)

    def _repr_html_(self) -> str:
        rows = [(f.passed, VERDICTS[f.passed], f.name, f.sentence) for f in self.findings]
        return findings_html(self._headline(), rows)

    def _headline(self) -> str:
        return f"Audit of a Hessian-vector product: {'passed' if self.passed else 'FAILED'}"

    def text(self) -> str:
        """The certificate as plain text: the verdict, what was audited, every finding, and the tolerances."""
        width = max(map(len, self.setting))
        about = "\n".join(f"{name:{width}}  {value}" for name, value in self.setting.items())
        findings = "\n".join(
            fill(line, 100, subsequent_indent=" " * 11, break_long_words=False) for line in str(self).splitlines()
        )
        return f"{self._headline()}\n\n{about}\n\n{findings}\n\n{fill(TOLERANCES, 100)}\n"

    def html(self) -> str:
        """The certificate as an HTML page of its own."""
        about = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in self.setting.items()
        )
        body = f"{self._repr_html_()}<table>{about}</table><p>{escape(TOLERANCES)}</p>"
        return f"{PAGE_HEAD}<title>{escape(self._headline())}</title><body>{body}</body></html>\n"

    def save(self, path: str | Path) -> Path:
        """Write the certificate: as a page for ``.html``, as text for ``.txt``; else as ``Result.save`` does."""
        path = Path(path)
        if path.suffix not in (".html", ".txt"):
            return super().save(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html() if path.suffix == ".html" else self.text(), encoding="utf-8")
        return path


# Which errors pass, in words. ``EXACT_EPS`` and ``OWN_ERROR_FACTOR`` are explained where they are defined. 2^-23 and
# 2^-52 are the machine epsilons of float32 and float64.
TOLERANCES = (
    "Tolerances: an exact product differs from one in float64 by rounding alone, which is below 100 eps of |Hv| on "
    f"ordinary networks. {EXACT_EPS:.0f} eps pass, {EXACT_EPS * 2**-23:.1e} in float32 and "
    f"{EXACT_EPS * 2**-52:.1e} in float64, unless rtol was given. With some losses, such as those of a "
    "saturated softmax, rounding takes so many digits that no product in the model's dtype is exact. Therefore "
    f"{OWN_ERROR_FACTOR} times the error that the product of hessian-tools has in this dtype is allowed besides. The "
    "central differences of the gradient are not exact either: their error is taken to be twice the distance of the "
    "forward and the backward differences, and at least one part in 100,000."
)
PAGE_HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    "<style>body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:52em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td{padding:.25em .8em .25em 0;vertical-align:top}p{color:#555}</style>"
)
