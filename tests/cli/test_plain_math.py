"""Equations for a terminal."""

from __future__ import annotations

import pytest

from normbench.cli.plain_math import plain
from normbench.registry import get, list_methods


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\frac{x-\mu_{NHW}}{\sqrt{\sigma^2_{NHW}+\epsilon}}", "(x-μ_NHW)/√(σ²_NHW+ε)"),
        (r"\frac{\sigma}{\sigma_{\mathrm{run}}}", "σ/σ_run"),
        (r"\frac12", "1/2"),
        (r"\frac{w}{\sigma_o\sqrt n}", "w/(σ_o√(n))"),
        (r"y=\gamma\Big(\hat x+d\Big),\quad r=1", "y=γ(x̂+d),\nr=1"),
        (r"x^{-1}, x^{n+1}, \xi\sim\mathcal N(0,1)", "x⁻¹, x^(n+1), ξ~N(0,1)"),
        (r"\max(a,b)", "max(a,b)"),
        (r"\sum_{k=0}^K \frac{1}{HW}", "Σ_(k=0)^K 1/(HW)"),
        (r"\dot x, \overline x, \overline{x^2}", "x\u0307, x\u0304, ⟨x²⟩"),
        (r"\lfloor rC\rfloor, \Vert v\Vert", "⌊rC⌋, ‖v‖"),
    ],
)
def test_latex_becomes_text(latex: str, expected: str) -> None:
    assert plain(latex) == expected


@pytest.mark.parametrize("name", list_methods())
def test_every_equation_is_free_of_latex(name: str) -> None:
    equation = get(name).equation.replace(r"\{", "(").replace(r"\}", ")")  # a set's own braces stay
    assert not set(plain(equation)) & set("\\{}")
