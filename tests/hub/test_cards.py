"""The model card of an explainer: what it says, what the Hub reads from it, and that it holds no local path."""

import pytest
from huggingface_hub import EvalResult, ModelCard

from salvage_hf.hub.cards import TEMPLATE, write_explainer_card
from salvage_hf.objectives import OBJECTIVES
from salvage_hf.training.explainer import ExplainerArguments


@pytest.fixture
def write(salvage_model, tmp_path):
    """A factory: writes a card, and returns it as the Hub reads it, and the results that it was made from."""

    def build(objective="salvage", chosen=True, hits="accuracy", model="org/dinov2-pet", **arguments):
        arguments = {"output_dir": str(tmp_path / "runs" / "pets"), **arguments}
        args = ExplainerArguments(objective=objective, model_name_or_path=model, **arguments)
        paired = OBJECTIVES[objective].paired_values
        config = salvage_model(objective=objective, paired_values=paired).config
        scores = {"srg": 0.1 + 0.2, "lif": 2 / 3, "mif": 1 / 3, OBJECTIVES[objective].measure: 1e-05, hits: 1.0}
        results = {f"eval_{name}": value for name, value in scores.items()}
        results |= {"step": 500, "train_loss": 0.5, "learning_rate": 1e-5, "chosen": chosen}
        write_explainer_card(tmp_path, args, config, results, num_train_images=100, num_eval_images=40)
        return ModelCard.load(tmp_path / "README.md"), scores

    return build


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("hits", ["accuracy", "agreement"])
def test_the_hub_reads_the_scores_as_they_were_measured(write, objective, hits):
    card, scores = write(objective, hits=hits, dataset_name="org/pets")
    assert card.data.model_name == "pets"
    assert card.data.eval_results == [
        EvalResult(
            task_type="image-classification",
            dataset_type="org/pets",
            dataset_name="org/pets",
            metric_type=name,
            metric_value=value,
        )
        for name, value in scores.items()
    ]
    assert card.data.base_model == "org/dinov2-pet"
    assert card.data.datasets == ["org/pets"]
    assert write(dataset_name="pet")[0].data.datasets == ["timm/oxford-iiit-pet"]
    for name, value in scores.items():
        assert f"| {name} | {value:.4f} |" in card.text
        assert f"`{name}`" in card.text  # in the text that explains the score


def test_local_images_are_called_so(write, tmp_path):
    local = [{"train_dir": str(tmp_path)}, {"dataset_name": str(tmp_path)}]
    local += [{"dataset_name": "pet", "dataset_dir": str(tmp_path)}]
    for arguments in [*local, {"dataset_name": "org/pets", "validation_dir": str(tmp_path)}]:
        card, _ = write(**arguments)
        assert {result.dataset_type for result in card.data.eval_results} == {"imagefolder"}
        assert {result.dataset_name for result in card.data.eval_results} == {"local images"}


def test_no_local_path_reaches_the_card(write, tmp_path):
    classifier = tmp_path / "models" / "dinov2-pet"
    classifier.mkdir(parents=True)
    folders = ("dataset_name", "train_dir", "validation_dir", "resume_from_checkpoint")
    paths = {name: str(tmp_path / name) for name in folders}
    (tmp_path / "dataset_name").mkdir()
    card, _ = write(model=str(classifier), hub_token="hf_secret", **paths)
    assert str(tmp_path) not in card.content
    assert "hf_secret" not in card.content
    assert "`dinov2-pet`" in card.text
    assert card.data.base_model is None
    for name in ("output_dir", "train_dir", "validation_dir", "resume_from_checkpoint", "hub_token"):
        assert f"--{name}" not in card.text


def test_arguments_that_differ_from_the_defaults_are_listed(write):
    card, _ = write(num_views=4, hub_model_id="org/salvage-pet")
    assert "| --num_views | 4 |\n" in card.text
    assert "| --model_name_or_path | org/dinov2-pet |\n" in card.text
    assert "--weight_decay" not in card.text
    assert 'AutoModel.from_pretrained("org/salvage-pet")' in card.text
    assert card.text.lstrip().startswith("# salvage-pet\n")


@pytest.mark.parametrize(
    ("changes", "power"),
    [
        ({}, "4"),
        ({"guidance_exponent": 1.0}, None),
        ({"guidance_exponent": 2.5}, "2.5"),
        ({"sampling": "uniform"}, None),
        ({"objective": "vit_shapley"}, None),
        ({"objective": "fastshap", "sampling": "guided"}, None),
    ],
)
def test_the_card_says_where_the_draws_differ_from_the_papers(write, changes, power):
    text = write(**changes)[0].text
    if power:
        assert (
            f"\n\nSubsets were drawn by the weights of the paper's Algorithm 3 to the power of {power}; in the" in text
        )
        assert "power is 1 (`--guidance_exponent 1`).\n\n## Limits" in text
        assert f"| --guidance_exponent | {float(power)} |" in text
    else:
        assert "to the power of" not in text
    for heading in ("How it was trained", "Limits"):
        assert f"\n\n## {heading}\n\n" in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_text_follows_from_the_objective(write, objective):
    entry = OBJECTIVES[objective]
    card, _ = write(objective)
    assert f"A {entry.title} explainer of the image classifier `org/dinov2-pet` ({entry.source})." in card.text
    assert f"the law `{entry.validation_law}`" in card.text
    assert ("phi+ and phi-" in card.text) is entry.paired_values
    assert ("not normalised" in card.text) is entry.normalised


def test_the_card_says_whether_its_images_chose_the_step(write):
    assert "These images chose the checkpoint" in write(chosen=True)[0].text
    assert "which these images did not choose" in write(chosen=False)[0].text


def test_tables_and_paragraphs_are_whole(write):
    for objective in OBJECTIVES:
        text = write(objective)[0].text
        assert "{{" not in text
        assert "{%" not in text
        assert "\n\n\n" not in text
        for line in text.splitlines():
            assert line == line.rstrip()
            assert line.count("|") in (0, 3)
        for heading in ("What was measured", "How it was trained", "Limits", "Citation"):
            assert f"\n\n## {heading}\n\n" in text


def test_the_template_is_there():
    assert TEMPLATE.is_file()
