"""Student's t: how far the confidence interval of a mean reaches. The one place of this formula."""

from scipy.special import stdtrit


def student_t(num_samples: int, confidence: float) -> float:
    """How many standard errors the interval of a mean of ``num_samples`` normal samples reaches each way.

    It is the two-sided quantile of Student's distribution with ``num_samples - 1`` degrees of freedom (Student 1908),
    and NaN below two samples, of which there is no standard error. Raises ValueError unless 0 < confidence < 1.

    >>> round(student_t(4, 0.95), 3), round(student_t(16, 0.95), 3)
    (3.182, 2.131)
    """
    check_confidence(confidence)
    return float(stdtrit(num_samples - 1, (1 + confidence) / 2)) if num_samples > 1 else float("nan")


def check_confidence(confidence: float) -> None:
    """Raises ValueError for a confidence level that is no probability between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: give a probability between 0 and 1, such as 0.95")
