"""The commands of `salvage`, how they read their arguments, and how they answer to wrong input.

A command is the function of its name, and a line of COMMANDS in commands.py. Scripts are the same commands.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from transformers import HfArgumentParser

from .commands import command_of
from .recipes import RECIPE, read_recipe
from .tensors import meant

#: Modules that an extra installs -> the extra.
_EXTRAS = {"captum": "baselines", "scipy": "baselines", "shapiq": "baselines", "gradio": "app"}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line, that of the process where none is given; returns the exit status.

    Raises:
        SystemExit: after the overview, the version or a help; for wrong input, as `one_line_errors` does.
    """
    name, words = command_of(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors(f"salvage {name}"):
        return globals()[name.replace("-", "_")](words) or 0


# The commands. Each imports what it needs by itself, because that takes seconds.


def demo(words: list[str]) -> None:
    """Makes pictures, trains a classifier and its explainer, scores the maps, and writes a page that shows it all."""
    from .demo import run_demo

    parser = _plain_parser("demo", demo.__doc__)
    parser.add_argument("--output_dir", default="demo_output", help="the folder for data, models and the page")
    parser.add_argument("--seed", type=int, default=0, help="the seed of everything random")
    parser.add_argument(
        "--fast", action="store_true", help="a tenth of the training: all parts work, the maps mean nothing"
    )
    options = parser.parse_args(words)
    run_demo(options.output_dir, options.seed, options.fast)


def explain(words: list[str]) -> int:
    """Explains images: the maps of the classes that a classifier finds most probable, as pictures or numbers.

    The status is 1 where an image was skipped.

    salvage explain IMAGE... --model NAME
    """
    from .data.pictures import printable
    from .explain import ExplainArguments, explain_files

    help_of_images = "image files or folders"
    arguments, images = _parse_with("explain", words, ExplainArguments, "images", "IMAGE", help_of_images, nargs="+")
    written, failed = explain_files(images, arguments)
    for path in written:
        print(printable(path))
    for message in failed:
        print(f"skipped {message}", file=sys.stderr)
    return 1 if failed else 0


def train_classifier(words: list[str]) -> None:
    """Fine-tunes a classifier, and draws how it answers to partial images.

    salvage train-classifier --model_name_or_path BACKBONE --train_dir FOLDER [--mask_patches]
    """
    from .evaluation.partial_images import DescribedClassifierTask
    from .training.classifier import ClassifierArguments, train_classifier

    (arguments,) = _parse("train-classifier", words, ClassifierArguments)
    train_classifier(arguments, task=DescribedClassifierTask)


def train(words: list[str]) -> None:
    """Trains a Salvage explainer against a frozen classifier.

    salvage train --model_name_or_path CLASSIFIER --train_dir FOLDER
    """
    from .training.explainer import ExplainerArguments, train_explainer

    train_explainer(*_parse("train", words, ExplainerArguments))


def doctor(words: list[str]) -> int:
    """Checks a classifier and its explainer on a few labelled images; the status is 1 where something is bad.

    salvage doctor --explainer EXPLAINER --classifier CLASSIFIER --validation_dir FOLDER
    """
    from .evaluation.doctor import DoctorArguments, doctor_table, exit_status, run_doctor

    findings = run_doctor(*_parse("doctor", words, DoctorArguments))
    print(doctor_table(findings))
    return exit_status(findings)


def explain_dataset(words: list[str]) -> None:
    """Explains every image of a data set: maps and predictions, as a data set of parquet files.

    salvage explain-dataset --model_name_or_path CLASSIFIER --explainer DIR --validation_dir FOLDER
    """
    from .evaluation.explain_dataset import ExplainDatasetArguments, dataset_table, run_explain_dataset

    (arguments,) = _parse("explain-dataset", words, ExplainDatasetArguments)
    _print_once(dataset_table(run_explain_dataset(arguments), arguments.output_dir))


def benchmark(words: list[str]) -> None:
    """Compares attribution methods.

    salvage benchmark --model_name_or_path CLASSIFIER --explainers salvage=DIR --validation_dir FOLDER
    """
    from .evaluation.arguments import BenchmarkArguments
    from .evaluation.benchmark import run_benchmark
    from .evaluation.tables import results_table

    _print_once(results_table(run_benchmark(*_parse("benchmark", words, BenchmarkArguments))))


def budget_curve(words: list[str]) -> None:
    """Scores of attribution methods over the number of forwards per image: tables, and budget_curve.png.

    salvage budget-curve --model_name_or_path CLASSIFIER --explainers salvage=DIR --validation_dir FOLDER
    --methods salvage salvage_refined rise kernelshap svarm --budget 160
    """
    from .evaluation.arguments import BenchmarkArguments
    from .evaluation.budget_curve import BudgetCurveArguments, budget_table, paired_table, run_budget_curve

    found = run_budget_curve(*_parse("budget-curve", words, BudgetCurveArguments, BenchmarkArguments))
    _print_once(budget_table(found))
    if "salvage_refined" in found["methods"]:
        _print_once(paired_table(found))


def exact_values(words: list[str]) -> None:
    """Compares maps with exact Shapley values, on images of at most 16 patches.

    salvage exact-values --model_name_or_path CLASSIFIER --explainers salvage=DIR --validation_dir FOLDER
    """
    from .evaluation.exact import ExactArguments, exact_values_table, run_exact_values

    print(exact_values_table(run_exact_values(*_parse("exact-values", words, ExactArguments))))


def ablation(words: list[str]) -> None:
    """Trains and scores the arms of the paper's ablations; salvage report draws them.

    salvage ablation --model_name_or_path CLASSIFIER --train_dir FOLDER --validation_dir FOLDER --max_train_steps 500
    --seeds 0 1 2
    """
    from .evaluation.ablation import AblationArguments, ablation_table, run_ablation
    from .training.explainer import ExplainerArguments

    _print_once(ablation_table(run_ablation(*_parse("ablation", words, AblationArguments, ExplainerArguments))))


def report(words: list[str]) -> None:
    """Makes tables, figures and a page from finished benchmarks and ablations, without any model.

    salvage report --benchmarks ImageNette=outputs/benchmark --ablations ImageNette=outputs/ablation
    """
    from .evaluation.report import ReportArguments, write_report

    print(write_report(*_parse("report", words, ReportArguments)))


def app(words: list[str]) -> None:
    """Opens a page on which one drops pictures, looks at their maps and hides patches.

    salvage app --model NAME [--classifier NAME]
    """
    from .app.run import AppArguments, run_app

    run_app(*_parse("app", words, AppArguments))


def push(words: list[str]) -> None:
    """Uploads an explainer or classifier that was trained earlier, with its card.

    salvage push FOLDER --repo org/name [--benchmark FOLDER] [--report FOLDER]
    """
    from .push import PushArguments
    from .push import push as upload

    arguments, folder = _parse_with(
        "push", words, PushArguments, "folder", "FOLDER", "the folder of the model and its image processor"
    )
    print(upload(folder, arguments))


def card(words: list[str]) -> None:
    """Writes the card of an explainer from its recipe and its benchmarks.

    salvage card --recipe FILE --repo org/name --output_dir FOLDER [--benchmark FOLDER]
    """
    from .push import RecipeCardArguments, write_recipe_card

    print(write_recipe_card(*_parse("card", words, RecipeCardArguments)))


def push_app(words: list[str]) -> None:
    """Uploads the app as a Space, which shows a model of the Hub.

    salvage push-app org/NAME --model org/MODEL [--classifier org/CLASSIFIER]
    """
    from .push import PushAppArguments
    from .push import push_app as upload

    arguments, repo = _parse_with("push-app", words, PushAppArguments, "repo", "REPO", "the Space, org/name")
    print(upload(repo, arguments))


def push_metrics(words: list[str]) -> None:
    """Uploads the metrics' Spaces.

    salvage push-metrics ORG
    """
    from .push import PushMetricsArguments
    from .push import push_metrics as upload

    about = "the organisation on the Hub"
    arguments, organisation = _parse_with("push-metrics", words, PushMetricsArguments, "organisation", "ORG", about)
    print("\n".join(upload(organisation, arguments)))


def install_metrics(words: list[str]) -> None:
    """Copies the metrics into the module cache of `evaluate`, which then finds them without this library's import."""
    from .evaluate_modules.registration import seed_module_cache

    _plain_parser("install-metrics", install_metrics.__doc__).parse_args(words)
    seed_module_cache()


# What they share.


def _plain_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command that takes no recipe."""
    return argparse.ArgumentParser(prog=f"salvage {command}", description=description)


def _parse(command: str, words: list[str], *kinds: Any) -> tuple[Any, ...]:
    """The arguments of a command as dataclasses; its help begins with the docstring of its function."""
    description = globals()[command.replace("-", "_")].__doc__
    return parse_arguments(*kinds, description=description, words=words, program=f"salvage {command}")


def _parse_with(
    command: str, words: list[str], kind: Any, name: str, metavar: str, about: str, **options: Any
) -> tuple[Any, Any]:
    """The arguments of a command as a dataclass, and what is given without a name."""
    description = globals()[command.replace("-", "_")].__doc__
    parser = _Parser(kind, prog=f"salvage {command}", description=description)
    parser.add_argument(name, metavar=metavar, help=about, **options)
    _refuse_unknown(parser, words)
    arguments, others = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    return arguments, getattr(others, name)


class _Parser(HfArgumentParser):
    """A parser that guesses what a misspelt choice was meant to be."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += meant(str(value), map(str, action.choices or ()))
            raise


def _refuse_unknown(parser: argparse.ArgumentParser, words: list[str] | None) -> argparse.Namespace:
    """What the parser makes of a command line; ends the program where it does not know one of its words."""
    known, unknown = parser.parse_known_args(words)
    if unknown:
        names = [option for action in parser._actions for option in action.option_strings]
        parser.error(f"unknown: {' '.join(unknown)}{meant(unknown[0].partition('=')[0], names)}")
    return known


def _print_once(text: str) -> None:
    """Prints in the main process."""
    if PartialState().is_main_process:
        print(text)


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Ends the program, with a line in place of a traceback: status 2 for wrong input, 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        extra = f"salvage-hf[{_EXTRAS[error.name]}]"
        print(f"{program}: {error.name} is missing; pip install '{extra}' installs it", file=sys.stderr)
        raise SystemExit(2) from error
    except (ValueError, OSError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error


def parse_arguments(
    *kinds: Any, description: str | None, words: list[str] | None = None, program: str | None = None
) -> tuple[Any, ...]:
    """The command line as dataclasses of arguments, over those of the recipe that --config names.

    Wrong values end the program as argparse's own errors do.

    Args:
        kinds: the dataclasses.
        description: what the program does, for its help.
        words: the command line; that of the process where it is None.
        program: how the command line begins, for its help; the name of the script where it is None.
    """
    parser = _Parser(kinds, description=description, prog=program)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"A YAML file of these arguments: the {RECIPE} that a run has left in its output_dir, or one of the "
        "paper's by its name, for example pet/explainer. The command line wins over it. Paths in it are relative to "
        "the working directory, as they are here.",
    )
    config = _refuse_unknown(parser, words).config
    if config is not None:
        try:
            parser.set_defaults(**read_recipe(config, kinds))
        except ValueError as error:
            parser.error(str(error))
    try:
        # No file is looked for beside the script: --config is the one way to give arguments in a file.
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)[: len(kinds)]
    except ValueError as error:  # a rule of a dataclass is broken
        parser.error(str(error) if config is None else f"{error} (with the arguments in {config!r})")
