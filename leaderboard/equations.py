"""LaTeX to MathML when a page is built, so that browsers show equations without any script."""

from __future__ import annotations

from html import escape

from latex2mathml import converter
from markupsafe import Markup


def mathml(latex: str) -> Markup:
    """A `<math>` element for the equation; its LaTeX as code where it cannot be converted.

    The LaTeX stays with the element as its text alternative, to be read out or copied.
    """
    if not latex:
        return Markup("")
    try:
        converted = converter.convert(latex, display="block")
    except Exception:  # the converter documents no error type, and a page must not fail for it
        return Markup(f"<code>{escape(latex)}</code>")
    attribute = f'<math alttext="{escape(latex, quote=True)}" '
    return Markup(converted.replace("<math ", attribute, 1))
