import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.core.catalogue import suite_names
from metabench.reports.tables.latex import code_escape, latex, latex_escape
from metabench.reports.tables.renderers import Footnote, Grid, Item
from metabench.suites.loading import load

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)


def is_bare(text: str) -> bool:
    """Whether LaTeX would take a character of a text for more than itself, formulas apart."""
    plain = re.sub(r"(?<!\\)\$[^$]+\$", "", text)
    plain = re.sub(r"\\(text[a-z]+|dots|S)\b", "", plain)
    plain = re.sub(r"\\[{}$&#%_]", "", plain)
    assert plain.count("{") == plain.count("}")
    return bool(re.search(r"[\\$&#%_^~<>|\"]", plain))


@given(TEXT)
def test_latex_leaves_no_special_bare(text):
    assert not is_bare(code_escape(text))
    assert not is_bare(latex_escape(text))


def words_of(name: str) -> list[str]:
    """What a table of a built-in suite may quote."""
    suite = load(name)
    published = [n for row in suite.paper for n in (row.source, row.label, row.pm_meaning)]
    rows = [suite.rows, suite.columns, suite.paper_rows]
    labels = [part.label or part.id for parts in rows for part in parts]
    return [suite.title, suite.floor_label, suite.metric, *labels, *published]


@pytest.fixture(scope="module")
def quoted() -> list[str]:
    return sorted({text for name in suite_names() for text in words_of(name) if text})


@given(data=st.data())
def test_words_of_the_built_in_suites_become_ascii(quoted, data):
    words = data.draw(st.lists(st.sampled_from(quoted), min_size=1, max_size=20))
    shown = latex_escape(" ".join(words))
    assert shown.isascii() and not is_bare(shown)


ACCENTS = "άέήίόύώϊϋ"
SIGNS = "†‡→←↔↑↓⇒°≥≤≠≈±×·−∞∇∂∑√µϑϕϵ²³₂–—…“”"
GREEK = "".join(map(chr, [*range(0x391, 0x3A2), *range(0x3A3, 0x3AA), *range(0x3B1, 0x3CA)]))


@given(st.text(GREEK + ACCENTS + SIGNS + "a1 ", max_size=20))
def test_no_greek_letter_and_no_sign_is_left_to_the_engine(text):
    shown = latex_escape(text)
    assert shown.isascii() and not is_bare(shown)
    assert code_escape(text).isascii()


@given(st.floats(1e-300, 1e-3), st.integers(0, 6), st.sampled_from(["", "-"]))
def test_a_power_of_ten_is_a_formula_of_the_same_number(value, digits, sign):
    text = f"{sign}{value:.{digits}e}"
    found = re.fullmatch(r"\$(?:(.*)\\times)?10\^\{(-?\d+)\}\$", latex_escape(text))
    assert found and float(f"{found[1] or 1}e{found[2]}") == float(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("3.2e-05", r"$3.2\times10^{-5}$"),
        ("MAID from 1e-5.", r"MAID from $10^{-5}$."),
        ("(6.43 ± 0.52)e-04", r"$(6.43 \pm 0.52)\times10^{-4}$"),
        ("96.5 ± 0.2", r"96.5 $\pm$ 0.2"),
        ("gamma = 10", r"$\gamma$ = 10"),
        ("STN, sigma 0.5", r"STN, $\sigma$ 0.5"),
        ("m.gamma, x_eta, gamma.b, beta-VAE, etas", r"m.gamma, x\_eta, gamma.b, beta-VAE, etas"),
        ("1e-5.2, v1e-5, 0x1e-5", "1e-5.2, v1e-5, 0x1e-5"),
        ("30°, β ≥ 2, Σ, Α", r"30$^\circ$, $\beta$ $\geq$ 2, $\Sigma$, $\mathrm{A}$"),
        ("R²", "R$^{2}$"),
        ("Agnéšα", r"Agnéš$\alpha$"),
        ("--a", "-{}-a"),
        ("—", "---"),
        ("[a]", "{[}a{]}"),
    ],
)  # fmt: skip
def test_latex_text(text, shown):
    assert latex_escape(text) == shown


def test_a_command_keeps_its_words_and_a_bold_formula_is_bold():
    note = Footnote("With sigma:", code="metabench run x --set method.a=1e-5 alpha")
    item = Item("(1.0 ± 0.5)e-05", bold=True)
    text = latex(Grid("t", [("", 2)], ["a", "b"], [[Item("x"), item]], [note]))
    assert r"With $\sigma$: \texttt{metabench run x -{}-set method.a=1e-5 alpha}" in text
    assert r"\textbf{\boldmath $(1.0 \pm 0.5)\times10^{-5}$}" in text
