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
        (r"y=\gamma\Big(\hat x+d\Big),\quad r=1", "y=γ(x̂+d),\nr=1"),
        (r"x^{-1}, x^{n+1}, \xi\sim\mathcal N(0,1)", "x⁻¹, x^(n+1), ξ~N(0,1)"),
        (r"\max(a,b)", "max(a,b)"),
    ],
)
def test_latex_becomes_text(latex: str, expected: str) -> None:
    assert plain(latex) == expected


@pytest.mark.parametrize("name", list_methods())
def test_every_equation_is_free_of_latex(name: str) -> None:
    equation = get(name).equation.replace(r"\{", "(").replace(r"\}", ")")  # a set's own braces stay
    assert not set(plain(equation)) & set("\\{}")
