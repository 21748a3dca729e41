"""Recipes: what --config reads, what runs write, and those of scripts/recipes/."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from salvage_hf.arguments import NOT_IN_RECIPE, names_with
from salvage_hf.cli import parse_arguments
from salvage_hf.evaluation.ablation import AblationArguments
from salvage_hf.evaluation.arguments import BenchmarkArguments
from salvage_hf.evaluation.budget_curve import BudgetCurveArguments
from salvage_hf.evaluation.exact import ExactArguments
from salvage_hf.evaluation.explain_dataset import ExplainDatasetArguments
from salvage_hf.evaluation.report import ReportArguments
from salvage_hf.recipes import RECIPE, read_recipe, write_recipe
from salvage_hf.training.classifier import ClassifierArguments
from salvage_hf.training.explainer import ExplainerArguments
from salvage_hf.version import VERSION

RECIPES = Path(__file__).resolve().parents[1] / "scripts" / "recipes"
BENCHMARK = {"model_name_or_path": "m", "validation_dir": "d", "methods": ["random"]}


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """A function: a recipe's text and further words -> the arguments of a script."""

    def build(text, *words, kinds=(ExplainerArguments,)):
        (tmp_path / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setattr(sys, "argv", ["script.py", "--config", str(tmp_path / "a.yaml"), *words])
        return parse_arguments(*kinds, description=None)

    return build


def on_the_command_line(words, monkeypatch, kinds=(ExplainerArguments,)):
    monkeypatch.setattr(sys, "argv", ["script.py", *words.split()])
    return parse_arguments(*kinds, description=None)


def same(one, other):
    """Whether arguments are equal, and their values of the same types."""
    return one == other and list(map(repr, one)) == list(map(repr, other))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("learning_rate: 3e-5", "--learning_rate 3e-5"),
        ("learning_rate: 3E+5", "--learning_rate 3E+5"),
        ("learning_rate: .5e-3", "--learning_rate .5e-3"),
        ("learning_rate: 1.0e-5", "--learning_rate 1.0e-5"),
        ("learning_rate: 1", "--learning_rate 1"),
        ("learning_rate: null", ""),
        ("max_train_samples:", ""),
        ("weight_decay: -1e-5", "--weight_decay=-1e-5"),
        ("new_subsets: 8", "--new_subsets 8"),
        ("freeze_backbone: true", "--freeze_backbone"),
        ("freeze_backbone: no", "--freeze_backbone false"),
        ("checkpointing_steps: epoch", "--checkpointing_steps epoch"),
        ("checkpointing_steps: 7", "--checkpointing_steps 7"),
        ("pixel_range: [0, 4095]", "--pixel_range 0 4095"),
        ("pixel_range:\n  - 1e-3\n  - 1", "--pixel_range 1e-3 1"),
        ("sampling: uniform", "--sampling uniform"),
        ("output_dir: '1e-5'", "--output_dir 1e-5"),
        ("output_dir: été/日本", "--output_dir été/日本"),
        ("seed: &s 3  # a comment\nnum_views: *s", "--seed 3 --num_views 3"),
    ],
)
def test_a_recipe_says_what_the_command_line_says(parse, monkeypatch, lines, words):
    read = parse(f"model_name_or_path: m\n{lines}\n")
    assert same(read, on_the_command_line(f"--model_name_or_path m {words}", monkeypatch))


@pytest.mark.parametrize(
    ("lines", "words", "name", "value"),
    [
        ("seed: 3", "--seed 4", "seed", 4),
        ("learning_rate: 3e-5", "--learning_rate 1", "learning_rate", 1.0),
        ("mask_patches: true", "--mask_patches false", "mask_patches", False),
        ("mask_patches: false", "--mask_patches", "mask_patches", True),
        ("pixel_range: [0, 1]", "--pixel_range 0 4095", "pixel_range", [0.0, 4095.0]),
        ("image_size: 224", "--image-size=112", "image_size", 112),
        ("output_dir: here", "--output_dir there", "output_dir", "there"),
    ],
)
def test_the_command_line_wins(parse, lines, words, name, value):
    text = f"model_name_or_path: m\n{lines}"
    (args,) = parse(text, *words.split(), kinds=(ClassifierArguments,))
    assert getattr(args, name) == value
    (before,) = parse(text, kinds=(ClassifierArguments,))
    assert getattr(before, name) != value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml' is empty; it must hold lines 'argument: value'"),
        ("# a comment\n", "a.yaml' is empty"),
        ("seed", "a.yaml' holds 'seed'; it must hold lines"),
        ("- seed: 3", "a.yaml' holds [{'seed': 3}]; it must hold lines"),
        ("seed: 3\n---\nseed: 4", "a.yaml' is no YAML of arguments: but found another document in line 2"),
        ("seed: 3\nnum_views: [1", "a.yaml' is no YAML of arguments: .* in line 2"),
        ("seed: 3\n\tnum_views: 1", "a.yaml' is no YAML of arguments: .* in line 2"),
        (b"seed: \xff", "a.yaml' is no YAML of arguments: 'utf-8' codec can't decode"),
        (b"seed: \x00", "a.yaml' is no YAML of arguments: unacceptable character"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("seed: 2026-02-30", "a.yaml' is no YAML of arguments: day"),
        ("seed: " + "[" * 500, "a.yaml' is no YAML of arguments"),
        ("pixel_range: &a [*a]", "a.yaml' is no YAML of arguments: found unconstructable recursive node in line 1"),
        ("<<: {seed: 3}", "a.yaml': <<={'seed': 3} is no argument of this command"),
        ("? [seed]\n: 3", "a.yaml' is no YAML of arguments: a key is no word in line 1"),
        ("seed: 3\nnum_views: 2\nseed: 4", "a.yaml': seed is there twice, with 3 and 4"),
        ("wings: 2", "a.yaml': wings=2 is no argument of this command"),
        ("on: 2", "a.yaml': on=2 is no argument of this command"),
        ("learning-rate: 3e-5", "learning-rate=3e-05 is no argument of this command; did you mean learning_rate?"),
        ("mask_patches: true", "mask_patches=True is no argument of this command"),  # of another script
        ("config: b.yaml", "config='b.yaml' is no argument of this command"),
        ("learning_rate: fast", "a.yaml': learning_rate must be of type float, got 'fast'"),
        ("learning_rate: '3e-5'", "a.yaml': learning_rate must be of type float, got '3e-5'"),
        ("learning_rate: .nan", "a.yaml': learning_rate must be of type float, got nan"),
        ("learning_rate: [1e-5]", "a.yaml': learning_rate must be of type float, got [1e-05]"),
        ("learning_rate: 1" + "0" * 400, "a.yaml': int too large to convert to float"),
        ("weight_decay: null", "a.yaml': weight_decay must be of type float, got None"),
        ("new_subsets: 8.0", "a.yaml': new_subsets must be of type int, got 8.0"),
        ("new_subsets: 1e1", "a.yaml': new_subsets must be of type int, got 10.0"),
        ("new_subsets: '8'", "a.yaml': new_subsets must be of type int, got '8'"),
        ("new_subsets: true", "a.yaml': new_subsets must be of type int, got True"),
        ("new_subsets: null", "a.yaml': new_subsets must be of type int, got None"),
        ("freeze_backbone: 1", "a.yaml': freeze_backbone must be of type bool, got 1"),
        ("freeze_backbone: 'true'", "a.yaml': freeze_backbone must be of type bool, got 'true'"),
        ("output_dir: 2026-11-26", "a.yaml': output_dir must be of type str, got datetime.date(2026, 11, 26)"),
        ("output_dir: 1e-5", "a.yaml': output_dir must be of type str, got 1e-05"),
        ("pixel_range: 4095", "a.yaml': pixel_range must be of type list[float], got 4095"),
        ("pixel_range: [0, high]", "a.yaml': pixel_range[1] must be of type float, got 'high'"),
        ("seed: {of: 3}", "a.yaml': seed must be of type int, got {'of': 3}"),
        ("masking: [drop]", "masking=['drop'] is not one of drop"),
        ("new_subsets: 0", "new_subsets must be at least 1, got 0 (with the arguments in '.*a.yaml')"),
        ("output_dir: ''", "output_dir must not be empty (with the arguments in '.*a.yaml')"),
        ("sampling: magic", "sampling='magic' is not one of"),
    ],
)
def test_a_wrong_recipe_is_told_in_one_sentence(parse, capsys, text, message):
    with pytest.raises(SystemExit) as end:
        parse(text, "--model_name_or_path", "m")
    assert end.value.code == 2
    written = capsys.readouterr().err
    sentence = written[written.index("error: ") :]
    assert sentence.count("\n") == 1
    assert "a.yaml'" in sentence
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), sentence), sentence


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere.yaml", "No such file or directory"), ("", "Is a directory"), (".", "Is a directory")]
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys, name, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py", f"--config={name}"])
    with pytest.raises(SystemExit):
        parse_arguments(ExplainerArguments, description=None)
    assert f"error: config {name!r} cannot be read: {why}\n" in capsys.readouterr().err


def test_without_a_recipe_no_file_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "script.args").write_text("--seed 3")  # what HfArgumentParser would read by itself
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py"), "--model_name_or_path", "m"])
    assert parse_arguments(ExplainerArguments, description=None)[0].seed == 0
    monkeypatch.setattr(sys, "argv", ["script.py", "--model_name_or_path", "m", "--new_subsets", "0"])
    with pytest.raises(SystemExit):
        parse_arguments(ExplainerArguments, description=None)
    assert capsys.readouterr().err.endswith("error: new_subsets must be at least 1, got 0\n")


def test_the_help_tells_of_recipes(parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse("seed: 3", "--help")
    assert end.value.code == 0
    assert "Paths in it are relative to the working directory" in " ".join(capsys.readouterr().out.split())


# What runs write

COMMANDS_ARGUMENTS = {
    "train": (ExplainerArguments("d", learning_rate=3e-5, pixel_range=[0.0, 1e5], model_name_or_path="m"),),
    "uniform": (ExplainerArguments(sampling="uniform", checkpointing_steps="epoch", model_name_or_path="m"),),
    "train-classifier": (ClassifierArguments(model_name_or_path="m", one_label=True, max_train_samples=3),),
    "benchmark": (BenchmarkArguments(**BENCHMARK, max_rank_samples=0),),
    "budget-curve": (BudgetCurveArguments([16, 40]), BenchmarkArguments(**BENCHMARK)),
    "ablation": (AblationArguments([2, 1], exponents=[]), ExplainerArguments(model_name_or_path="m", seed=3)),
    "exact-values": (ExactArguments(**BENCHMARK, budgets=[0]),),
    "explain-dataset": (ExplainDatasetArguments("d", model_name_or_path="m", method="rise", sampling_budget=9),),
    "report": (ReportArguments(["Pets=a b", "c"]),),
}


@pytest.mark.parametrize("command", COMMANDS_ARGUMENTS)
def test_what_is_written_is_read_as_the_same_arguments(parse, tmp_path, command):
    arguments = COMMANDS_ARGUMENTS[command]
    write_recipe(tmp_path, command, *arguments)
    read = parse((tmp_path / RECIPE).read_bytes(), kinds=tuple(map(type, arguments)))
    assert same(read, arguments)


def test_every_argument_is_written_but_for_secrets_and_where_a_run_goes_on(tmp_path):
    args = ExplainerArguments(model_name_or_path="m", hub_token="hf_secret", resume_from_checkpoint="latest")
    write_recipe(tmp_path, "train", args)
    text = (tmp_path / RECIPE).read_text()
    assert text.startswith("# salvage train --config recipe.yaml\n")
    assert f"salvage_hf {VERSION}" in text
    assert names_with(args, NOT_IN_RECIPE) == {"hub_token", "resume_from_checkpoint"}
    names = {item.name for item in dataclasses.fields(args)}
    assert yaml.safe_load(text).keys() == names - {"hub_token", "resume_from_checkpoint"}
    assert "hf_secret" not in text
    assert "latest" not in text


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1),
    # Names of files that are no UTF-8, as Python holds them, and texts that YAML would read as something else.
    st.binary(min_size=1).map(lambda name: name.decode("utf-8", "surrogateescape")),
    st.sampled_from(["no", "null", "~", "1e-5", "010", "1:30", "2026-11-26", "=", "<<", "a: b", "# a", " a ", "---"]),
    st.from_regex(r"[-+.0-9eE_:]{1,8}", fullmatch=True),
)


@given(text=TEXTS, number=st.floats(allow_nan=False), steps=st.integers(1))
def test_all_texts_and_numbers_survive(tmp_path_factory, text, number, steps):
    folder = tmp_path_factory.mktemp("run")
    args = ExplainerArguments(
        model_name_or_path=text, output_dir=text, weight_decay=number, pixel_range=[number], max_train_steps=steps
    )
    write_recipe(folder, "train", args)
    read = read_recipe(str(folder / RECIPE), (ExplainerArguments,))
    assert same([ExplainerArguments(**read)], [args])


# The recipes of scripts/recipes/

STAGES = {
    "classifier": ClassifierArguments,
    "classifier-masked": ClassifierArguments,
    "explainer": ExplainerArguments,
    "explainer-vit_shapley": ExplainerArguments,
    "benchmark": BenchmarkArguments,
}
DATASETS = ("imagenette", "mura", "pet", "wbc")
BLOOD_CELLS = [stage for stage in STAGES if stage != "explainer-vit_shapley"]  # a small task, none of the paper's


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_papers_recipes_have_names(dataset, stage):
    by_name = read_recipe(f"{dataset}/{stage}", [STAGES[stage]])
    assert by_name == read_recipe(str(RECIPES / dataset / f"{stage}.yaml"), [STAGES[stage]])


def test_a_file_wins_over_a_recipes_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pet" / "explainer").mkdir(parents=True)  # a folder is no recipe
    assert read_recipe("pet/explainer", [ExplainerArguments])["dataset_name"] == "pet"
    (tmp_path / "pet" / "explainer").rmdir()
    (tmp_path / "pet" / "explainer").write_text("seed: 3")
    assert read_recipe("pet/explainer", [ExplainerArguments]) == {"seed": 3}


def test_every_data_set_has_every_stage():
    found = {str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*") if path.is_file()}
    papers = {f"{name}/{stage}.yaml" for name in DATASETS for stage in STAGES}
    assert found == papers | {f"blood_cells/{stage}.yaml" for stage in BLOOD_CELLS}


@pytest.fixture
def recipe(monkeypatch):
    def read(dataset, stage):
        monkeypatch.setattr(sys, "argv", ["script.py", "--config", str(RECIPES / dataset / f"{stage}.yaml")])
        return parse_arguments(STAGES[stage], description=None)[0]

    return read


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_recipes_are_the_papers(recipe, dataset, stage):
    """The numbers of section 5.1."""
    args = recipe(dataset, stage)
    assert args.dataset_name == dataset
    assert args.output_dir == f"outputs/{dataset}/{stage}"
    if stage == "benchmark":
        assert args.n_masks == 128
        assert args.budget is None
        assert len(args.methods) == 12
        return
    assert args.per_device_train_batch_size == 64
    assert args.learning_rate == (1e-4 if stage == "explainer-vit_shapley" else 1e-5)
    assert args.weight_decay == 1e-5
    epochs = {"classifier": 25, "classifier-masked": 50}.get(stage, 100 if dataset == "pet" else 50)
    assert args.num_train_epochs == epochs
    if stage.startswith("classifier"):
        assert args.mask_patches == (stage == "classifier-masked")
        assert args.one_label == (dataset == "mura")
    else:
        assert args.new_subsets == 32
        assert args.objective == ("vit_shapley" if "shapley" in stage else "salvage")
        assert args.guidance_exponent == (None if "shapley" in stage else 4)  # the paper: 1


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_stage_takes_what_an_earlier_one_writes(recipe, dataset):
    classifier, masked, *explainers = (recipe(dataset, stage) for stage in list(STAGES)[:-1])
    benchmark = recipe(dataset, "benchmark")
    assert masked.model_name_or_path == classifier.output_dir
    assert {args.model_name_or_path for args in (*explainers, benchmark)} == {masked.output_dir}
    assert benchmark.explainers == [f"{args.objective}={args.output_dir}" for args in explainers]


def test_blood_cells_go_through_every_stage(recipe):
    classifier, masked, explainer, benchmark = stages = [recipe("blood_cells", stage) for stage in BLOOD_CELLS]
    assert [args.output_dir for args in stages] == [f"outputs/blood_cells/{stage}" for stage in BLOOD_CELLS]
    assert masked.model_name_or_path == classifier.output_dir
    assert {explainer.model_name_or_path, benchmark.model_name_or_path} == {masked.output_dir}
    assert benchmark.explainers == [f"salvage={explainer.output_dir}"]
    assert [(args.one_label, args.mask_patches) for args in (classifier, masked)] == [(True, False), (True, True)]
