"""The console command `salvage`, and how all programs of the library answer to wrong input."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from transformers import HfArgumentParser

from .data.pictures import printable
from .evaluate_modules.registration import seed_module_cache
from .recipes import RECIPE, read_recipe

#: Modules that an extra installs -> the extra.
_EXTRAS = {
    "matplotlib": "plots",
    "sklearn": "plots",
    "captum": "baselines",
    "scipy": "baselines",
    "shapiq": "baselines",
    "gradio": "app",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status, or ends the program as `one_line_errors` does."""
    options = _parser().parse_args(arguments)
    with one_line_errors(f"salvage {options.command}"):
        if options.command == "explain":
            from .explain import ExplainArguments, explain_files

            given = {item.name: getattr(options, item.name) for item in fields(ExplainArguments)}
            written, failed = explain_files(options.images, ExplainArguments(**given))
            for path in written:
                print(printable(path))
            for message in failed:
                print(f"skipped {message}", file=sys.stderr)
            return 1 if failed else 0
        if options.command == "app":
            from .app.run import AppArguments, run_app

            run_app(AppArguments(**{item.name: getattr(options, item.name) for item in fields(AppArguments)}))
            return 0
        if options.command == "doctor":
            from .evaluation.doctor import DoctorArguments, doctor_table, exit_status, run_doctor

            given = {item.name: getattr(options, item.name) for item in fields(DoctorArguments)}
            findings = run_doctor(DoctorArguments(**given))
            print(doctor_table(findings))
            return exit_status(findings)
        if options.command == "demo":
            from .demo import run_demo

            run_demo(options.output_dir, options.seed)
        else:
            seed_module_cache()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="salvage", description="Faithful explanations of image classifiers.")
    commands = parser.add_subparsers(dest="command", required=True)

    from .explain import ExplainArguments

    explain = commands.add_parser(
        "explain",
        help="explain images: the maps of the classes that a classifier finds most probable, as pictures or numbers",
        parents=[HfArgumentParser(ExplainArguments, add_help=False)],  # type: ignore[arg-type]
    )
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders")

    from .app.run import AppArguments

    commands.add_parser(
        "app",
        help="open a page on which one drops pictures, looks at their maps and hides patches",
        parents=[HfArgumentParser(AppArguments, add_help=False)],  # type: ignore[arg-type]
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    from .evaluation.doctor import DoctorArguments

    commands.add_parser(
        "doctor",
        help="check a classifier and its explainer on a few labelled images; the status is 1 where something is bad",
        parents=[HfArgumentParser(DoctorArguments, add_help=False)],  # type: ignore[arg-type]
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    demo = commands.add_parser(
        "demo", help="run the whole method on a small data set that it generates; takes a few minutes"
    )
    demo.add_argument("--output_dir", default="demo_output", help="the folder for data, models and the page")
    demo.add_argument("--seed", type=int, default=0, help="the seed of everything random")

    commands.add_parser("install-metrics", help="make evaluate.load find the metrics without importing salvage_hf")
    return parser


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


def parse_arguments(*kinds: Any, description: str | None) -> tuple[Any, ...]:
    """The command line as dataclasses of arguments, over those of the recipe that --config names.

    Wrong values end the program as argparse's own errors do.

    Args:
        kinds: the dataclasses.
        description: what the program does, for its help.
    """
    parser = HfArgumentParser(kinds, description=description)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"A YAML file of these arguments, one of scripts/recipes/ or the {RECIPE} that a run has left in its "
        "output_dir. The command line wins over it. Paths in it are relative to the working directory, as they are "
        "here.",
    )
    config = parser.parse_known_args()[0].config
    if config is not None:
        try:
            parser.set_defaults(**read_recipe(config, kinds))
        except ValueError as error:
            parser.error(str(error))
    try:
        # No file is looked for beside the script: --config is the one way to give arguments in a file.
        return parser.parse_args_into_dataclasses(look_for_args_file=False)[: len(kinds)]
    except ValueError as error:  # a rule of a dataclass is broken, or an argument is unknown
        parser.error(str(error) if config is None else f"{error} (with the arguments in {config!r})")


if __name__ == "__main__":
    sys.exit(main())
