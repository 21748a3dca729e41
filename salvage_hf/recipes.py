"""Recipes: YAML files of arguments, which commands take by --config and runs write beside their results.

A recipe is a flat mapping of the names of arguments to values. What a run writes holds every argument, also those with
their default values, so that it computes the same with a version of the library that has other defaults.
"""

import difflib
import json
import re
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from accelerate import Accelerator

from .arguments import NOT_IN_RECIPE, names_with
from .files import write_bytes
from .type_checks import check_type
from .version import VERSION

#: The recipe that a run writes into its output folder.
RECIPE = "recipe.yaml"

#: The paper's runs, NAME/STAGE.yaml: a link to scripts/recipes, which a wheel holds as a folder.
PAPER_RECIPES = Path(__file__).with_name("paper_recipes")


class _Loader(yaml.SafeLoader):
    """Reads 3e-5 as a number, as YAML 1.2 does; in YAML 1.1, which PyYAML reads, it is a text."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `_Loader` would read as a number, and writes lists in brackets."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def read_recipe(file: str, kinds: Sequence[type]) -> dict[str, Any]:
    """The arguments that a recipe gives, name -> value, with the types that the command line gives them.

    Args:
        file: its path, or the name of one of the paper's, for example "pet/explainer".
        kinds: the dataclasses of the script's arguments.

    Raises:
        ValueError: where the file cannot be read, is no flat mapping, or a key is no argument, is there twice, or has
            a value of another type; the message names file, key and value.
    """
    hints = {item.name: get_type_hints(kind)[item.name] for kind in kinds for item in fields(kind)}
    given: dict[str, Any] = {}
    for name, value in _pairs(file):
        if name in given:
            raise ValueError(
                f"config {file!r}: {name} is there twice, with {reprlib.repr(given[name])} and {reprlib.repr(value)}"
            )
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"config {file!r}: {name}={reprlib.repr(value)} is no argument of this command{hint}")
        try:
            check_type(value, hints[name], name)
            given[name] = _with_floats(value) if float in _parts(hints[name]) else value
        except (ValueError, OverflowError) as error:
            raise ValueError(f"config {file!r}: {error}") from error
    return given


def _pairs(file: str) -> list[tuple[str, Any]]:
    """Keys and values of a recipe, also keys that are there twice, of which PyYAML's own mapping keeps the last."""
    try:
        named = PAPER_RECIPES / f"{file}.yaml"
        path = named if named.is_file() and not Path(file).is_file() else Path(file)
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            return [(_name(key), loader.construct_object(value, deep=True)) for key, value in node.value]
    except OSError as error:
        raise ValueError(f"config {file!r} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"config {file!r} is no YAML of arguments: {error.problem}{where}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no date, as 2026-02-30
        raise ValueError(f"config {file!r} is no YAML of arguments: {' '.join(str(error).split())}") from error
    held = "is empty" if node is None else f"holds {reprlib.repr(loader.construct_object(node, deep=True))}"
    raise ValueError(f"config {file!r} {held}; it must hold lines 'argument: value'")


def _name(key: yaml.Node) -> str:
    """A key as it is written, because YAML reads the key `on` as True."""
    if not isinstance(key, yaml.ScalarNode):
        raise yaml.MarkedYAMLError(problem="a key is no word", problem_mark=key.start_mark)
    return str(key.value)


def _parts(hint: Any) -> set[Any]:
    """A type hint, and the hints that it is made of."""
    return {hint}.union(*map(_parts, get_args(hint)))


def _with_floats(value: Any) -> Any:
    """A number, the numbers of a list, or None, of the type that the command line gives it: 1 becomes 1.0."""
    if isinstance(value, list):
        return [float(number) for number in value]
    return None if value is None else float(value)


def write_recipe(folder: Path, command: str, *arguments: Any, accelerator: Accelerator | None = None) -> None:
    """Writes recipe.yaml with all arguments of a run, by its main process; --config takes it.

    To be called before the work begins, so that a run that is killed has it too, and after all that may refuse the run,
    so that an earlier recipe stays beside the results of its own run.

    Args:
        folder: the output folder.
        command: the command of `salvage` that runs the recipe, for its first line.
        arguments: the dataclasses of the run's arguments. Those marked `NOT_IN_RECIPE` are left out.
        accelerator: of the run; processes and precision are no arguments, and stand in the first line.
    """
    if accelerator is not None and not accelerator.is_main_process:
        return
    launch = "salvage"
    if accelerator is not None:
        launch = (
            f"accelerate launch --num_processes {accelerator.num_processes} "
            f"--mixed_precision {accelerator.mixed_precision} -m salvage_hf"
        )
    head = f"# {launch} {command} --config {RECIPE}\n# Every argument of a run with salvage_hf {VERSION}.\n"
    values: dict[str, Any] = {}
    for given in arguments:
        left_out = names_with(given, NOT_IN_RECIPE)
        values |= {name: value for name, value in asdict(given).items() if name not in left_out}
    # By JSON: it turns subclasses of numbers and texts, as numpy.float64 and enumerations are, into plain ones.
    plain = json.loads(json.dumps(values))
    text = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    write_bytes(folder / RECIPE, (head + text).encode())


@dataclass(frozen=True)
class WrittenRecipe:
    """What `write_recipe` has left in a folder.

    Args:
        file: the file.
        command: what runs the recipe again in its folder, the file's first line.
        arguments: name -> value of every argument.
    """

    file: Path
    command: str
    arguments: dict[str, Any]


def written_recipe(folder: Path) -> WrittenRecipe | None:
    """The recipe that a run has written into its folder, None without one.

    Raises:
        ValueError: where the file cannot be read, or is no flat mapping.
    """
    file = folder / RECIPE
    if not file.is_file():
        return None
    arguments = dict(_pairs(str(file)))
    command = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
    return WrittenRecipe(file, command, arguments)
