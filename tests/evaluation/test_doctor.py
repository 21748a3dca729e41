"""`salvage doctor`: every planted fault is found, by the check that is meant for it; a good pair is called good."""

import copy
import importlib.machinery
import itertools
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salvage_hf import MaskedClassifier, SalvageModel, cli
from salvage_hf.evaluation import doctor, doctor_checks, doctor_randomisation
from salvage_hf.evaluation.doctor_checks import BAD, DOUBTFUL, GOOD, NOT_CHECKED, Answers, Limits
from salvage_hf.masking import provenance

NAMES = [f"kind {index}" for index in range(5)]


def made_up(num_images=64, seed=0) -> Answers:
    """What a calibrated classifier and its explainer say: the more patches, the more evidence for the true class.

    Evidence x_k of normal noise with variance s and mean 6 s for the true class makes 6 x_k its exact logits.
    """
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.0, *(share for share in doctor.SHARES for _ in range(doctor.DRAWS)), 1.0]).double()
    labels = torch.arange(num_images) % 5
    noise = torch.randn(num_images, len(shares), 5, generator=generator)
    evidence = shares[:, None].sqrt() * noise + 6 * shares[:, None] * torch.eye(5)[labels][:, None]
    logits = (6 * evidence).float()
    return Answers(shares, logits, logits + 0.1 * torch.randn(logits.shape, generator=generator), labels)


def changed(answers: Answers, **changes) -> Answers:
    return Answers(**{**vars(answers), **changes})


def examined(answers: Answers) -> dict[str, doctor_checks.Finding]:
    """The findings about answers, by the last words of their names."""
    findings = [
        doctor_checks.check_labels(answers),
        doctor_checks.check_quarter(answers),
        doctor_checks.check_calibration(answers),
        *doctor_checks.check_divergences(answers),
        doctor_checks.check_agreement(answers),
        doctor_checks.check_bias(answers, NAMES),
    ]
    names = ("labels", "quarter", "calibration", "full", "empty", "partial", "agreement", "bias")
    return dict(zip(names, findings, strict=True))


def verdicts(answers: Answers) -> dict[str, str]:
    return {name: found.verdict for name, found in examined(answers).items()}


def test_good_answers_are_good():
    assert set(verdicts(made_up()).values()) == {GOOD}
    assert {found.advice for found in examined(made_up()).values()} == {"Nothing to do."}


def test_a_classifier_that_never_saw_partial_images_is_found():
    answers = made_up()
    logits = answers.classifier.clone()
    logits[:, :-1] = 8.0 * torch.eye(5)[3]  # without the whole image it is sure of one class
    # Its explainer has learnt that, so that only the checks of the classifier can tell.
    found = verdicts(changed(answers, classifier=logits, explainer=logits))
    assert found["quarter"] == found["calibration"] == BAD
    assert all(found[name] == GOOD for name in ("labels", "full", "empty", "partial", "agreement", "bias"))


def test_an_explainer_of_another_classifier_is_found():
    answers = made_up()
    found = verdicts(changed(answers, explainer=made_up(seed=1).explainer))
    assert found["partial"] == BAD
    assert found["quarter"] == found["calibration"] == found["labels"] == GOOD  # the classifier is not at fault


@pytest.mark.parametrize("shift", [1, -1])
def test_shifted_labels_of_the_images_are_found(shift):
    answers = made_up()
    found = examined(changed(answers, labels=(answers.labels + shift) % 5))
    assert found["labels"].verdict == BAD
    assert "The labels of the images and the classifier's predictions differ by 1:" in found["labels"].advice
    assert all(found[name].verdict == GOOD for name in ("quarter", "full", "empty", "partial", "agreement", "bias"))


def test_shifted_classes_of_the_explainer_are_found():
    answers = made_up()
    found = examined(changed(answers, explainer=answers.explainer.roll(1, dims=-1)))
    assert found["full"].verdict == found["partial"].verdict == found["agreement"].verdict == BAD
    assert "The explainer's classes and the classifier's differ by 1:" in found["agreement"].advice


def test_an_untrained_explainer_is_found():
    answers = made_up()
    found = examined(changed(answers, explainer=torch.zeros_like(answers.explainer)))
    assert found["full"].verdict == found["partial"].verdict == found["agreement"].verdict == BAD
    assert "not trained" in found["full"].advice
    assert "differ by" not in found["agreement"].advice


def test_a_class_that_the_explainer_prefers_is_named():
    answers = made_up()
    found = examined(changed(answers, explainer=answers.explainer + 8 * torch.eye(5)[2]))["bias"]
    assert found.verdict == BAD
    assert "'kind 2' more probable" in found.advice


def test_maps_that_are_no_better_than_random_ones_are_found():
    generator = torch.Generator().manual_seed(0)
    random, noise = 0.1 * torch.randn(2, 16, generator=generator).double()
    good = {"explainer": 0.6 + noise, "last_attention": 0.3 + noise / 2, "random": random}
    assert [found.verdict for found in doctor_checks.check_maps(good)] == [GOOD, GOOD]
    untrained = {**good, "explainer": random.roll(1)}
    assert [found.verdict for found in doctor_checks.check_maps(untrained)] == [BAD, BAD]


# The numbers, a second time


@pytest.mark.parametrize("limits", [Limits(0.1, 0.3), Limits(0.7, 0.4), Limits(0.0, 0.0), Limits(0.0, -0.05)])
def test_verdicts_take_two_errors_into_account(limits):
    good, bad = limits
    for value, stderr in itertools.product(np.linspace(-1, 1, 81), (0.0, 0.03, 0.2, math.nan)):
        ends = [value - 2 * stderr, value + 2 * stderr]
        if good > bad:
            expected = GOOD if min(ends) >= good else BAD if max(ends) < bad else DOUBTFUL
        else:
            expected = GOOD if max(ends) <= good else BAD if min(ends) > bad else DOUBTFUL
        expected = DOUBTFUL if math.isnan(stderr) else expected
        assert doctor_checks.verdict(float(value), stderr, limits) == expected


@pytest.mark.parametrize("num_labels", [1, 5])
def test_values_are_those_of_loops_over_images_and_subsets(num_labels):
    answers = made_up(num_images=8)
    parts = (getattr(answers, name)[..., :num_labels] for name in ("classifier", "explainer"))
    labels = answers.labels % max(num_labels, 2)
    answers = Answers(answers.shares, *parts, labels)

    def probabilities(logits):
        odds = [math.exp(z) for z in ([0.0, *logits] if num_labels == 1 else logits)]
        return [value / sum(odds) for value in odds]

    gaps, divergence, bias = {}, {}, {}
    for image in range(8):
        for column, share in enumerate(answers.shares.tolist()):
            v, u = (probabilities(x[image, column].tolist()) for x in (answers.classifier, answers.explainer))
            hit = float(v.index(max(v)) == labels[image])
            gaps.setdefault(share, {}).setdefault(image, []).append(max(v) - hit)
            mean = [(a + b) / 2 for a, b in zip(u, v, strict=True)]
            js = sum(x * math.log(x / m) / 2 for p in (u, v) for x, m in zip(p, mean, strict=True))
            divergence.setdefault(share, {}).setdefault(image, []).append(js)
            for k, (a, b) in enumerate(zip(u, v, strict=True)):
                bias.setdefault(k, {}).setdefault(image, []).append(a - b)

    def summary(per_image):
        means = [float(np.mean(values)) for values in per_image.values()]
        return np.mean(means), np.std(means, ddof=1) / math.sqrt(len(means))

    found = examined(answers)
    worst = max((share for share in gaps if share < 1), key=lambda share: abs(summary(gaps[share])[0]))
    mean, stderr = summary(gaps[worst])
    assert (found["calibration"].value, found["calibration"].stderr) == pytest.approx((abs(mean), stderr), abs=1e-6)
    assert found["labels"].value == pytest.approx(summary(gaps[1.0])[0], abs=1e-6)
    worst = max((share for share in divergence if 0 < share < 1), key=lambda share: summary(divergence[share])[0])
    for name, share in (("full", 1.0), ("empty", 0.0), ("partial", worst)):
        assert (found[name].value, found[name].stderr) == pytest.approx(summary(divergence[share]), abs=1e-6)
    assert found["bias"].value == pytest.approx(max(abs(summary(x)[0]) for x in bias.values()), abs=1e-6)


# The command, on tiny models


@pytest.fixture
def pair(tiny_classifier, save_processor, tmp_path, monkeypatch):
    """The folders "classifier", "explainer" and "images" in the working directory; the explainer is untrained."""
    monkeypatch.chdir(tmp_path)
    classifier = tiny_classifier("dinov2")
    for name, model in (("classifier", classifier), ("explainer", SalvageModel.from_classifier(classifier))):
        model.save_pretrained(name)
        save_processor(name)
    state(MaskedClassifier.from_pretrained("classifier"))
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "images" / f"LABEL_{label}"
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path


def state(v: MaskedClassifier) -> None:
    """Writes into the explainer's config which classifier it was trained for."""
    explainer = SalvageModel.from_pretrained("explainer")
    explainer.config.explained_classifier = provenance(v)
    explainer.config.save_pretrained("explainer")


def run(*words: str, num_images: int = 6) -> dict:
    """The findings of the command by name, as doctor.json has them."""
    common = ["--explainer", "explainer", "--validation_dir", "images", "--max_eval_samples", str(num_images)]
    status = cli.main(["doctor", *common, "--output_dir", "out", *words])
    findings = {found["name"]: found for found in json.loads(Path("out/doctor.json").read_text())["findings"]}
    assert status == int(any(found["verdict"] == BAD for found in findings.values()))
    return findings


@pytest.fixture
def without_quantus(monkeypatch):
    monkeypatch.setitem(sys.modules, "quantus", None)


@pytest.mark.usefixtures("without_quantus")
def test_the_command_writes_findings_a_picture_and_a_table(pair, capsys):
    findings = run()  # the classifier is the one that the explainer states, found in the working directory
    assert findings["explainer: trained for this classifier"]["verdict"] == GOOD
    assert findings["explainer: label names"]["verdict"] == GOOD
    assert findings["explainer: image processor"]["verdict"] == GOOD
    assert findings["maps: random layers"]["verdict"] == NOT_CHECKED
    assert "pip install quantus" in findings["maps: random layers"]["advice"]
    assert findings["maps: SRG less that of random ones"]["verdict"] != GOOD  # it is untrained
    assert findings["maps: SRG less that of random ones"]["value"] == pytest.approx(0, abs=0.2)
    printed = capsys.readouterr().out
    for name, found in findings.items():
        assert any(
            line.startswith(f"| {name} |") and f"| {found['verdict']} |" in line for line in printed.splitlines()
        )
    with Image.open("out/doctor.png") as picture:
        assert picture.width > 1000
        colors = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (np.abs(colors.astype(int) - (44, 160, 44)).sum(axis=1) < 6).any()  # the green of a good verdict
    assert "NaN" not in Path("out/doctor.json").read_text()  # which is no JSON


@pytest.mark.usefixtures("without_quantus")
def test_a_wrong_processor_is_found(pair, save_processor):
    save_processor("explainer", image_mean=[0.1, 0.1, 0.1])
    assert run()["explainer: image processor"]["verdict"] == BAD
    save_processor("explainer", image_size=20)
    found = run()["explainer: image processor"]
    assert found["verdict"] == BAD
    assert "[3, 20, 20]" in found["advice"]
    # That of the classifier, which the explainer states by a digest.
    save_processor("explainer")
    save_processor("classifier", image_std=[0.5, 0.5, 0.5])
    findings = run("--classifier", "classifier")
    assert findings["explainer: image processor"]["verdict"] == BAD
    assert "image processor" in findings["explainer: trained for this classifier"]["advice"]


@pytest.mark.usefixtures("without_quantus")
def test_another_classifier_and_other_names_are_findings_and_no_errors(pair, tiny_classifier, save_processor):
    tiny_classifier("dinov2", seed=1).save_pretrained("other")
    save_processor("other")
    found = run("--classifier", "other")["explainer: trained for this classifier"]
    assert found["verdict"] == BAD
    assert "weights or config" in found["advice"]
    explainer = SalvageModel.from_pretrained("explainer")
    explainer.config.id2label = {0: "LABEL_1", 1: "LABEL_2", 2: "LABEL_0"}
    explainer.config.explained_classifier = None
    explainer.config.save_pretrained("explainer")
    findings = run("--classifier", "classifier")
    assert findings["explainer: trained for this classifier"]["verdict"] == NOT_CHECKED
    assert findings["explainer: label names"]["verdict"] == BAD
    assert findings["explainer: label names"]["value"] == 3
    assert "another order" in findings["explainer: label names"]["advice"]


@pytest.mark.usefixtures("without_quantus")
def test_the_batch_size_changes_no_number(pair, monkeypatch):
    monkeypatch.setattr(doctor, "_BATCH", 1)
    one = run()
    monkeypatch.setattr(doctor, "_BATCH", 5)
    for name, found in run().items():
        assert found["value"] == pytest.approx(one[name]["value"], abs=1e-5)
        assert found["verdict"] == one[name]["verdict"]


def test_subsets_have_the_shares_that_are_reported(pair):
    v, explainer = MaskedClassifier.from_pretrained("classifier"), SalvageModel.from_pretrained("explainer")
    sizes = []
    subset_logits = explainer.subset_logits

    def watched(output, subsets):
        sizes.append(subsets.sum(dim=-1))
        return subset_logits(output, subsets)

    explainer.subset_logits = watched
    arguments = doctor.DoctorArguments(explainer="explainer", validation_dir="images", max_eval_samples=3)
    answers = doctor.ask(v, explainer, doctor.load_labelled_images(arguments, v, arguments.seed))
    assert (torch.cat(sizes) == (16 * answers.shares).long()).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "explainer is needed: the Salvage model to examine"),
        ("--explainer explainer", "give either dataset_name or validation_dir, got None and None"),
        ("--explainer classifier --validation_dir images", "is of the kind 'dinov2'"),
        ("--explainer explainer --validation_dir images --max_eval_samples 1", "max_eval_samples must be at least 2"),
        ("--explainer explainer --validation_dir images --classifier four", "has 3 labels, the classifier 4"),
        ("--explainer explainer --validation_dir images --classifier nowhere", "'nowhere' cannot be loaded"),
        ("--explainer explainer --validation_dir single", "the data set has one image; needed are 2 or more"),
        ("--explainer lost --validation_dir images", "'gone', which the explainer states, is not within reach"),
        ("--explainer silent --validation_dir images", "'silent' does not state which one it was trained for"),
    ],
)
def test_wrong_input_is_one_sentence(words, message, pair, tiny_classifier, save_processor, capsys):
    tiny_classifier("dinov2", num_labels=4).save_pretrained("four")
    save_processor("four")
    Path("single/LABEL_1").mkdir(parents=True)
    Path("images/LABEL_1/0.png").rename("single/LABEL_1/0.png")
    explainer = SalvageModel.from_pretrained("explainer")
    for name, stated in (("lost", {"name": "gone"}), ("silent", None)):
        explainer.config.explained_classifier = stated
        explainer.save_pretrained(name)
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", *words.split()])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_status_is_1_only_where_something_is_bad():
    good, doubtful, bad = (
        doctor_checks.finding("a check", value, 0.0, "nats", Limits(0.1, 0.3), "Mend it.") for value in (0, 0.2, 0.4)
    )
    unchecked = doctor_checks.not_checked("another", "Not here.")
    assert doctor.exit_status([good, doubtful, unchecked]) == 0
    assert doctor.exit_status([good, bad]) == 1
    assert doctor.doctor_table([good, unchecked]).endswith("Good: all 1 checks; 1 could not be made.")
    assert "Begin with the first, 'a check': Mend it." in doctor.doctor_table([good, doubtful, bad])
    assert "| 0.400 nats | ≤ 0.1 | > 0.3 | bad | Mend it. |" in doctor.doctor_table([bad])


# Randomisation


class LiteralRandomisation:
    """Quantus' MPRT from the top down, written out: one layer more is made random in every step."""

    def __init__(self, layer_order, abs, normalise, disable_warnings):
        assert (layer_order, abs, normalise) == ("top_down", False, False)

    def __call__(self, model, x_batch, y_batch, a_batch, explain_func, device, batch_size):
        from scipy.stats import spearmanr

        model = copy.deepcopy(model)
        found = {"original": [1.0] * len(x_batch)}
        layers = [item for item in model.named_modules() if hasattr(item[1], "reset_parameters")]
        for name, layer in reversed(layers):
            torch.manual_seed(43)
            layer.reset_parameters()
            maps = explain_func(model, x_batch, y_batch)
            found[name] = [float(spearmanr(a.ravel(), b.ravel())[0]) for a, b in zip(a_batch, maps, strict=True)]
        return found


@pytest.fixture
def literal_quantus(monkeypatch):
    module = types.ModuleType("quantus")
    module.__spec__ = importlib.machinery.ModuleSpec("quantus", None)
    module.MPRT = LiteralRandomisation
    monkeypatch.setitem(sys.modules, "quantus", module)


def brightness(model, pixel_values, targets):
    """Maps that show the image, whatever the model."""
    return pixel_values.mean(dim=1).unflatten(-1, (4, 4)).unflatten(1, (4, 4)).mean(dim=(2, 4)).flatten(1)


@pytest.mark.usefixtures("literal_quantus")
def test_randomisation_finds_maps_that_do_not_depend_on_the_model(tiny_classifier, salvage_model, images, monkeypatch):
    v, explainer = MaskedClassifier(tiny_classifier("dinov2")), salvage_model()
    before, seed = copy.deepcopy(v.state_dict()), torch.initial_seed()
    pixel_values, targets = images(4), torch.tensor([0, 1, 2, 0])
    findings, cascades = doctor_randomisation.check_randomisation(v, explainer, pixel_values, targets)
    assert list(cascades) == ["explainer", *doctor_randomisation.UNTRAINED]
    assert all(found.value < 1 for found in findings)  # every map changes
    num_layers = sum(hasattr(module, "reset_parameters") for module in v.modules())
    assert all(len(cascades[name]) == num_layers for name in doctor_randomisation.UNTRAINED)
    assert torch.initial_seed() == seed
    assert all((before[name] == tensor).all() for name, tensor in v.state_dict().items())  # the classifier is as it was
    monkeypatch.setattr(doctor_randomisation, "_maps_by", lambda name: brightness)
    findings, _ = doctor_randomisation.check_randomisation(v, explainer, pixel_values, targets)
    assert [found.verdict for found in findings[1:]] == [BAD] * len(doctor_randomisation.UNTRAINED)
    monkeypatch.setattr(doctor_randomisation, "_maps_by", lambda name: lambda *_: torch.zeros(4, 16))
    findings, _ = doctor_randomisation.check_randomisation(v, explainer, pixel_values, targets)
    assert [found.verdict for found in findings[1:]] == [NOT_CHECKED] * len(doctor_randomisation.UNTRAINED)

    def refused(*_arguments, **_options):
        raise AssertionError("The attributions are uniformly distributed")

    monkeypatch.setattr(LiteralRandomisation, "__call__", refused)
    findings, _ = doctor_randomisation.check_randomisation(v, explainer, pixel_values, targets)
    assert "uniformly distributed" in findings[0].advice


def test_quantus_gives_the_numbers_of_the_literal_version(tiny_classifier, images, monkeypatch):
    quantus = pytest.importorskip("quantus")
    v, maps_of = MaskedClassifier(tiny_classifier("dinov2")), doctor_randomisation._maps_by("saliency")
    arguments = v, maps_of, images(3), torch.tensor([0, 1, 2]), (4, 4)
    ours = doctor_randomisation.randomised(*arguments)
    monkeypatch.setattr(quantus, "MPRT", LiteralRandomisation)
    torch.testing.assert_close(ours, doctor_randomisation.randomised(*arguments))


# The real pair


@pytest.mark.usefixtures("without_quantus")
def test_the_real_pair_is_not_bad_and_its_parts_are_good(shared, imagenette_classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "RANKED_IMAGES", 1)
    findings = doctor.run_doctor(
        doctor.DoctorArguments(
            explainer=str(shared / "models" / "salvage-small-imagenette"),
            classifier=imagenette_classifier,
            validation_dir=str(shared / "data" / "imagenette" / "val"),
            max_eval_samples=8,
            output_dir=str(tmp_path),
        )
    )
    assert doctor.exit_status(findings) == 0
    found = {finding.name: finding.verdict for finding in findings}
    assert sum(verdict == GOOD for verdict in found.values()) >= 7
    assert found["explainer: image processor"] == found["explainer: label names"] == GOOD
    assert found["labels: confidence less accuracy on whole images"] == GOOD
