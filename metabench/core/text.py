"""Words for people: lists, counts, costs, durations, numbers with their +-."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

LONGEST = 240
"""Characters of a reason that are shown; the record has all of it."""


MOST_DECIMALS = 8
"""Of a number and its half-width."""


EXACT = 1e-14
"""Half-widths of so small a part of the mean are round-off of float64, and shown as 0."""


def listed(words: Iterable[str]) -> str:
    """a, b and c."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def with_article(word: str) -> str:
    """A word after "a", or after "an" where its first letter is a vowel."""
    return f"{'an' if word[:1].lower() in set('aeiou') else 'a'} {word}"


def type_of(value: object) -> str:
    """The type of a value with its article: an int, a tuple."""
    return with_article(type(value).__name__)


def counted(n: int, what: str) -> str:
    """A number of things: 1 episode, 2 episodes."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def shortened(reason: str) -> str:
    """A reason in one line of at most ``LONGEST`` characters, without its full stop."""
    reason = one_line(reason).rstrip(".")
    return reason if len(reason) <= LONGEST else reason[: LONGEST - 1].rstrip() + "…"


def rounded(value: float, digits: int = 2) -> str:
    """A number in so many digits; one with more before its point is whole and has no power of ten:
    0.025, 2.5, 250."""
    if abs(value) < 10**digits - 0.5:
        return f"{value:.{digits}g}"
    return f"{value:,.0f}"


def human(name: str, value: float) -> str:
    """A cost with its unit: bytes as KiB, MiB or GiB, seconds or ms to three digits, counts with
    commas or as k, M, G."""
    if name.endswith("_bytes"):
        size = value / 2**20
        if size < 10:
            return f"{rounded(size, 3)} MiB" if size >= 1 else f"{rounded(1024 * size, 3)} KiB"
        return f"{size:,.0f} MiB" if size < 10240 else f"{size / 1024:,.1f} GiB"
    if name.endswith("seconds"):
        if 0 < value < 1:
            return f"{rounded(1000 * value, 3)} ms"
        return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            scale = 1e3 if letter == "k" else unit
            return f"{value / scale:.4g} {letter}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def printable(text: str) -> str:
    """``text`` that shows itself and does nothing else: what a terminal would act on, what turns
    the direction of letters and what nobody sees become their numbers (\\u001b)."""
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else _number(c) for c in text.replace("\r\n", "\n"))


def _is_shown(c: str) -> bool:
    return c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"


def _number(c: str) -> str:
    units = c.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def one_line(text: str) -> str:
    """:func:`printable`, with runs of white space as one space."""
    return " ".join(printable(text).split())


_ROLE = re.compile(r":(?:py:)?[a-z]+:`(?:[^`<]*<)?(?P<dot>~)?(?P<name>[^`>]+)>?`")
_LITERAL = re.compile(r"``(.+?)``", re.DOTALL)
ITEM = re.compile(r"\s*(?:[-*]|\d+[.)]) +|\S+ {3,}")
"""How an item of a list begins: with a dash, a number, or a word that it explains."""


def without_markup(text: str) -> str:
    """A docstring's text without reStructuredText's roles and double backticks.

    >>> without_markup("``rank`` is in :mod:`metabench.api`, as :func:`~metabench.api.run` is")
    'rank is in metabench.api, as run is'
    """

    def named(role: re.Match[str]) -> str:
        return role["name"].rpartition(".")[2] if role["dot"] else role["name"]

    return _LITERAL.sub(r"\1", _ROLE.sub(named, text))


def unwrapped(text: str) -> str:
    """Text of which each paragraph and each item of a list is one line, to be wrapped anew; what
    stands indented (a formula, code) keeps its lines."""
    out: list[str] = []
    for line in text.splitlines():
        last = out[-1] if out else ""
        # An item goes on in lines that are indented, a paragraph in lines that are not.
        indented = line[:1].isspace()
        inside = indented if ITEM.match(last) else not (indented or last[:1].isspace())
        if inside and last.strip() and line.strip() and not ITEM.match(line):
            out[-1] = f"{last} {line.strip()}"
        else:
            out.append(line)
    return "\n".join(out)


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def with_pm(mean: float, pm: float | None, scale: float = 1.0, least: int | None = None) -> str:
    """``mean`` and its half-width as text, times ``scale``, with two digits of the half-width.

    ``least`` fixes the smallest number of decimals and allows one more (percentages), or as many as
    show that a half-width is not 0. Very small and very large numbers share one power of ten. No +-
    is written where there is none, and no decimals of one that is 0 or round-off; another that
    eight decimals would show as 0 has a power of ten of its own.
    """
    mean, pm = mean * scale + 0.0, None if pm is None else pm * scale  # 0.0 and not -0.0
    if pm and pm <= EXACT * abs(mean):
        pm = 0.0
    size, half = max(abs(mean), pm or 0.0), pm
    power = 0
    if size and least is None and not 1e-3 <= size < 1e5:
        power = max(math.floor(math.log10(size)), -300)  # 10.0**-324 is 0
        mean, pm = mean / 10.0**power, None if pm is None else pm / 10.0**power
        size /= 10.0**power
    if least is not None:
        decimals = least + 1 if pm is not None and 0 < pm < 0.095 else least
        if pm and not float(f"{pm:.{decimals}f}"):
            decimals = min(MOST_DECIMALS, -math.floor(math.log10(pm)))
    elif pm:
        decimals = min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(pm))))
    else:
        decimals = max(0, 3 - math.floor(math.log10(size))) if size else 0
    text = f"{mean:.{decimals}f}"
    if half and not float(f"{pm:.{decimals}f}"):
        return f"{text}{f'e{power:+03d}' * bool(power)} ± {half:.1e}"
    if pm is not None:
        text += f" ± {pm:.{decimals}f}" if pm else " ± 0"
        return f"({text})e{power:+03d}" if power else text
    return f"{text}e{power:+03d}" if power else text


def size_text(n: float) -> str:
    """A number of bytes for people."""
    for unit, least, name in ((1e9, 1e9, "GB"), (1e6, 5e4, "MB")):
        if n >= least:
            return f"{n / unit:.1f} {name}"
    return f"{n / 1e3:.1f} kB"
