"""LaTeX equations of the catalogue as text for a terminal: `y = γ (x-μ)/√(σ²+ε)+β`."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.S)

_SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε",
    "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π",
    "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "varphi": "φ", "psi": "ψ", "omega": "ω",
    "Sigma": "Σ", "Lambda": "Λ", "Phi": "Φ", "sum": "Σ", "prod": "Π", "partial": "∂",
    "sim": "~", "cdot": "·", "times": "×", "odot": "⊙", "pm": "±", "le": "≤", "leq": "≤",
    "ge": "≥", "geq": "≥", "neq": "≠", "approx": "≈", "in": "∈", "infty": "∞", "to": "→",
    "top": "ᵀ", "ldots": "…", "dots": "…", "cdots": "…",
    "quad": "\n", "qquad": "\n",
}  # fmt: skip
_ACCENTS = {"hat": "\u0302", "widehat": "\u0302", "tilde": "\u0303", "bar": "\u0304"}
_STYLES = {"mathrm", "mathbb", "mathcal", "mathbf", "boldsymbol", "text", "operatorname"}
_SIZES = {"left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "bigg", "Bigg"}
_RAISED = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")


def plain(latex: str) -> str:
    r"""Readable text for an equation; a new line where it has `\quad`. Unknown commands stay words.

    >>> plain(r"y = \frac{x-\mu}{\sigma}")
    'y = (x-μ)/σ'
    """
    text = _group(iter(_TOKEN.findall(latex)))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _group(tokens: Iterator[str]) -> str:
    """Text up to the end of the group that is open."""
    out = ""
    for token in tokens:
        if token == "}":
            break
        out += _one(token, tokens)
    return out


def _argument(tokens: Iterator[str]) -> str:
    for token in tokens:
        if not token.isspace():
            return _one(token, tokens)
    return ""


def _one(token: str, tokens: Iterator[str]) -> str:
    if token == "{":
        return _group(tokens)
    if token == "^":
        power = _argument(tokens)
        return power.translate(_RAISED) if re.fullmatch(r"[-+\d]+", power) else f"^{_atom(power)}"
    if not token.startswith("\\"):
        return token
    name = token[1:]
    if name in ("frac", "tfrac", "dfrac"):
        return f"{_atom(_argument(tokens))}/{_atom(_argument(tokens))}"
    if name == "sqrt":
        return f"√({_argument(tokens)})"
    if name in _ACCENTS:
        return _argument(tokens) + _ACCENTS[name]
    if name in _STYLES:
        return _argument(tokens)
    if name in _SIZES:
        return ""
    if name.isalpha():
        return _SYMBOLS.get(name, name)
    return " " if name in ",;:! " else name


def _atom(text: str) -> str:
    """The text, in brackets if something could be read apart from the rest of it."""
    depth = 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if depth == 0 and char in " +-*/=,~":
            return f"({text})"
    return text
