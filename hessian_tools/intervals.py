"""The half-width of the confidence interval of a mean, by Student's t. No other module repeats this formula."""

from scipy.special import stdtrit


def student_t(num_samples: int, confidence: float) -> float:
    """The half-width, in standard errors, of the confidence interval of a mean of ``num_samples`` normal samples.

    It is the two-sided quantile of Student's distribution with ``num_samples - 1`` degrees of freedom (Student 1908),
    and NaN for fewer than two samples, which have no standard error. Raises ValueError unless 0 < confidence < 1.

    >>> round(student_t(4, 0.95), 3), round(student_t(16, 0.95), 3)
    (3.182, 2.131)
    """
    check_confidence(confidence)
    return float(stdtrit(num_samples - 1, (1 + confidence) / 2)) if num_samples > 1 else float("nan")


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless the confidence level lies between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: give a probability between 0 and 1, such as 0.95")
