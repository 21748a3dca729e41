"""What setuptools puts into a wheel, according to setuptools itself, without building one."""

import tomllib
from pathlib import Path

import pytest

setuptools = pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "salvage_hf"
SPACE_FILES = ("app.py", "README.md", "requirements.txt")


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
    assert files == {
        path.resolve()
        for folder in (PACKAGE, *links)
        for path in folder.rglob("*.py")
        if path.parent.parent != ROOT / "metrics"
    }


def test_data_of_the_wheel(build):
    """The library's files that are not code, the metrics' folders, and of the model cards only the template."""
    data = {str(Path(*package.split("."), name)) for package, _, _, names in build.data_files for name in names}
    own = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    metrics = [folder.name for folder in (ROOT / "metrics").iterdir() if (folder / "README.md").exists()]
    assert len(metrics) >= 8
    assert data == {
        "salvage_hf/model_cards/template.md",
        *(str(path.relative_to(ROOT)) for path in own),
        *(f"salvage_hf/metrics/{name}/{file}" for name in metrics for file in (f"{name}.py", *SPACE_FILES)),
    }


def test_the_version_is_read_from_the_package(build):
    import salvage_hf

    assert build.distribution.get_version() == salvage_hf.__version__
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_links_lead_to_the_folders_at_the_top():
    for name in ("modeling", "metrics", "model_cards"):
        assert (PACKAGE / name).resolve() == ROOT / name
