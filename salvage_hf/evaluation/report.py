"""The paper's tables and figures, and a page of them, from finished benchmarks and ablations; loads no model."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment  # torch brings it along

from ..arguments import arg
from ..files import check_writable
from . import plots
from .report_sections import Section, ablation_sections, benchmark_sections, file_name
from .results import read_ablation, read_benchmark
from .tables import Table

#: The template of the page.
PAGE = Path(__file__).with_name("report.html")


@dataclass
class ReportArguments:
    """Arguments of scripts/report.py."""

    benchmarks: list[str] = arg([], "Output folders of scripts/benchmark.py, each FOLDER or TITLE=FOLDER.")
    ablations: list[str] = arg([], "Output folders of scripts/ablation.py, each FOLDER or TITLE=FOLDER.")
    output_dir: str = arg("outputs/report", "The folder for index.html, tables/ and figures/.")


def write_report(args: ReportArguments) -> Path:
    """Writes every table and figure that the results allow, and a page that holds them; returns the page.

    Raises:
        ValueError: where a folder holds no results, or two have the same title.
    """
    if not args.benchmarks and not args.ablations:
        raise ValueError("benchmarks or ablations are needed: output folders of scripts/benchmark.py or ablation.py")
    benchmarks = {title: read_benchmark(folder) for title, folder in _titled(args.benchmarks).items()}
    ablations = {title: read_ablation(folder) for title, folder in _titled(args.ablations).items()}
    folder = Path(args.output_dir)
    check_writable(folder)
    for kind in ("tables", "figures"):
        (folder / kind).mkdir(exist_ok=True)
    sections = benchmark_sections(benchmarks) if benchmarks else []
    sections += ablation_sections(ablations) if ablations else []
    page = folder / "index.html"
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE.read_text())
    page.write_text(template.render(sections=[_write_section(section, folder) for section in sections]))
    return page


def _titled(folders: Sequence[str]) -> dict[str, Path]:
    """Title -> folder, from arguments FOLDER or TITLE=FOLDER; without TITLE it is the folder's name."""
    pairs = [
        item.split("=", 1) if "=" in item and not Path(item).is_dir() else (Path(item).resolve().name, item)
        for item in folders
    ]
    titles = [title for title, _ in pairs]
    if len(set(map(file_name, titles))) < len(titles):
        raise ValueError(f"two results have the same title, or titles that make the same file name: {titles}")
    return {title: Path(folder) for title, folder in pairs}


def _write_section(section: Section, folder: Path) -> dict[str, str | Table]:
    """Writes the files of a table or figure; returns what the template needs of it."""
    shown: dict[str, str | Table] = {"title": section.title, "text": section.text}
    if isinstance(section.content, Table):
        (folder / "tables" / f"{section.name}.md").write_text(section.content.markdown())
        (folder / "tables" / f"{section.name}.tex").write_text(section.content.latex())
        return {**shown, "table": section.content}
    picture = plots.png(section.content)
    (folder / "figures" / f"{section.name}.png").write_bytes(picture)
    return {**shown, "png": base64.b64encode(picture).decode()}  # in the page itself, so that it needs no other file
