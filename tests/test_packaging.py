"""What a wheel and a source distribution hold, and what installing one brings. `make package` tries it out."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TOOLS = {"dev", "docs"}  # extras of developers, which the library does not import
PACKAGE = ROOT / "salvage_hf"
SPACE_FILES = ("app.py", "README.md", "requirements.txt")
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*/*.yaml"))


@pytest.fixture
def build(monkeypatch):
    """The `build_py` command of this project, as its pyproject.toml configures it."""
    monkeypatch.chdir(ROOT)
    distribution = setuptools.Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    distribution.set_defaults()
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    return command


def test_every_folder_with_code_is_a_package(build):
    """This includes links. The folders of the metrics are data, because each goes to a Space as it is."""
    folders = [PACKAGE, *(folder for folder in PACKAGE.rglob("*") if folder.is_dir())]
    folders += [PACKAGE / "modeling", PACKAGE / "metrics"]  # rglob does not enter links
    with_code = {".".join(f.relative_to(ROOT).parts) for f in folders if any(f.glob("*.py"))}
    assert set(build.packages) == with_code


def test_every_module_is_in_the_wheel(build):
    files = {Path(file).resolve() for _, _, file in build.find_all_modules()}
    links = ROOT / "modeling", ROOT / "metrics"
    found = {path.resolve() for folder in (PACKAGE, *links) for path in folder.rglob("*.py")}
    metrics = {path for path in found if path.parent.parent == ROOT / "metrics"}
    assert files == found - metrics


def test_data_of_the_wheel(build):
    """The library's files that are not code, the metrics' folders, recipes, and of the model cards the templates."""
    data = {str(Path(*package.split("."), name)) for package, _, _, names in build.data_files for name in names}
    own = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    metrics = [folder.name for folder in (ROOT / "metrics").iterdir() if (folder / "README.md").exists()]
    assert len(metrics) >= 8
    assert data == {
        *(f"salvage_hf/paper_recipes/{path.parent.name}/{path.name}" for path in RECIPES),
        *(f"salvage_hf/model_cards/{path.name}" for path in (ROOT / "model_cards").glob("*template.md")),
        *(str(path.relative_to(ROOT)) for path in own),
        *(f"salvage_hf/metrics/{name}/{file}" for name in metrics for file in (f"{name}.py", *SPACE_FILES)),
    }


def test_the_version_is_read_from_the_package(build):
    import salvage_hf

    assert build.distribution.get_version() == salvage_hf.__version__
    assert "version" not in PROJECT


def test_links_lead_to_the_folders_at_the_top():
    for name in ("modeling", "metrics", "model_cards"):
        assert (PACKAGE / name).resolve() == ROOT / name
    assert (PACKAGE / "paper_recipes").resolve() == ROOT / "scripts" / "recipes"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The names in a source distribution and in the wheel that is built from it, both without what leads there."""
    folder = tmp_path_factory.mktemp("built")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "outputs", "demo_output", "explanations")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=left_out)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    return names, set(zipfile.ZipFile(wheel).namelist())


def test_what_is_built_holds_what_setuptools_says(build, distributions):
    """Links become files in both. A wheel built from the source distribution lacks nothing of one from a checkout."""
    modules = {f"{package}.{module}".replace(".", "/") + ".py" for package, module, _ in build.find_all_modules()}
    data = {str(Path(*package.split("."), name)) for package, _, _, names in build.data_files for name in names}
    files = {name.removeprefix("/") for name in modules} | data
    source, wheel = distributions
    assert {name for name in wheel if ".dist-info/" not in name} == files
    assert files <= source
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "docs/performance.md"} <= source
    assert not any(name.startswith("tests") for name in source)


def test_the_readme_shows_its_pictures_everywhere():
    """PyPI shows the README without the repository beside it."""
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert shown
    for address in shown:
        path = address.removeprefix("https://raw.githubusercontent.com/org/salvage-hf/main/")
        assert path != address
        assert (ROOT / path).is_file()


def requirements(*groups):
    """{name: requirement} of lists of requirements, without the project's own extras."""
    found = [Requirement(text) for group in groups for text in group]
    return {canonicalize_name(one.name): one for one in found if one.name != PROJECT["name"]}


#: What `salvage doctor` uses where a user has installed it, and otherwise names: it brings OpenCV and scikit-image.
NOT_IN_AN_EXTRA = {"quantus"}


def test_every_import_is_declared():
    """What the library and the metrics import is among the dependencies, or in an extra that users can name.

    A library that another one brings would be missing as soon as that one no longer needs it.
    """
    declared = requirements(PROJECT["dependencies"], *(names for extra, names in EXTRAS.items() if extra not in TOOLS))
    imported = set()
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "modeling").glob("*.py"), *(ROOT / "metrics").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    distributions = packages_distributions()
    imported -= {*sys.stdlib_module_names, "salvage_hf", *NOT_IN_AN_EXTRA}
    assert {canonicalize_name(distributions[name][0]) for name in imported} == set(declared)


def pins(file):
    lines = (ROOT / file).read_text().splitlines()
    return {canonicalize_name(one.name): one for one in map(Requirement, lines[1:])}


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_the_tested_versions_are_pinned(file):
    pinned = pins(file)
    extras = [names for extra, names in EXTRAS.items() if extra != "docs" or file == "constraints.txt"]
    for name, requirement in requirements(PROJECT["dependencies"], *extras).items():
        (pin,) = pinned[name].specifier
        assert pin.operator == "=="
        assert pin.version in requirement.specifier, name


def test_lower_bounds_are_tested():
    """Every bound is the version in constraints-lowest.txt; only torch's is not: its wheel needs 5 GB of libraries."""
    lowest = pins("constraints-lowest.txt")
    users = [names for extra, names in EXTRAS.items() if extra not in TOOLS]
    for name, requirement in requirements(PROJECT["dependencies"], *users).items():
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        if name != "torch":
            assert bound.version in lowest[name].specifier, name
