"""The files around the code: what the workflow runs exists, and what names versions names the same ones."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from salvage_hf.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))  # all but config.yml


def runs(job):
    """The commands of a job, one for each value of its matrix."""
    lines = [line for step in job["steps"] if "run" in step for line in step["run"].strip().splitlines()]
    for name, values in job.get("strategy", {}).get("matrix", {}).items():
        place = f"${{{{ matrix.{name} }}}}"
        lines = [line.replace(place, value) for line in lines for value in (values if place in line else [""])]
    return lines


def targets_of(file):
    """The make targets that a workflow runs."""
    jobs = yaml.safe_load(file.read_text())["jobs"]
    return [line.removeprefix("make ") for job in jobs.values() for line in runs(job)]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_runs_make_targets_that_exist(file):
    workflow = yaml.safe_load(file.read_text())
    # YAML 1.1, which PyYAML reads, takes the key `on` for True.
    assert set(workflow[True]) <= {"push", "pull_request", "release", "workflow_dispatch"}
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    found = targets_of(file)
    assert found
    assert set(found) <= TARGETS


def test_workflows_run_what_the_local_check_runs():
    local = re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert set(local) <= TARGETS
    assert set(local) <= {target for file in WORKFLOWS for target in targets_of(file)}


def test_every_make_target_is_phony():
    """A file of a target's name must not make it do nothing."""
    (line,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(line.split()) == TARGETS


def test_the_hooks_of_commits_run_what_check_runs():
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    entries = {hook["entry"] for hook in hooks}
    check = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    for tool in re.findall(r"\$\(BIN\)/(ruff \w+|mypy)", check):
        assert any(entry.startswith(f".venv/bin/{tool}") for entry in entries), tool
    for hook in hooks:
        assert hook["language"] == "system" or all("==" in need for need in hook["additional_dependencies"])


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_issue_forms_have_what_github_asks_for(file):
    form = yaml.safe_load(file.read_text())
    assert {"name", "description", "body"} <= form.keys()
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
    assert len({part["id"] for part in form["body"]}) == len(form["body"])


def test_the_newest_entry_of_the_changelog_is_this_version():
    headings = re.findall(
        r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    versions = [Version(name) for name, _ in headings if name != "Unreleased"]
    assert versions == sorted(versions, reverse=True)
    assert versions[0] == Version(VERSION)
    assert all(date for name, date in headings if name != "Unreleased")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION
