"""Arguments of the training scripts: names, defaults, rules."""

import dataclasses

import pytest
from transformers import HfArgumentParser

from salvage_hf.training.arguments import LoopArguments
from salvage_hf.training.classifier import ClassifierArguments
from salvage_hf.training.explainer import ExplainerArguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1, got 0"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1, got 0"),
        ({"max_train_steps": 0}, "max_train_steps must be at least 1, got 0"),
        ({"num_train_epochs": 0}, "num_train_epochs must be at least 1, got 0"),
        ({"checkpointing_steps": "0"}, "checkpointing_steps must be at least 1, got 0"),
        ({"checkpointing_steps": "often"}, "checkpointing_steps='often' is neither a number of steps nor 'epoch'"),
        ({"train_val_split": 1.0}, "train_val_split must lie between 0 and 1, got 1.0"),
        ({"new_subsets": 0}, "new_subsets must be at least 1, got 0"),
        ({"num_views": 0}, "num_views must be at least 1, got 0"),
        ({"target": "true"}, "target='true' is not one of label, predicted"),
        (
            {"sampling": "kernel"},
            "sampling='kernel' is not one of guided, uniform, shapley_kernel",
        ),
        ({"objective": "kl"}, "objective='kl' is not one of salvage"),
        ({"model_name_or_path": ""}, "model_name_or_path is needed"),
        ({"guidance_exponent": 0.0}, "guidance_exponent must be a finite positive number, got 0.0"),
        ({"guidance_exponent": -2.0}, "guidance_exponent must be a finite positive number, got -2.0"),
        ({"guidance_exponent": float("inf")}, "guidance_exponent must be a finite positive number, got inf"),
        ({"guidance_exponent": float("nan")}, "guidance_exponent must be of type float, got nan"),
        (
            {"guidance_exponent": 4.0, "sampling": "uniform"},
            "guidance_exponent=4 is for guided sampling only, sampling='uniform' reads no attributions: leave it out",
        ),
        (
            {"guidance_exponent": 1.0, "objective": "vit_shapley"},
            "guidance_exponent=1 is for guided sampling only, sampling='shapley_kernel' reads no attributions",
        ),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_impossible_arguments_are_refused_at_once(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)


def test_the_scripts_arguments_are_those_of_transformers_examples():
    example = """dataset_name train_dir validation_dir max_train_samples max_eval_samples train_val_split
    model_name_or_path per_device_train_batch_size per_device_eval_batch_size learning_rate weight_decay
    num_train_epochs max_train_steps gradient_accumulation_steps lr_scheduler_type num_warmup_steps output_dir seed
    push_to_hub hub_model_id private hub_token checkpointing_steps resume_from_checkpoint with_tracking report_to
    image_column_name label_column_name"""
    parser = HfArgumentParser(ExplainerArguments)
    options = {option for action in parser._actions for option in action.option_strings}
    assert {f"--{name}" for name in example.split()} <= options
    assert all(field.metadata["help"] for field in dataclasses.fields(ExplainerArguments))


def test_the_defaults_are_the_papers_recipe_but_for_the_exponent():
    args = HfArgumentParser(ExplainerArguments).parse_args_into_dataclasses(["--model_name_or_path", "x"])[0]
    assert (args.new_subsets, args.per_device_train_batch_size) == (32, 64)
    assert (args.learning_rate, args.weight_decay) == (1e-5, 1e-5)
    assert (args.sampling, args.masking, args.target, args.objective) == ("guided", None, "label", "salvage")
    assert args.freeze_backbone is False
    assert args.guidance_exponent == 4
    words = ["--model_name_or_path", "x", "--guidance_exponent", "1"]
    assert HfArgumentParser(ExplainerArguments).parse_args_into_dataclasses(words)[0].guidance_exponent == 1


@pytest.mark.parametrize("objective", ["vit_shapley", "fastshap"])
def test_shapley_objectives_have_their_own_recipe(objective):
    args = ExplainerArguments(model_name_or_path="x", objective=objective)
    assert (args.sampling, args.learning_rate, args.guidance_exponent) == ("shapley_kernel", 1e-4, None)
    asked = ExplainerArguments(model_name_or_path="x", objective=objective, sampling="guided", learning_rate=1e-3)
    assert (asked.sampling, asked.learning_rate, asked.guidance_exponent) == ("guided", 1e-3, 1)


def test_filled_in_arguments_are_filled_in_once():
    """What is made again from its own fields, as for a smaller batch, is the same."""
    for changes in ({}, {"sampling": "uniform"}, {"guidance_exponent": 2.0}, {"objective": "fastshap"}):
        args = ExplainerArguments(model_name_or_path="x", **changes)
        assert dataclasses.replace(args) == args


@pytest.mark.parametrize(("word", "value"), [("epoch", "epoch"), ("20", 20)])
def test_checkpointing_steps_on_the_command_line(word, value):
    args = HfArgumentParser(LoopArguments).parse_args_into_dataclasses(["--checkpointing_steps", word])[0]
    assert args.checkpointing_steps == value


@pytest.mark.parametrize("kind", [ExplainerArguments, ClassifierArguments])
def test_help_lists_every_argument_with_its_choices(kind):
    text = HfArgumentParser(kind).format_help()
    for field in dataclasses.fields(kind):
        assert f"--{field.name}" in text
    if kind is ExplainerArguments:
        for choices in ("{salvage,vit_shapley,fastshap}", "{drop,mask_token,zero,mean,blur}", "{label,predicted}"):
            assert choices in text
    else:
        assert "vit_shapley" not in text  # the classifier's help does not show an explainer's recipe
