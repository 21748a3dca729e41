"""What MkDocs does beside its plugins.

Formulas become MathML, which browsers draw without a script, the notebook becomes a page, and pictures of the model
cards, to which pages lead by their addresses on GitHub, become files of the site.
"""

import json
import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

PICTURE = re.compile(r"https://raw\.githubusercontent\.com/org/salvage-hf/main/(model_cards/\S+?)(?=\))")
NOTEBOOK, PLACE = Path(__file__).with_name("notebook.ipynb"), "<!-- the cells of notebook.ipynb -->"


def on_files(files, config):
    """Adds the pictures of the model cards that pages show."""
    found = {path for page in files.documentation_pages() for path in PICTURE.findall(page.content_string)}
    for path in sorted(found):
        files.append(File.generated(config, path, abs_src_path=str(NOTEBOOK.parents[1] / path)))
    return files


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
    """Pictures of the site in place of addresses, and the notebook's cells in place of the comment for them."""
    markdown = PICTURE.sub(r"\1", markdown)
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
