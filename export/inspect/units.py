"""Numbers as people read them."""

from __future__ import annotations

UNKNOWN = "-"


def si(value: float | None, unit: str = "") -> str:
    """Three significant digits with a decimal prefix: 3.64 G."""
    if value is None:
        return UNKNOWN
    for bound, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * bound:
            return f"{_three(value / bound)} {prefix}{unit}"
    return f"{_three(value)} {unit}".rstrip()


def milliseconds(seconds: float | None) -> str:
    """Seconds as ms."""
    return UNKNOWN if seconds is None else f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def share(part: float | None, whole: float) -> str:
    """A part of a whole in percent."""
    return UNKNOWN if part is None or not whole else f"{100 * part / whole:.1f}%"


def _three(value: float) -> str:
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"
