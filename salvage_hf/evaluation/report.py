"""The paper's tables and figures, and a page that explains them, from finished benchmarks and ablations.

Loads no model.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from matplotlib.figure import Figure
from PIL import Image

from ..arguments import arg, check_arguments
from ..files import locked, remove_leftovers, write_bytes
from ..logs import show_log
from ..recipes import RECIPE, write_recipe, written_recipe
from ..version import VERSION
from . import plots
from .ranking import TRAINED
from .reading import read_ablation, read_benchmark
from .report_sections import MARKED, Section, ablation_sections, benchmark_sections, file_name
from .report_settings import ablation_origin, benchmark_origin
from .report_summary import Point, ablation_summary, benchmark_summary
from .results import method_titles
from .tables import Table

#: The width of a figure over the whole page in inches. Narrower ones get more pixels, so that they are large too.
_FULL_WIDTH = 10.2

#: The template of the page.
PAGE = Path(__file__).with_name("report.html")


@dataclass
class ReportArguments:
    """Arguments of `salvage report`."""

    benchmarks: list[str] = arg([], "Output folders of salvage benchmark, each FOLDER or TITLE=FOLDER.")
    ablations: list[str] = arg([], "Output folders of salvage ablation, each FOLDER or TITLE=FOLDER.")
    output_dir: str = arg("outputs/report", "The folder for index.html, tables/ and figures/.")

    def __post_init__(self):
        check_arguments(self)
        if not self.benchmarks and not self.ablations:
            raise ValueError(
                "benchmarks or ablations are needed: output folders of salvage benchmark or salvage ablation"
            )


def write_report(
    args: ReportArguments, heading: str = "Which maps show what the classifier looks at?", about: Sequence[Point] = ()
) -> Path:
    """Writes every table and figure that the results allow, and a page that holds and explains them.

    Args:
        args: the folders.
        heading: the page's title.
        about: paragraphs that the page begins with, before those that are made from the results.

    Returns:
        The page, which needs no other file.

    Raises:
        ValueError: where a folder holds no finished results, a file in it is damaged, two have the same title, or
            another process writes to `output_dir`.
    """
    benchmarks = {title: read_benchmark(folder) for title, folder in titled("benchmarks", args.benchmarks).items()}
    ablation_folders = titled("ablations", args.ablations)
    ablations = {title: read_ablation(folder) for title, folder in ablation_folders.items()}
    summaries = [benchmark_summary(title, benchmark) for title, benchmark in benchmarks.items()]
    summaries += [ablation_summary(title, ablation) for title, ablation in ablations.items()]
    origins = [benchmark_origin(title, benchmark) for title, benchmark in benchmarks.items()]
    origins += [
        ablation_origin(title, ablation, written_recipe(ablation_folders[title]))
        for title, ablation in ablations.items()
    ]
    show_log()
    with locked(args.output_dir, "salvage report"):
        folder = Path(args.output_dir)
        write_recipe(folder, "report", args)
        for kind in ("tables", "figures"):
            (folder / kind).mkdir(exist_ok=True)
            remove_leftovers(folder / kind)
        sections = benchmark_sections(benchmarks) if benchmarks else []
        sections += ablation_sections(ablations) if ablations else []
        # Pictures first, in the paper's order, for which their names have the numbers.
        figures = sorted((section for section in sections if isinstance(section.content, Figure)), key=_number)
        tables = [section for section in sections if isinstance(section.content, Table)]
        page = folder / "index.html"
        text = _template().render(
            heading=heading,
            about=about,
            summaries=summaries,
            figures=[_write_figure(section, folder) for section in figures],
            tables=[_write_table(section, folder) for section in tables],
            origins=origins,
            trained=set(method_titles(TRAINED).values()),
            version=VERSION,
            recipe=RECIPE,
            marked=MARKED,
        )
        write_bytes(page, text.encode())
    return page


def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(PAGE.read_text())


def _number(section: Section) -> int:
    """The number in a figure's name: of "figure5_Pets" 5."""
    return int(section.name.removeprefix("figure").partition("_")[0])


def titled(argument: str, folders: Sequence[str]) -> dict[str, Path]:
    """Title -> folder, from arguments FOLDER or TITLE=FOLDER; without TITLE it is the folder's name."""
    pairs = [
        item.split("=", 1) if "=" in item and not Path(item).is_dir() else (Path(item).resolve().name, item)
        for item in folders
    ]
    if wrong := [item for item, pair in zip(folders, pairs, strict=True) if not all(pair)]:
        raise ValueError(f"{argument}: {wrong[0]!r} is not FOLDER or TITLE=FOLDER, for example Pets=outputs/benchmark")
    titles = [title for title, _ in pairs]
    if len(set(map(file_name, titles))) < len(titles):
        raise ValueError(f"{argument}: two have the same title, or titles that make the same file name: {titles}")
    return {title: Path(folder) for title, folder in pairs}


def _write_table(section: Section, folder: Path) -> Section:
    """Writes the files of a table; returns what the template needs of it."""
    assert isinstance(section.content, Table)
    write_bytes(folder / "tables" / f"{section.name}.md", section.content.markdown().encode())
    write_bytes(folder / "tables" / f"{section.name}.tex", section.content.latex().encode())
    return section


def _write_figure(section: Section, folder: Path) -> dict[str, Any]:
    """Writes the file of a figure; returns what the template needs of it.

    That is the section, width and height in pixels, and the width in which the labels are well read on a telephone.

    The pictures are in the page itself, so that it needs no other file: one for light pages, one for dark ones.
    """
    assert isinstance(section.content, Figure)
    inches = section.content.get_figwidth()
    dpi = plots.DPI * min(2.0, max(1.0, _FULL_WIDTH / inches))
    light = plots.file_content(section.content, dpi=dpi)
    write_bytes(folder / "figures" / f"{section.name}.png", light)
    plots.darken(section.content)
    dark = plots.file_content(section.content, dpi=dpi)
    pictures = {"light": Image.open(BytesIO(light)), "dark": Image.open(BytesIO(dark))}
    shown = {name: _as_webp(picture) for name, picture in pictures.items()}
    width, height = pictures["light"].size
    return {"section": section, "width": width, "height": height, "readable": round(0.9 * plots.DPI * inches), **shown}


def _as_webp(picture: Image.Image) -> str:
    """A picture as WebP, which is a tenth of PNG where there are photographs, in base64."""
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()
