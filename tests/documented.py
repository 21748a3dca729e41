"""What tests of documents share: their Python is run as it stands, where org/... are folders with tiny models."""

import re
from pathlib import Path

from fresh_processes import run_fresh

ROOT = Path(__file__).resolve().parents[1]

#: What the documents' Python takes for granted: two pictures, and a file of one.
_BEFORE = """from PIL import Image
images = [Image.new("RGB", (30, 20), color) for color in ("red", "green")]
images[0].save("cat.png")
"""


def blocks_of(text: str, language: str) -> list[str]:
    """The code blocks of a language in Markdown, without the indentation of a list around them."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def run_documents(codes: dict[str, str], folder: Path, models: dict[str, object], save_processor) -> None:
    """Runs the code of each document with names of its own, all in one new process, in `folder`.

    Args:
        codes: the name of a document -> its code.
        folder: an empty one, which gets the models under org/.
        models: "dinov2-pet" and "salvage-pet" -> a model.
        save_processor: the fixture of this name.
    """
    for name, model in models.items():
        model.save_pretrained(folder / "org" / name)
        save_processor(folder / "org" / name)
    parts = [f"exec(compile({_BEFORE + code!r}, {name!r}, 'exec'), {{}})" for name, code in codes.items()]
    run_fresh("\n".join(parts), folder, HF_HOME=str(folder / "home"), HF_HUB_OFFLINE="1")


def check_written(page: Path, made: str, begin: str, end: str, write: bool, test: str) -> None:
    """Compares a part of a page with what was made, or writes it where `--write-table` asks for that."""
    before, _, rest = page.read_text().partition(begin)
    part, _, after = rest.partition(end)
    if write:
        page.write_text(before + begin + made + end + after)
    else:
        assert part == made, f"run `python -m pytest {test} --write-table`, and look at the change"
