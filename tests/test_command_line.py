"""All commands and scripts: where they are named, and that wrong input ends them with a message, never a traceback."""

import runpy
import sys
from pathlib import Path

import pytest

from salvage_hf import cli
from salvage_hf.commands import COMMANDS
from salvage_hf.version import VERSION

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def ends(program, *words, monkeypatch, capsys) -> tuple[int, str]:
    """The exit status of `salvage` or of a script, and what it wrote to standard error without the usage."""
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(SystemExit) as end:
        cli.main() if program == "salvage" else runpy.run_path(str(SCRIPTS / program), run_name="__main__")
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return end.value.code, message.rpartition("usage: ")[2]


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        ("salvage", "fly", "'fly' is not one of demo, explain, "),
        ("salvage", "--fly", "'--fly' is not one of demo, explain, "),
        ("salvage", "exact_values", "did you mean exact-values?"),
        ("salvage", "install-metrics now", "unrecognized arguments: now"),
        ("salvage", "explain", "the following arguments are required: IMAGE"),
        ("salvage", "explain a.png", "model is needed"),
        ("salvage", "explain a.png --modle m", "unknown: --modle m; did you mean --model?"),
        ("salvage", "explain a.png --model m --method gradcm", "; did you mean gradcam?"),
        ("salvage", "card --explainer e", "unknown: --explainer e"),
        ("salvage", "explain a.png --model m --top few", "invalid int value: 'few'"),
        ("salvage", "explain a.png --model m --top 0", "top must be at least 1, got 0"),
        ("salvage", "explain a.png --model m", "'a.png' does not exist"),
        ("salvage", "explain a.png --model m --output=", "output must not be empty"),
        ("salvage", "app", "model is needed: a Salvage explainer or an image classifier"),
        ("salvage", "app --model nowhere", "'nowhere'"),
        ("salvage", "demo --output_dir=", "must not be empty"),
        ("salvage", "demo --seed -1", "seed must be at least 0, got -1"),
        ("salvage", "demo --seed 9999999999", "seed must be at most 4294967295"),
        ("salvage", "demo --seed \u00b2", "invalid int value"),
        ("salvage", "doctor", "explainer is needed"),
        (
            "salvage",
            "doctor --explainer e --max_eval_samples 1 --validation_dir d",
            "max_eval_samples must be at least 2",
        ),
        ("salvage", "demo --output_dir file/demo", "file/demo' is not writable"),
        ("salvage", "push", "the following arguments are required: FOLDER"),
        ("salvage", "push nowhere", "repo must be org/name, got ''"),
        ("salvage", "push nowhere --repo org/x", "folder must be the one of a trained model, got 'nowhere'"),
        (
            "salvage",
            "push . --repo org/x",
            "the config of '.' cannot be loaded: the folder has no config.json, so it holds no model",
        ),
        ("salvage", "explain file --model ./away", "the config of './away' cannot be loaded: there is no such folder"),
        ("salvage", "card --repo org/x --recipe nowhere --output_dir out", "config 'nowhere' cannot be read"),
        ("salvage", "push-metrics a/b", "organisation must be a name on the Hub, got 'a/b'"),
        ("report.py", "", "benchmarks or ablations are needed"),
        ("report.py", "--benchmarks nowhere", "no results.json in 'nowhere'"),
        ("report.py", "--benchmarks =", "'=' is not FOLDER or TITLE=FOLDER"),
        ("report.py", "--benchmarks nowhere --wings 2", "--wings"),
        ("benchmark.py", "", "--model_name_or_path"),
        ("benchmark.py", "--model_name_or_path", "expected one argument"),
        ("benchmark.py", "--model_name_or_path m --validation_dir nowhere --methods magic", "magic"),
        (
            "budget_curve.py",
            "--model_name_or_path m --validation_dir d --methods random --budgets 0",
            "budgets must be",
        ),
        ("exact_values.py", "", "model_name_or_path is needed"),
        (
            "exact_values.py",
            "--model_name_or_path m --validation_dir nowhere --methods random --budgets 8",
            "budgets must be one number or more, 0 or at least 16, each once, got [8]",
        ),
        ("ablation.py", "", "--model_name_or_path"),
        ("explain_dataset.py", "", "--model_name_or_path"),
        (
            "explain_dataset.py",
            "--model_name_or_path m --validation_dir nowhere",
            "give explainer, or a method that needs none, for example method='rise'",
        ),
        (
            "explain_dataset.py",
            "--model_name_or_path nowhere --validation_dir d --method random",
            "the model of 'nowhere' cannot be loaded",
        ),
        ("train.py", "", "--model_name_or_path"),
        ("train.py", "--model_name_or_path m --train_dir nowhere --learning_rate fast", "invalid float value: 'fast'"),
        (
            "train.py",
            "--model_name_or_path m --train_dir nowhere --new_subsets 0",
            "new_subsets must be at least 1, got 0",
        ),
        ("train.py", "--model_name_or_path m --train_dir nowhere --output_dir file/out", "file/out"),
        ("train_classifier.py", "", "--model_name_or_path"),
        ("train_classifier.py", "--model_name_or_path m --train_dir nowhere --output_dir out", "nowhere"),
    ],
)
def test_wrong_input_ends_in_a_message(program, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    Path("file").touch()
    status, written = ends(program, *words.split(), monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2
    assert message in written
    assert written.endswith("\n")


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_every_script_takes_a_recipe(script, tmp_path, monkeypatch, capsys):
    status, written = ends(script, "--config", str(tmp_path / "a.yaml"), monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2
    assert written.endswith("a.yaml' cannot be read: No such file or directory\n")
    (tmp_path / "a.yaml").write_text("output_dir: out\nwings: 2\n")
    status, written = ends(script, "--config", str(tmp_path / "a.yaml"), monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2
    assert written.endswith("a.yaml': wings=2 is no argument of this command\n")


def test_every_script_is_among_the_cases():
    (cases,) = (mark.args[1] for mark in test_wrong_input_ends_in_a_message.pytestmark)
    assert {program for program, *_ in cases} == {"salvage", *(path.name for path in SCRIPTS.glob("*.py"))}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("two\n  lines"), 2, "salvage explain: two lines\n"),
        (OSError(28, "No space left on device", "a.png"), 2, "No space left on device: 'a.png'\n"),
        (KeyboardInterrupt(), 130, "salvage explain: interrupted\n"),
    ],
)
def test_errors_are_one_line_and_a_status(error, status, message, capsys):
    with pytest.raises(SystemExit) as end, cli.one_line_errors("salvage explain"):
        raise error
    assert end.value.code == status
    assert message in capsys.readouterr().err


def test_errors_of_the_program_itself_keep_their_traceback():
    with pytest.raises(ModuleNotFoundError), cli.one_line_errors("salvage explain"):
        raise ModuleNotFoundError("no module named 'timm'", name="timm")
    with pytest.raises(TypeError), cli.one_line_errors("salvage explain"):
        raise TypeError("an error of the program")


def printed(capsys, *words) -> str:
    """What a command line that ends with status 0 prints."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_overview_names_every_command(capsys):
    overview = printed(capsys)
    assert overview == printed(capsys, "--help") == printed(capsys, "-h")
    assert all(f"\n  {name} " in overview for name in COMMANDS)
    assert max(map(len, overview.splitlines())) <= 120
    assert printed(capsys, "--version") == f"salvage {VERSION}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command, capsys):
    text = " ".join(printed(capsys, command, "--help").split())
    assert text.startswith(f"usage: salvage {command} [-h]")
    assert " ".join(getattr(cli, command.replace("-", "_")).__doc__.split())[:100] in text


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_every_script_is_the_command_of_its_name(script, monkeypatch, capsys):
    command = script.removesuffix(".py").replace("_", "-")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    assert capsys.readouterr().out == printed(capsys, command, "--help")


def test_the_package_is_the_program_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "train", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("salvage_hf", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: salvage train ")


def test_without_the_extra_a_line_names_it(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "salvage_hf.app.layout", raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main(["app", "--model", "m"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "salvage app: gradio is missing; pip install 'salvage-hf[app]' installs it\n"
