"""Alpha, the divisor of the logits: what each method takes, and which ones a sweep tries."""

from __future__ import annotations

from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Manifest, Method

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""A sweep tries so many times the method's own alpha."""


def default_alpha(method: Method, steps: int) -> float:
    """QFFS: the quantiser's levels, so that the settled confidence is the quantised network's; QCFS: T (paper, 5.2)."""
    return float(method.levels if method.name == "qffs" else steps)


def alphas_from_text(text: str, manifest: Manifest) -> tuple[float, ...]:
    """Read what `--alpha` takes: keep, method, sweep, a number, or several with commas between them.

    Raises: DynamicConfidenceError for anything else, a number that is not positive, or one that stands twice.
    """
    own = default_alpha(manifest.method, manifest.max_steps)
    named = {
        "keep": (manifest.calibration.alpha,),
        "method": (own,),
        "sweep": tuple(factor * own for factor in FACTORS),
    }
    if text in named:
        return named[text]
    try:
        alphas = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise DynamicConfidenceError(
            f"--alpha {text}: expected {', '.join(named)}, a number, or several to sweep: --alpha 4,8,16."
        ) from None
    for alpha in alphas:
        check_positive("alpha", alpha)
    if len(set(alphas)) < len(alphas):
        raise DynamicConfidenceError(f"--alpha {text}: a number stands twice. Give each one once.")
    return alphas


def check_positive(name: str, value: float) -> None:
    """Raise DynamicConfidenceError unless `value` is a positive, finite number."""
    if not 0 < value < float("inf"):
        raise DynamicConfidenceError(f"{name} {value:g}: expected a positive number.")
