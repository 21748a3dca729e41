"""The paper's tables and figures, and a page of them, from finished benchmarks and ablations; loads no model."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment  # torch brings it along

from ..arguments import arg, check_arguments
from ..files import locked, remove_leftovers, write_bytes
from ..logs import show_log
from ..recipes import write_recipe
from . import plots
from .reading import read_ablation, read_benchmark
from .report_sections import Section, ablation_sections, benchmark_sections, file_name
from .tables import Table

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


def write_report(args: ReportArguments) -> Path:
    """Writes every table and figure that the results allow, and a page that holds them; returns the page.

    Raises:
        ValueError: where a folder holds no finished results, a file in it is damaged, two have the same title, or
            another process writes to `output_dir`.
    """
    benchmarks = {title: read_benchmark(folder) for title, folder in titled("benchmarks", args.benchmarks).items()}
    ablations = {title: read_ablation(folder) for title, folder in titled("ablations", args.ablations).items()}
    show_log()
    with locked(args.output_dir, "salvage report"):
        folder = Path(args.output_dir)
        write_recipe(folder, "report", args)
        for kind in ("tables", "figures"):
            (folder / kind).mkdir(exist_ok=True)
            remove_leftovers(folder / kind)
        sections = benchmark_sections(benchmarks) if benchmarks else []
        sections += ablation_sections(ablations) if ablations else []
        page = folder / "index.html"
        template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE.read_text())
        text = template.render(sections=[_write_section(section, folder) for section in sections])
        write_bytes(page, text.encode())
    return page


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


def _write_section(section: Section, folder: Path) -> dict[str, str | Table]:
    """Writes the files of a table or figure; returns what the template needs of it."""
    shown: dict[str, str | Table] = {"title": section.title, "text": section.text}
    if isinstance(section.content, Table):
        write_bytes(folder / "tables" / f"{section.name}.md", section.content.markdown().encode())
        write_bytes(folder / "tables" / f"{section.name}.tex", section.content.latex().encode())
        return {**shown, "table": section.content}
    picture = plots.file_content(section.content)
    write_bytes(folder / "figures" / f"{section.name}.png", picture)
    return {**shown, "png": base64.b64encode(picture).decode()}  # in the page itself, so that it needs no other file
