"""`salvage push`, `card` and `push-metrics`: what arrives is whole, works for a stranger, and holds nothing else."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from local_hub import run_on

from salvage_hf.cli import main
from salvage_hf.evaluate_modules.registration import metric_scripts
from salvage_hf.files import fingerprint
from salvage_hf.modeling import SalvageForImageClassification
from salvage_hf.push import PushAppArguments, PushArguments, RecipeCardArguments, stage

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
CODE = {f"{name}_salvage.py" for name in ("configuration", "geometry", "modeling", "pipeline")}


#: Somebody without the library, before and after trusting the code.
STRANGER = """
import sys
sys.modules["salvage_hf"] = None
import numpy as np
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
try:
    pipeline("image-attribution", model="org/salvage-pet", device="cpu")
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise SystemExit("code of others ran unasked")
explain = pipeline("image-attribution", model="org/salvage-pet", trust_remote_code=True, device="cpu")
assert type(explain).__module__.startswith("transformers_modules."), type(explain)
same = AutoModelForImageClassification.from_pretrained("org/salvage-pet", trust_remote_code=True)
again = type(explain)(model=same, image_processor=explain.image_processor, device="cpu")
for pipe in (explain, again):
    answers = pipe([picture, picture], batch_size=2, top_k=2)
    print([(entry["label"], round(entry["score"], 5)) for entry in answers[1]])
    assert answers[0][0]["overlay"].size == (60, 40)
    np.save(f"maps-{pipe is again}", answers[1][0]["map"])
    answers[1][0]["overlay"].save("theirs.png")
"""

#: What somebody with it sees.
WITH_THE_LIBRARY = """
import numpy as np
from PIL import Image
import salvage_hf
from transformers import pipeline
picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
ours = pipeline("image-attribution", model="org/salvage-pet", device="cpu")(picture, top_k=2)
for other in (False, True):
    np.testing.assert_allclose(np.load(f"maps-{other}.npy"), ours[0]["map"], atol=1e-5)
assert np.abs(np.asarray(Image.open("theirs.png"), int) - np.asarray(ours[0]["overlay"], int)).max() <= 1
"""


def benchmark(folder: Path, **weights: str) -> Path:
    """The smallest results.json of models with these weights, by the names that benchmarks give them."""
    scores = {"srg": [0.25, 0.5, None, 0.125], "r_srg": [0.5, 0.25, 0.25, 0.0], "r_srg_stderr": [0.1] * 4}
    explainers = {name: digest for name, digest in weights.items() if name != "classifier"}
    labels = [0, 1, 2, 0]
    results = {
        "methods": {
            name: {**scores, "curves": {}, "forwards": 1.0, "seconds": 0.1, "made_with": {"weights": digest}}
            for name, digest in (explainers or {"salvage": "none"}).items()
        },
        "classification": {
            "labels": labels,
            "content": "c",
            "classifier": {"weights": weights.get("classifier", "c"), "predictions": [0, 1, 1, 0]},
            **{name: {"weights": digest, "predictions": [0, 1, 2, 1]} for name, digest in explainers.items()},
        },
        "settings": {"relative": {"budget": 160, "images": 4}, "rank": {"images": 4}, "masking": "drop", "seed": 0},
        "ids": list("abcd"),
        "targets": labels,
        "examples": [],
        "label_names": ["a", "b", "c"],
        "grid_size": [4, 4],
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def trained(salvage_model, save_processor, tmp_path):
    """A folder as an earlier run left it, with all that must not be uploaded."""
    folder = tmp_path / "run"
    model = salvage_model(explained_classifier={"name": "org/dinov2-pet", "revision": "1234abc", "masking": "drop"})
    model.save_pretrained(folder)
    save_processor(folder)
    recipe = {"model_name_or_path": str(tmp_path / "classifier"), "dataset_name": "pet", "output_dir": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.dump({**recipe, "guidance_exponent": 4.0, "train_dir": None}))
    (folder / "all_results.json").write_text(json.dumps({"eval_srg": 0.5, "step": 7, "chosen": True, "history": []}))
    for name in ("step_5/model.safetensors", "last/model.safetensors", "optimizer.bin", "scheduler.pt", "state.pkl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"secret")
    (folder / "modeling_salvage.py").write_text("# of an earlier version")
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    (classifier / "README.md").write_text("---\nlicense: mit\n---\n")
    report = tmp_path / "report" / "figures"
    report.mkdir(parents=True)
    (report / "figure1.png").write_bytes(b"png")
    return folder, fingerprint(model)


def test_what_arrives_works_for_a_stranger(trained, tmp_path):
    folder, weights = trained
    scored = benchmark(tmp_path / "scored", salvage=weights)
    words = ["push", str(folder), "--repo", "org/salvage-pet", "--private", "--benchmark", f"Pet={scored}"]
    words += ["--report", str(tmp_path / "report")]
    run_on(tmp_path, f"from salvage_hf.cli import main\nassert main({words!r}) == 0")
    run_on(tmp_path, STRANGER, HF_HOME=str(tmp_path / "another_home"))
    run_on(tmp_path, WITH_THE_LIBRARY)
    repository = tmp_path / "hub" / "models" / "org" / "salvage-pet"
    files = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    model = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "figures/figure1.png"}
    assert files - {".gitattributes"} == model | CODE
    for name in CODE:
        assert (repository / name).read_text() == (CARDS.parent / "modeling" / name).read_text()
    for name in ("README.md", "config.json", "preprocessor_config.json"):
        assert str(tmp_path) not in (repository / name).read_text()
    (made,) = map(json.loads, (tmp_path / "hub" / "created.jsonl").read_text().splitlines())
    assert made["private"]
    text = (repository / "README.md").read_text()
    assert "`org/dinov2-pet` at revision `1234abc`" in text
    assert "![figures/figure1.png](figures/figure1.png)" in text


def test_the_model_index_is_what_the_benchmark_measured(trained, tmp_path):
    folder, weights = trained
    folders = [benchmark(tmp_path / name, salvage=weights) for name in ("one", "two")]
    recipe = {"model_name_or_path": "c", "explainers": ["salvage=e"], "methods": ["salvage"], "dataset_name": "pet"}
    (folders[0] / "recipe.yaml").write_text(yaml.dump(recipe))
    args = PushArguments(repo="org/salvage-pet", benchmark=[f"Pet={folders[0]}", f"Mine={folders[1]}"])
    (tmp_path / "made").mkdir()
    stage(folder, args, tmp_path / "made")
    data = ModelCard.load(tmp_path / "made" / "README.md").data
    assert (data.license, data.base_model) == ("mit", "org/dinov2-pet")
    assert data.datasets == ["timm/oxford-iiit-pet"]
    assert data.metrics == ["srg", "r_srg", "accuracy"]
    # A second version, by hand: of SRG one image has none.
    srg = torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64)
    r_srg = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    hits = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    expected = {}
    for name, values in (("srg", srg), ("r_srg", r_srg), ("accuracy", hits)):
        expected[name] = values.mean().item()
        expected[f"{name}_stderr"] = (values.std() / len(values) ** 0.5).item()
    for title, kind in (("Pet", "timm/oxford-iiit-pet"), ("Mine", "imagefolder")):
        found = [result for result in data.eval_results if result.dataset_name == title]
        assert {result.metric_type: result.metric_value for result in found} == expected
        assert {result.dataset_type for result in found} == {kind}
        assert {r.metric_type: r.metric_args for r in found}["r_srg"] == {"budget": 160}


def test_the_card_of_the_measured_explainer(tmp_path):
    """The published numbers are those of results.json."""
    results = json.loads((CARDS / "imagenette" / "results.json").read_text())["methods"]["salvage"]
    words = ["card", "--repo", "org/salvage-imagenette", "--recipe", str(CARDS / "imagenette" / "explainer.yaml")]
    words += ["--benchmark", f"ImageNette={CARDS / 'imagenette'}", "--output_dir", str(tmp_path / "card")]
    assert main(words) == 0
    card = ModelCard.load(tmp_path / "card" / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    for name in ("srg", "r_srg", "lif", "mif", "r_lif", "r_mif"):
        values = torch.tensor(results[name], dtype=torch.float64)
        assert found[name] == pytest.approx(values.mean().item(), abs=1e-12)
        assert found[f"{name}_stderr"] == pytest.approx((values.std() / len(values) ** 0.5).item(), abs=1e-12)
    assert f"| SRG | {found['srg']:.3f} ± {found['srg_stderr']:.3f} | 200 |" in card.text
    assert "| --max_train_steps | 2400 |" in card.text


@pytest.mark.parametrize("name", ["pet", "mura", "wbc"])
def test_a_card_without_results_says_so(name, tmp_path):
    recipe = CARDS.parent / "scripts" / "recipes" / name / "explainer.yaml"
    main(["card", "--repo", f"org/salvage-{name}", "--recipe", str(recipe), "--output_dir", str(tmp_path)])
    card = ModelCard.load(tmp_path / "README.md")
    assert "Nothing yet: there is no file of results of this explainer." in card.text
    assert card.data.eval_results is None
    assert "\n\n\n" not in card.text


def test_a_classifier(tiny_classifier, save_processor, tmp_path):
    folder = tmp_path / "classifier"
    classifier = tiny_classifier()
    classifier.save_pretrained(folder)
    save_processor(folder)
    (folder / "all_results.json").write_text(json.dumps({"eval_accuracy": 0.5, "step": 7, "chosen": True}))
    scored = benchmark(tmp_path / "scored", classifier=fingerprint(classifier))
    args = PushArguments(repo="org/dinov2-pet", benchmark=[str(scored)], base_model="facebook/dinov2-small")
    (tmp_path / "made").mkdir()
    stage(folder, args, tmp_path / "made")
    files = {path.name for path in (tmp_path / "made").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    card = ModelCard.load(tmp_path / "made" / "README.md")
    assert card.data.base_model == "facebook/dinov2-small"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["accuracy"] == 0.75
    assert "scored, by `salvage benchmark`" in card.text
    assert "\n\n\n" not in card.text


def test_other_weights_are_refused(trained, tmp_path):
    folder, _ = trained
    for weights, message in (({"salvage": "other"}, "those of other weights"), ({"fastshap": "x"}, "no results of it")):
        scored = benchmark(tmp_path / next(iter(weights)), **weights)
        with pytest.raises(ValueError, match=message):
            stage(folder, PushArguments(repo="org/salvage-pet", benchmark=[str(scored)]), tmp_path / "made")


def test_weights_of_both_classes_can_be_pushed(salvage_model, save_processor, tmp_path):
    salvage_model(model_class=SalvageForImageClassification).save_pretrained(tmp_path / "run")
    save_processor(tmp_path / "run")
    (tmp_path / "made").mkdir()
    stage(tmp_path / "run", PushArguments(repo="org/x"), tmp_path / "made")
    text = (tmp_path / "made" / "README.md").read_text()
    assert "The arguments of its run are not recorded." in text
    assert "image classifier `not recorded`" in text


def test_the_metrics_become_spaces(tmp_path):
    run_on(tmp_path, 'from salvage_hf.cli import main\nassert main(["push-metrics", "org", "--private"]) == 0')
    spaces = tmp_path / "hub" / "spaces" / "org"
    assert {path.name for path in spaces.iterdir()} == set(metric_scripts())
    for name, script in metric_scripts().items():
        files = {path.name for path in (spaces / name).rglob("*") if path.is_file()} - {".gitattributes"}
        assert files == {f"{name}.py", "README.md", "app.py", "requirements.txt"}
        assert (spaces / name / "app.py").read_text() == script.with_name("app.py").read_text()
    made = [json.loads(line) for line in (tmp_path / "hub" / "created.jsonl").read_text().splitlines()]
    assert {(one["sdk"], one["private"], one["type"]) for one in made} == {("gradio", True, "space")}


def test_the_app_becomes_a_space(tmp_path):
    code = 'from salvage_hf.cli import main\nassert main(["push-app", "org/see", "--model", "org/salvage-pet"]) == 0'
    run_on(tmp_path, code)
    space = tmp_path / "hub" / "spaces" / "org" / "see"
    files = {path.name for path in space.rglob("*") if path.is_file()} - {".gitattributes"}
    assert files == {"README.md", "app.py", "requirements.txt"}
    assert "model='org/salvage-pet', classifier=None" in (space / "app.py").read_text()


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (PushArguments, {"repo": "salvage-pet"}, "repo must be org/name, got 'salvage-pet'"),
        (PushArguments, {}, "repo must be org/name, got ''"),
        (PushArguments, {"repo": "org/x", "report": ""}, "report must not be empty"),
        (PushAppArguments, {}, "model must be a name on the Hub"),
        (PushAppArguments, {"model": "./x"}, "where the Space loads it, got './x'"),
        (RecipeCardArguments, {"repo": "org/x"}, "recipe is needed"),
        (RecipeCardArguments, {"repo": "org/x", "recipe": "a.yaml"}, "output_dir is needed"),
    ],
)
def test_wrong_arguments(kind, given, message):
    with pytest.raises(ValueError, match=message):
        kind(**given)
