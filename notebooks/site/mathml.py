"""Write formulas as MathML while the pages are built: a browser then needs no script and no network to show them."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

LOG = logging.getLogger(__name__)


def to_mathml(latex: str, display: str = "inline") -> str:
    """Return a formula as MathML; `display` is inline or block. Raises a ValueError for what can't be read."""
    try:
        mathml = convert(latex.strip(), display=display)
    except Exception as error:
        raise ValueError(f"The formula {latex!r} can't be read: {type(error).__name__}") from error
    if "\\" in mathml or latex.count("{") != latex.count("}"):  # the converter lets both through
        raise ValueError(f"The formula {latex!r} has a command that is not known, or a brace without its like.")
    return mathml.replace("<mi>&#x000B1;</mi>", "<mo>&#x000B1;</mo>")  # ± is an operator: it has room around it


def _written(node: nodes.Element, display: str) -> str:
    try:
        return to_mathml(node.astext(), display)
    except ValueError as error:
        LOG.warning(str(error), location=node)
        return ""


def inline(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write a formula within a line."""
    translator.body.append(_written(node, "inline"))
    raise nodes.SkipNode


def block(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write a formula on a line of its own, which scrolls by itself where the page is too narrow for it."""
    translator.body.append(f'<div class="formula">{_written(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx know the renderer, as an extension."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
