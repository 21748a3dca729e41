"""The structure of the code: small files, short functions, one-way imports, and a correct map of the paper."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling", "metrics", "scripts")  # beside the library
LIBRARY = sorted(
    file
    for file in (ROOT / "salvage_hf").rglob("*.py")
    if not {"modeling", "metrics", "model_cards"} & set(file.relative_to(ROOT / "salvage_hf").parts)
)

FILES = list(LIBRARY)
FILES += sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

#: From the lowest floor up: a module imports from lower floors and from its own package only.
FLOORS = (
    {"tensors", "type_checks", "version"},
    {"modeling", "metrics", "keyed_random", "targets", "arguments", "vision_families", "pretrained", "files", "logs"},
    {"subsets", "localization", "data", "recipes"},
    {"objectives", "masking"},
    {"faithfulness", "refinement"},
    {"attribution_methods", "hub"},
    {"training"},
    {"evaluation"},
    {"evaluate_modules"},
    {"explanation"},
    {"explainer", "explained_page"},
    {"app", "explain", "demo", "commands"},
    {"push"},
    {"cli", "__init__"},
    {"__main__"},
)
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} in line {node.lineno}"


def module_of(file: Path) -> str:
    """The dotted name of a file of the library: "salvage_hf.data.images", for a package its own."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for file in LIBRARY}


def imported_modules(file: Path) -> set[str]:
    """The modules of the library that a file imports, also inside functions."""
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("salvage_hf")}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            if base.startswith("salvage_hf"):
                # `from . import a` imports the module a, `from .a import b` the module a.
                names = {alias.name: f"{base}.{alias.name}" for alias in node.names}
                found |= {full if full in MODULES or name in FLOOR_OF else base for name, full in names.items()}
    return found


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file):
    own = [*module_of(file).split("."), "__init__"][1]
    for module in imported_modules(file):
        other = [*module.split("."), "__init__"][1]
        if other != own:
            assert FLOOR_OF[other] < FLOOR_OF[own], f"{own} imports {module}"


def test_no_module_imports_itself_through_others():
    imports = {module_of(file): imported_modules(file) - {module_of(file)} for file in LIBRARY}
    state: dict[str, int] = defaultdict(int)  # 1 while its imports are followed, 2 when done

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert state[module] != 1, f"a circle: {' -> '.join((*way, module))}"
        if state[module] == 0:
            state[module] = 1
            for other in imports.get(module, ()):
                follow(other, (*way, module))
            state[module] = 2

    for module in imports:
        follow(module, ())


@pytest.mark.parametrize("folder", ["masking", "attribution_methods"])
def test_facts_about_families_of_models_stand_in_one_place(folder):
    for file in (ROOT / "salvage_hf" / folder).glob("*.py"):
        assert "hasattr(" not in file.read_text(), f"{file.name} tests for attributes: ask vision_families"


def test_what_travels_to_the_hub_needs_what_transformers_needs_only():
    for file in (ROOT / "modeling").glob("*_salvage.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= {"torch", "copy", "functools", "numpy"}
            elif isinstance(node, ast.ImportFrom):
                known = {"torch", "transformers", "numpy", "PIL", "dataclasses", "collections", "typing"}
                assert node.level or node.module.split(".")[0] in known


# The map from the paper to the code, in CONTRIBUTING.md

ROW = re.compile(r"^\| (?P<what>[^|]+) \| `(?P<file>[^`|]+)` \| (?P<names>[^|]+) \|")
MAP = (ROOT / "CONTRIBUTING.md").read_text().partition("## From the paper to the code")[2].partition("\n## ")[0]
ROWS = [match for line in MAP.splitlines() if (match := ROW.match(line))]


def names_in(file: Path) -> set[str]:
    """Functions, classes, methods (as Class.method) and constants of a file, and the methods it registers."""
    tree, names = ast.parse(file.read_text()), set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            names |= {
                f"{node.name}.{part.name}"
                for part in ast.walk(node)
                if isinstance(node, ast.ClassDef) and isinstance(part, ast.FunctionDef)
            }
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["what"].strip())
def test_the_map_of_the_paper_leads_to_code_that_exists(row):
    file = ROOT / row["file"]
    assert file.is_file()
    names = re.findall(r"`([^`]+)`", row["names"])
    assert names
    assert set(names) <= names_in(file)


def test_the_map_of_the_paper_is_whole():
    from salvage_hf.attribution_methods import REGISTRY

    mapped = " ".join(row["what"] for row in ROWS)
    wanted = [f"Eq. {number}" for number in range(1, 9)] + [f"Algorithm {number}" for number in range(1, 4)]
    wanted += [f"Section {number}" for number in ("4.3", "5.1", "5.4", "5.5")]
    wanted += [f"Table {number}" for number in range(1, 5)] + [f"Figure {number}" for number in range(1, 10)]
    wanted += [info.title for info in REGISTRY.values()]
    assert [what for what in wanted if not re.search(rf"\b{re.escape(what)}(?!\w)", mapped)] == []


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(ROOT)))
def test_assertions_only_narrow_types(file):
    """`python -O` leaves assertions out, so what a user hands over is checked by `raise`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Assert):
            assert re.fullmatch(r"isinstance\(.+\)|[\w.]+ is not None", ast.unparse(node.test)), f"line {node.lineno}"
