"""Wrong arguments of the scripts that compare methods: one sentence that names the argument."""

import dataclasses
from typing import get_type_hints

import pytest

from salvage_hf.evaluation.ablation import AblationArguments
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.exact import ExactArguments
from salvage_hf.evaluation.report import ReportArguments

#: Arguments -> what they need to be right.
NEEDED = {
    BenchmarkArguments: {"model_name_or_path": "any", "validation_dir": "any", "methods": ["random"]},
    ExactArguments: {"model_name_or_path": "any", "validation_dir": "any", "methods": ["random"]},
    AblationArguments: {},
    ReportArguments: {"benchmarks": ["any"]},
}
VALUES = (None, True, -1, 0, 1.5, float("nan"), "", "word", b"word", [], ["word"], [1], [None], (1,), {}, object())


def is_of(value, hint) -> bool:
    """Whether a value is of the type of an argument, by a second, simpler way than the library's."""
    text = str(hint).replace("<class '", "").replace("'>", "")
    names = {bool: ["bool"], int: ["int", "float"], float: ["float"], str: ["str"]}
    if value is None:
        return "None" in text or "Optional" in text
    if isinstance(value, list):
        kinds = [[f"list[{name}]" for name in names.get(type(item), [])] for item in value]
        return "list[" in text and all(any(kind in text for kind in of_item) for of_item in kinds)
    if "list[" in text or type(value) not in names or value != value:
        return False
    return repr(value) in text if "Literal" in text else any(name in text for name in names[type(value)])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(arguments, field.name) for arguments in NEEDED for field in dataclasses.fields(arguments)],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_values_of_another_type_are_refused(arguments, name):
    hint = get_type_hints(arguments)[name]
    for value in VALUES:
        if is_of(value, hint):
            continue  # it may be right, or wrong by another rule
        message = rf"^{name}(\[0\])? must be of type |^{name}=.* is not one of |^{name} must not be empty"
        with pytest.raises(ValueError, match=message) as refused:
            arguments(**{**NEEDED[arguments], name: value})
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (AblationArguments, {"seeds": []}, r"seeds must be one whole number or more from 0 on, each once, got \[\]"),
        (AblationArguments, {"seeds": [1, 1]}, r"seeds must be .* each once, got \[1, 1\]"),
        (AblationArguments, {"seeds": [-1]}, r"seeds must be .* from 0 on, each once, got \[-1\]"),
        (AblationArguments, {"exponents": [2.0, 0.0]}, r"exponents\[1\] must be a finite positive number, got 0.0"),
        (AblationArguments, {"exponents": [float("inf")]}, r"exponents\[0\] must be a finite positive number, got inf"),
        (AblationArguments, {"exponents": [2.0, 2]}, r"exponents must be other than 1, .* each once, got \[2.0, 2\]"),
        (AblationArguments, {"exponents": [1, 4.0]}, r"exponents must be other than 1, the paper's, .* got \[1, 4.0\]"),
        (AblationArguments, {"vit_shapley_learning_rate": 0.0}, "vit_shapley_learning_rate must be positive, got 0.0"),
        (ReportArguments, {"output_dir": ""}, "output_dir must not be empty"),
        (ReportArguments, {"benchmarks": [], "ablations": []}, "benchmarks or ablations are needed"),
        (BenchmarkArguments, {"output_dir": ""}, "output_dir must not be empty"),
        (BenchmarkArguments, {"mask_dir": ""}, "mask_dir must not be empty"),
        (
            BenchmarkArguments,
            {"mask_dir": "a", "mask_column_name": "b"},
            "give either mask_dir or mask_column_name, got 'a' and 'b'",
        ),
        (
            BenchmarkArguments,
            {"max_rank_samples": 0, "max_relative_samples": 0},
            "nothing is scored: .* and no mask_dir or mask_column_name",
        ),
        (
            BenchmarkArguments,
            {"dataset_name": "both"},
            "give either dataset_name or validation_dir, got 'both' and 'any'",
        ),
    ],
)
def test_rules(arguments, given, message):
    with pytest.raises(ValueError, match=message):
        arguments(**{**NEEDED[arguments], **given})
