"""A grid as a LaTeX table: numbers with a power of ten, Greek letters and signs as mathematics."""

from __future__ import annotations

import re
import unicodedata

from metabench.core.text import one_line
from metabench.reports.tables.renderers import WORSE, Grid, Item

_SMALL = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho
    varsigma sigma tau upsilon phi chi psi omega
""".split()  # noqa: SIM905
_NO_COMMAND = dict(
    zip(
        ("Alpha", "Beta", "Epsilon", "Zeta", "Eta", "Iota", "Kappa", "Mu", "Nu", "Omicron", "Rho",
         "Tau", "Chi", "omicron"),
        "ABEZHIKMNOPTXo",
        strict=True,
    )
)  # fmt: skip
"""Greek letters that look like Latin ones, for which LaTeX has no command."""


def _greek(name: str) -> str:
    return rf"$\mathrm{{{_NO_COMMAND[name]}}}$" if name in _NO_COMMAND else rf"$\{name}$"


_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    WORSE: r"\textsuperscript{\textdagger}",
    "‡": r"\textsuperscript{\textdaggerdbl}",
    "—": "---",
    "–": "--",
    "…": r"\dots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "•": r"\textbullet{}",
    "§": r"\S{}",
    "€": r"\texteuro{}",
    "°": r"$^\circ$",
    "ℓ": r"$\ell$",
    "µ": r"$\mu$",
    **{chr(0x3B1 + i): _greek(name) for i, name in enumerate(_SMALL)},
    **{chr(0x391 + i): _greek(name.capitalize()) for i, name in enumerate(_SMALL) if i != 17},
    **{
        sign: f"${command}$"
        for sign, command in {
            "±": r"\pm",
            "∓": r"\mp",
            "×": r"\times",
            "÷": r"\div",
            "·": r"\cdot",
            "−": "-",
            "≥": r"\geq",
            "≤": r"\leq",
            "≠": r"\neq",
            "≈": r"\approx",
            "≡": r"\equiv",
            "∼": r"\sim",
            "∝": r"\propto",
            "≪": r"\ll",
            "≫": r"\gg",
            "∞": r"\infty",
            "∈": r"\in",
            "∂": r"\partial",
            "∇": r"\nabla",
            "∑": r"\sum",
            "∏": r"\prod",
            "∫": r"\int",
            "√": r"\surd",
            "∥": r"\Vert",
            "⟨": r"\langle",
            "⟩": r"\rangle",
            "→": r"\rightarrow",
            "←": r"\leftarrow",
            "↔": r"\leftrightarrow",
            "↑": r"\uparrow",
            "↓": r"\downarrow",
            "⇒": r"\Rightarrow",
            "⇐": r"\Leftarrow",
            "⇔": r"\Leftrightarrow",
            "↦": r"\mapsto",
            "¬": r"\neg",
            "⁄": "/",
        }.items()
    },
}

_NUMBER = r"-?\d+(?:\.\d+)?"
_TOKENS = re.compile(
    rf"\((?P<mean>{_NUMBER}) ± (?P<pm>{_NUMBER})\)e(?P<shared>[+-]?\d+)(?!\w)"
    rf"|(?<![\w.])(?P<value>{_NUMBER})e(?P<power>[+-]?\d+)(?!\w|\.\d)"
    # Not the name of a setting (method.gamma, inner-lambda) or a part of it.
    rf"|(?<![\w.-])(?P<word>{'|'.join(_SMALL)})(?![\w-]|\.\w)"
    r"|.",
    re.DOTALL,
)


def latex_escape(text: str) -> str:
    """Text that LaTeX shows as it is, in text mode with the encoding T1.

    1e-05 is shown as a power of ten, and Greek letters, their English names ("gamma = 10") and
    signs as mathematics. Letters of T1 (é, š) stay; so do those of other scripts, for which the
    document needs an engine and a font that have them.
    """
    text = one_line(text)
    return "".join(_shown(token, text) for token in _TOKENS.finditer(text))


def code_escape(text: str) -> str:
    """As :func:`latex_escape`, for a command that is to be typed: numbers and words stay."""
    text = one_line(text)
    return "".join(_sign(c, before) for before, c in zip(" " + text, text, strict=False))


def _shown(token: re.Match[str], text: str) -> str:
    found = token.groupdict()
    if found["mean"]:
        return rf"$({found['mean']} \pm {found['pm']})\times10^{{{int(found['shared'])}}}$"
    if found["value"]:
        factor = "" if found["value"] == "1" else rf"{found['value']}\times"
        return f"${factor}10^{{{int(found['power'])}}}$"
    if found["word"]:
        return _greek(found["word"])
    return _sign(token[0], text[token.start() - 1] if token.start() else " ")


def _sign(c: str, before: str) -> str:
    """A character after another one, which it must not become a ligature with."""
    if c in _SIGNS:
        return _SIGNS[c]
    if c.isascii():
        return "{}" + c if c == before and c in "-," else c
    if unicodedata.category(c).startswith("L") and ord(c) < 0x180:
        return c
    kind = unicodedata.decomposition(c).partition(" ")[0]
    bare = unicodedata.normalize("NFKD", c)
    if kind in ("<super>", "<sub>"):
        return f"${'^' if kind == '<super>' else '_'}{{{bare}}}$" if bare.isascii() else c
    if bare[0] in _SIGNS or (kind and bare.isascii()):
        # A letter with an accent that LaTeX lacks, without it; a letter in another form.
        return "".join(_sign(part, " ") for part in bare if not unicodedata.combining(part))
    return c


def latex(grid: Grid) -> str:
    """A table float with booktabs rules and the footnotes below.

    Preamble: ``\\usepackage{booktabs}`` and ``\\usepackage[T1]{fontenc}``.
    """

    def cell(item: Item) -> str:
        text = latex_escape(item.text)
        if item.bold:
            text = rf"\textbf{{\boldmath {text}}}" if "$" in text else rf"\textbf{{{text}}}"
        text += _SIGNS[WORSE] * item.worse
        return text + (rf"\textsuperscript{{{','.join(item.marks)}}}" if item.marks else "")

    columns = "l" * grid.left + "r" * (len(grid.heads) - grid.left)
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escape(grid.title)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', grid.label)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
    ]
    if any(label for label, _ in grid.groups):
        start, top, under = 1, [], []
        for label, span in grid.groups:
            wide = rf"\multicolumn{{{span}}}{{c}}{{{latex_escape(label)}}}"
            top.append(wide if label else "&".join([" "] * span).strip())
            if label:
                under.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
            start += span
        lines += [" & ".join(top) + r" \\", " ".join(under)]
    lines += [" & ".join(latex_escape(head) for head in grid.heads) + r" \\", r"\midrule"]
    for number, row in enumerate(grid.rows):
        if number in grid.rules and number:
            lines.append(r"\midrule")
        lines.append(" & ".join(cell(item) for item in row) + r" \\")
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\medskip",
        r"\begin{minipage}{\linewidth}",
        r"\footnotesize\raggedright",
    ]
    for note in grid.notes("page"):
        mark = rf"\textsuperscript{{{note.mark}}}" if note.mark else ""
        code = rf" \texttt{{{code_escape(note.code)}}}" if note.code else ""
        lines.append(rf"{mark}{latex_escape(note.words('Bold'))}{code}\par")
    return "\n".join([*lines, r"\end{minipage}", r"\end{table}"]) + "\n"
