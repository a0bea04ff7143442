"""LaTeX equations of the catalogue as text for a terminal: `y = γ (x-μ)/√(σ²+ε)+β`."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.S)

_SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε",
    "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π",
    "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "varphi": "φ", "chi": "χ", "psi": "ψ",
    "omega": "ω",
    "Sigma": "Σ", "Lambda": "Λ", "Phi": "Φ", "sum": "Σ", "prod": "Π", "partial": "∂",
    "sim": "~", "cdot": "·", "times": "×", "odot": "⊙", "pm": "±", "le": "≤", "leq": "≤",
    "ge": "≥", "geq": "≥", "neq": "≠", "approx": "≈", "in": "∈", "infty": "∞", "to": "→",
    "top": "ᵀ", "Vert": "‖", "lfloor": "⌊", "rfloor": "⌋", "ldots": "…", "dots": "…", "cdots": "…",
    "quad": "\n", "qquad": "\n",
}  # fmt: skip
_ACCENTS = {
    "hat": "\u0302", "widehat": "\u0302", "tilde": "\u0303", "bar": "\u0304",
    "overline": "\u0304", "dot": "\u0307",
}  # fmt: skip
_STYLES = {"mathrm", "mathbb", "mathcal", "mathbf", "boldsymbol", "text", "operatorname"}
_SIZES = {"left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "bigg", "Bigg"}
_PRODUCT = re.compile(r"[^\W\d_]{2,}|[^√(]+√.*")
_RAISED = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")


def plain(latex: str) -> str:
    r"""Readable text for an equation; a new line where it has `\quad`. Unknown commands stay words.

    >>> plain(r"y = \frac{x-\mu}{\sigma}")
    'y = (x-μ)/σ'
    """
    text = re.sub(r"([‖⌊]) +", r"\1", _group(iter(_TOKEN.findall(latex))))
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
    if token == "_":
        return f"_{_atom(_argument(tokens))}"
    if not token.startswith("\\"):
        return token
    name = token[1:]
    if name in ("frac", "tfrac", "dfrac"):
        above, below = _argument(tokens), _argument(tokens)
        return f"{_atom(above)}/{f'({below})' if _PRODUCT.fullmatch(below) else _atom(below)}"
    if name == "sqrt":
        return f"√({_argument(tokens)})"
    if name in _ACCENTS:
        below = _argument(tokens)
        return below + _ACCENTS[name] if len(below) == 1 else f"⟨{below}⟩"
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
