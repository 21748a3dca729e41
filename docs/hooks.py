"""What MkDocs does beside its plugins.

Formulas become MathML, which browsers draw without a script, and the notebook becomes a page.
"""

import json
import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert

NOTEBOOK, PLACE = Path(__file__).with_name("notebook.ipynb"), "<!-- the cells of notebook.ipynb -->"


#: How arithmatex marks a formula -> how MathML displays it.
MARKS = {
    re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL): "block",
    re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL): "inline",
}


def on_page_content(html, **_):
    """The formulas that arithmatex has marked, as MathML."""
    for mark, display in MARKS.items():
        html = mark.sub(lambda found, display=display: convert(unescape(found[1]).strip(), display=display), html)
    return html


def on_page_markdown(markdown, **_):
    """The notebook's cells with what they gave, in place of the comment that asks for them."""
    if PLACE not in markdown:
        return markdown
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return markdown.replace(PLACE, "\n\n".join(_cell(cell) for cell in cells))


def _cell(cell):
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            image = "".join(data["image/png"]).replace("\n", "")
            parts.append(f"![What the cell above draws](data:image/png;base64,{image})")
        elif text := "".join(output.get("text", data.get("text/plain", ""))):
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)
