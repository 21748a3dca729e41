"""`Explainer` and `Explanation`: what is asked, what is explained, and what a picture of it says."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessor

from salvage_hf import Explainer, MaskedClassifier, attribution_methods
from salvage_hf.attribution_methods.pairs import _even_patches
from salvage_hf.evaluation import plots
from salvage_hf.explanation import DRAWN_PIXELS, FORMATS, LEAST_SHARE, Explanation
from salvage_hf.masking import provenance
from salvage_hf.modeling import Geometry, picture_geometry
from salvage_hf.refinement import refine
from salvage_hf.targets import predicted_targets

PROCESSOR = BitImageProcessor(
    size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3
)


def pictures(number=3, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(20, 40, 3), (30, 20, 3), (16, 16, 3), (50, 50, 3)]
    return [Image.fromarray(rng.integers(0, 255, shapes[place % 4], dtype=np.uint8)) for place in range(number)]


def pixels(picture):
    return PROCESSOR(picture, return_tensors="pt")["pixel_values"]


def save(folder, model):
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return str(folder)


def texts(figure):
    return [text.get_text() for text in figure.texts] + [axis.get_title() for axis in figure.axes]


# What is asked


def test_an_explainer_and_its_classifier_answer_in_one_forward_each(salvage_model, tiny_classifier):
    model, classifier = salvage_model(), tiny_classifier(seed=1)
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append("explainer"))
    explainer = Explainer(model, classifier=classifier, processor=PROCESSOR)
    forwards.clear()
    picture = pictures()[0]
    made = explainer(picture, classes=[0, 1, 2])
    assert forwards == ["explainer"]
    with torch.no_grad():
        output, logits = model(pixels(picture)), classifier(pixels(picture)).logits
    torch.testing.assert_close(made.attributions, output.attributions[0])
    torch.testing.assert_close(made.explainer_probabilities, output.logits[0].softmax(-1))
    torch.testing.assert_close(made.classifier_probabilities, logits[0].softmax(-1))
    assert (made.method, made.grid_size, made.labels) == ("salvage", (4, 4), ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert made.stderr is None
    # What an app needs for one picture, after one forward.
    prepared = explainer.prepare(picture)
    subsets = torch.rand(1, 5, 16) < 0.5
    assert explainer.v.probabilities(prepared.pixel_values, subsets).shape == (1, 5, 3)
    assert explainer.model.subset_logits(explainer.model(prepared.pixel_values), subsets).shape == (1, 5, 3)


@pytest.mark.parametrize(
    ("family", "method", "grid"),
    [("dinov2", "conservative_lrp", (4, 4)), ("vit", "conservative_lrp", (4, 4)), ("resnet", "gradcam", (16, 16)),
     ("swin", "gradcam", (16, 16)), ("beit", "rise", (16, 16))],
)  # fmt: skip
def test_a_plain_classifier_has_a_method_of_its_own(tiny_classifier, family, method, grid):
    classifier, picture = tiny_classifier(family), pictures()[0]
    explainer = Explainer(classifier, processor=PROCESSOR)
    made = explainer(picture, top=1)
    assert (explainer.method, made.grid_size, explainer.model) == (method, grid, None)
    options = {"budget": 256} if method == "rise" else {}
    target = predicted_targets(explainer.v.whole_logits(pixels(picture)))
    expected = attribution_methods.load(method, explainer.v, **options)(pixels(picture), target)
    torch.testing.assert_close(made.attributions[:, 0], expected[0])
    assert made.explainer_probabilities is None
    assert not made.disagree
    assert any(text.startswith("Classifier: ") for text in texts(made.plot()))


def test_without_captum_there_is_a_method_too(tiny_classifier, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    assert Explainer(tiny_classifier("resnet"), processor=PROCESSOR).method == "gradcam_plus_plus"


@pytest.mark.parametrize(
    ("size", "side"), [((224, 224), 16), ((112, 112), 8), ((384, 384), 24), ((240, 240), 16), ((299, 299), 23)]
)
def test_images_without_tokens_are_divided_evenly(size, side):
    assert _even_patches(size) == side


def test_sizes_that_cannot_be_divided_are_refused():
    for size in (None, (1, 1)):
        with pytest.raises(ValueError, match="patch_size is needed"):
            _even_patches(size)


@pytest.mark.parametrize("method", ["salvage", "conservative_lrp"])
def test_a_budget_refines_the_maps(salvage_model, tiny_classifier, method):
    model, classifier, picture = salvage_model(), tiny_classifier(seed=1), pictures()[0]
    explainer = Explainer(model, method, budget=48, classifier=classifier, processor=PROCESSOR, seed=3)
    made = explainer(picture, classes=[2, 0])
    for place, target in enumerate([2, 0]):
        targets = torch.tensor([target])
        if method == "salvage":
            with torch.no_grad():
                maps = model(pixels(picture)).attributions[..., target]
        else:
            maps = attribution_methods.load(method, explainer.v)(pixels(picture), targets)
        expected = refine(explainer.v, maps, pixels(picture), targets, 48, 3)
        torch.testing.assert_close(made.attributions[:, place], expected.attributions[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(made.stderr[:, place], expected.stderr[0], rtol=1e-4, atol=1e-6)
    assert "refined by 48 forwards a map" in made.made_with


def test_the_stated_classifier_is_found_beside_the_explainer(salvage_model, tiny_classifier, tmp_path, caplog):
    save(tmp_path / "ours", tiny_classifier(seed=1))
    v = MaskedClassifier.from_pretrained(str(tmp_path / "ours"), masking="zero")
    model = salvage_model()
    model.config.explained_classifier = provenance(v)
    name = save(tmp_path / "run" / "last", model)
    explainer = Explainer(name, budget=32, device="cpu")
    assert (explainer.v.masking, caplog.text) == ("zero", "")
    picture = pictures()[0]
    made = explainer(picture, classes=0)
    with torch.no_grad():
        maps = model(pixels(picture)).attributions[..., 0]
    expected = refine(v, maps, pixels(picture), torch.tensor([0]), 32).attributions[0]
    torch.testing.assert_close(made.attributions[:, 0], expected, rtol=1e-4, atol=1e-6)
    assert (made.classifier, made.explainer, made.problem) == ("ours", "last", "")


@pytest.mark.parametrize("what", ["other weights", "nowhere", "not stated"])
def test_where_the_classifier_is_not_asked_everything_says_so(salvage_model, tiny_classifier, tmp_path, what, caplog):
    save(tmp_path / "ours", tiny_classifier(seed=1))
    model = salvage_model()
    if what != "not stated":
        model.config.explained_classifier = provenance(MaskedClassifier.from_pretrained(str(tmp_path / "ours")))
    if what == "other weights":
        save(tmp_path / "ours", tiny_classifier(seed=2))
    name = save((tmp_path / "far" / "away" / "explainer") if what == "nowhere" else tmp_path / "explainer", model)
    explainer = Explainer(name)
    assert caplog.text.count("The classifier is not asked") == 1
    made = explainer(pictures()[0])
    assert (explainer.v, made.classifier, made.classifier_probabilities) == (None, None, None)
    assert made.problem
    assert "The classifier was not asked" in " ".join(texts(made.plot())).replace("\n", " ")
    with pytest.raises(ValueError, match="asks the classifier"):
        Explainer(name, budget=32)
    if what == "other weights":
        with pytest.raises(ValueError, match="differs from 'ours' in weights or config"):
            Explainer(name, classifier=str(tmp_path / "ours"))
        assert Explainer(name, classifier=str(tmp_path / "ours"), allow_other_classifier=True).v is not None


@pytest.mark.parametrize("objective", ["vit_shapley", "fastshap"])
def test_explainers_of_shapley_values_do_not_classify(salvage_model, tiny_classifier, objective):
    model = salvage_model(objective=objective, paired_values=False)
    with pytest.raises(ValueError, match="does not predict what it explains: classifier is needed"):
        Explainer(model, processor=PROCESSOR)
    explainer = Explainer(model, classifier=tiny_classifier(), processor=PROCESSOR)
    made, picture = explainer(pictures()[0], classes=1), pictures()[0]
    method = attribution_methods.load(objective, explainer.v, explainer=model)
    torch.testing.assert_close(made.attributions[:, 0], method(pixels(picture), torch.tensor([1]))[0])
    assert made.explainer_probabilities is None


# What is explained


@pytest.mark.parametrize("bias", [-40.0, 40.0])
def test_one_label_is_explained_by_what_is_predicted(salvage_model, monkeypatch, bias):
    model = salvage_model(num_labels=1)
    model.config.id2label = {0: "abnormal"}
    forward = type(model).forward

    def shifted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + bias
        return output

    monkeypatch.setattr(type(model), "forward", shifted)
    explainer, picture = Explainer(model, processor=PROCESSOR), pictures()[0]
    made = explainer(picture)
    assert made.label_names == ("not abnormal", "abnormal")
    assert made.labels == (("abnormal",) if bias > 0 else ("not abnormal",))
    torch.testing.assert_close(made.explainer_probabilities, torch.tensor([float(bias < 0), float(bias > 0)]))
    own = model(pixels(picture)).attributions[0, :, 0].detach()
    torch.testing.assert_close(made.attributions[:, 0], own if bias > 0 else -own)
    torch.testing.assert_close(explainer(picture, classes="not abnormal").attributions[:, 0], -own)
    assert f"Explainer: {made.labels[0]} 100.0%" in texts(made.plot())


def test_classes_are_labels_or_numbers(tiny_classifier):
    classifier = tiny_classifier(num_labels=4)
    classifier.config.id2label = {0: "cat", 1: "crane", 2: "crane", 3: "7"}
    explainer, picture = Explainer(classifier, processor=PROCESSOR), pictures()[0]
    assert explainer(picture, classes=["cat", 2, "1", "7"]).classes == (0, 2, 1, 3)
    assert explainer(picture, classes="cat").labels == ("cat",)
    shares = explainer(picture).classifier_probabilities
    wanted = [index for index in shares.argsort(descending=True).tolist()[:2] if shares[index] >= LEAST_SHARE]
    assert explainer(picture, top=2).classes == tuple(wanted)
    wrong = {"dog": "'dog' is no label", 4: "4 is no label", -1: "-1 is no label", (): "classes must be labels"}
    wrong |= {"crane": "'crane' is the name of the labels [1, 2]", 2.5: "classes must be labels"}
    for given, message in wrong.items():
        with pytest.raises(ValueError, match=r"^classes") as error:
            explainer(picture, classes=given)
        assert message in str(error.value)


def test_runners_up_below_a_share_are_left_out(tiny_classifier):
    classifier = tiny_classifier()
    with torch.no_grad():
        classifier.classifier.weight.mul_(0)
        classifier.classifier.bias.copy_(torch.tensor([0.985, 0.011, 0.004]).log())
    made = Explainer(classifier, processor=PROCESSOR)(pictures()[0])
    assert made.classes == (0, 1)
    assert made.said("classifier") == "LABEL_0 98.5%, LABEL_1 1.1%"


@pytest.mark.parametrize("method", ["salvage", "rise", "conservative_lrp"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_changes_no_number(salvage_model, tiny_classifier, method, batch_size):
    options = {"classifier": tiny_classifier(seed=1), "processor": PROCESSOR, "budget": 32}
    explainer, given = Explainer(salvage_model(), method, **options), pictures(5)
    for picture, made in zip(given, explainer(given, top=2, batch_size=batch_size), strict=True):
        alone = explainer(picture, top=2)
        assert made.classes == alone.classes
        torch.testing.assert_close(made.attributions, alone.attributions, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(made.classifier_probabilities, alone.classifier_probabilities)


def test_images_of_several_sizes_are_explained_together(tiny_classifier):
    processor = BitImageProcessor(size={"shortest_edge": 16}, do_center_crop=False)
    explainer = Explainer(tiny_classifier(), processor=processor)
    given = [Image.new("RGB", size, "red") for size in ((16, 16), (32, 16), (16, 16))]
    assert [made.grid_size for made in explainer(given)] == [(4, 4), (4, 8), (4, 4)]


def test_images_are_files_or_pictures(tiny_classifier, tmp_path):
    explainer, picture = Explainer(tiny_classifier(), processor=PROCESSOR), pictures()[0]
    picture.save(tmp_path / "a.png")
    first, *others = explainer([picture, tmp_path / "a.png", str(tmp_path / "a.png"), picture.convert("RGBA")])
    assert all(torch.equal(first.attributions, other.attributions) for other in others)
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16))
    with pytest.raises(ValueError, match="pixel_range"):
        explainer(deep)
    assert explainer(deep, pixel_range=(0, 4095)).image.mode == "RGB"
    turned = picture.copy()
    turned.getexif()[0x0112] = 6
    assert explainer(turned).image_size == (20, 40)
    assert explainer([]) == []


# What is said


def test_disagreement_is_seen_and_said(salvage_model, tiny_classifier, tmp_path):
    model, picture = salvage_model(), pictures()[0]
    said = int(model(pixels(picture)).logits.argmax())
    classifier = tiny_classifier()
    with torch.no_grad():
        classifier.classifier.bias[(said + 1) % 3] += 50
    made = Explainer(model, classifier=classifier, processor=PROCESSOR)(picture)
    assert made.disagree
    sentence = f"They disagree: the classifier predicts LABEL_{(said + 1) % 3}, the explainer LABEL_{said}."
    assert made.warnings == [sentence]
    figure = made.plot()
    (drawn,) = [text for text in figure.texts if text.get_text().replace("\n", " ") == sentence]
    assert drawn.get_bbox_patch().get_facecolor() != (1, 1, 1, 1)
    assert made.to_json()["disagree"] is True


SHAPES = [(160, 120), (50, 300), (600, 40), (4, 4), (3 * DRAWN_PIXELS, DRAWN_PIXELS)]


def explanation(size=(160, 120), num_classes=2, label="a rather long name, of a bird with feathers {}", **changes):
    """An explanation without models."""
    names = tuple(label.format(number) for number in range(max(num_classes, 2)))
    shares = torch.linspace(1, 2, len(names)).softmax(-1)
    middle = Geometry((0.1 * size[0], 0, 0.9 * size[0], size[1]), (0.1 * size[0], 0, 0.9 * size[0], size[1]))
    stated = {"image": Image.new("RGB", size, "green"), "image_size": size, "geometry": middle, "grid_size": (2, 3)}
    stated |= {"classes": tuple(range(num_classes)), "attributions": torch.randn(6, num_classes), "label_names": names}
    stated |= {"classifier_probabilities": shares, "explainer_probabilities": shares.flip(0), "method": "salvage"}
    return Explanation(**{**stated, "classifier": "org/" + "dinov2" * 15, "explainer": "org/salvage", **changes})


@pytest.mark.parametrize("num_classes", [1, 2, 7])
@pytest.mark.parametrize("size", SHAPES)
def test_no_text_lies_on_another_or_outside(size, num_classes):
    figure = explanation(size, num_classes).plot()
    plots.file_content(figure)  # lays it out
    drawn = [*figure.texts, *(axis.title for axis in figure.axes)]
    drawn += [label for axis in figure.axes if axis.axison for label in axis.get_xticklabels()]
    boxes = [text.get_window_extent() for text in drawn if text.get_text()]
    assert len(boxes) >= num_classes + 7
    for number, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= -1
        assert box.y1 <= figure.bbox.y1 + 1
        assert not [other for other in boxes[:number] if box.overlaps(other)]


def test_the_colours_say_what_they_mean():
    made = explanation(attributions=torch.tensor([[0.5, -2.0]] * 6))
    figure = made.plot()
    (bar,) = [axis for axis in figure.axes if axis.axison]
    assert [label.get_text() for label in bar.get_xticklabels()] == ["-2\nagainst", "0", "2\nfor the class"]
    low, *_, high = bar.images[0].get_array()[0]
    assert low[2] > low[0]  # blue
    assert high[0] > high[2]  # red
    assert any("outside" in text for text in texts(figure))
    whole = Geometry((0, 0, 160, 120), (0, 0, 160, 120))
    assert not any("outside" in text for text in texts(explanation(geometry=whole).plot()))


def test_what_is_drawn_has_the_place_of_what_the_model_sees(tiny_classifier, monkeypatch):
    """A large picture is drawn smaller, and the map's place in it with it."""
    drawn = []
    monkeypatch.setattr(
        "salvage_hf.explanation.overlay",
        lambda picture, values, geometry, _: drawn.append((picture, geometry)) or picture,
    )
    size = 3 * DRAWN_PIXELS, DRAWN_PIXELS
    Explainer(tiny_classifier(), processor=PROCESSOR)(Image.new("RGB", size)).overlays()
    picture, geometry = drawn[0]
    assert picture.size == (DRAWN_PIXELS, DRAWN_PIXELS // 3)
    np.testing.assert_allclose(geometry, np.array(picture_geometry(PROCESSOR, *size)) / 3)


# Files


def test_json_holds_everything_but_the_pixels():
    stderr = torch.tensor([[0.5, float("inf")]] * 6, dtype=torch.float64)
    made = explanation(stderr=stderr, effects=torch.zeros(6, 2, dtype=torch.float64), budget=32)
    stated = made.to_json()
    assert json.loads(json.dumps(stated, allow_nan=False)) == stated
    torch.testing.assert_close(torch.tensor(stated["attributions"]), made.attributions, rtol=0, atol=0)
    assert stated["stderr"][0] == [0.5, None]
    again = Explanation(
        image=made.image,
        image_size=tuple(stated["image_size"]),
        geometry=Geometry(*map(tuple, stated["geometry"].values())),
        grid_size=tuple(stated["grid_size"]),
        classes=tuple(stated["classes"]),
        attributions=torch.tensor(stated["attributions"]),
        label_names=tuple(stated["label_names"]),
        classifier_probabilities=torch.tensor(stated["classifier_probabilities"]),
        explainer_probabilities=torch.tensor(stated["explainer_probabilities"]),
        effects=torch.tensor(stated["effects"], dtype=torch.float64),
        stderr=torch.tensor(np.array(stated["stderr"], dtype=float)).nan_to_num(float("inf")),
        **{name: stated[name] for name in ("method", "budget", "classifier", "explainer", "problem", "version")},
    )
    assert again.to_json() == stated


@pytest.mark.parametrize("kind", FORMATS)
def test_the_suffix_says_the_format(tmp_path, kind):
    made = explanation()
    made.save(tmp_path / f"a.{kind.upper()}")
    content = (tmp_path / f"a.{kind.upper()}").read_bytes()
    if kind == "json":
        assert json.loads(content) == made.to_json()
    elif kind == "npz":
        with np.load(tmp_path / "a.NPZ") as arrays:
            np.testing.assert_array_equal(arrays["attributions"], made.attributions)
            assert arrays["attributions"].dtype == np.float32
            assert arrays["labels"].tolist() == list(made.labels)
            np.testing.assert_array_equal(arrays["seen"], made.geometry.seen)
            assert "stderr" not in arrays
    elif kind in ("pdf", "svg"):
        assert {"pdf": b"%PDF", "svg": b"<svg"}[kind] in content[:1000]
    else:
        assert Image.open(tmp_path / f"a.{kind.upper()}").width > 500


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '.gif'; the suffix says the format and is one of png, .*, json"):
        explanation().save(tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be one of salvage, "),
        ({"method": "salvage"}, "method='salvage' needs an explainer of the objective 'salvage'"),
        ({"budget": -1}, "budget must be a whole number of at least 0, got -1"),
        ({"budget": 8}, "budget must be 0 or at least 16, got 8"),
        ({"device": "warp"}, "device must be one of this machine, got 'warp'"),
        ({"device": "cuda:99"}, "device must be one of this machine, got 'cuda:99'"),
        ({"processor": None}, "processor is needed: the model was not loaded from a folder or the Hub"),
        ({"patch_size": 5}, "patch_size=5 does not divide the images"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tiny_classifier, options, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        Explainer(tiny_classifier(), **{"processor": PROCESSOR, **options})
    assert message in str(error.value)


@pytest.mark.parametrize("part", ["classifier", "explainer", "attributions"])
def test_answers_that_are_not_finite_are_refused(salvage_model, tiny_classifier, part, monkeypatch):
    model, classifier = salvage_model(), tiny_classifier()
    explainer = Explainer(model, classifier=classifier, processor=PROCESSOR)
    forward = type(model).forward

    def infinite(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output["logits" if part == "explainer" else part][0, 0] = float("inf")
        return output

    if part == "classifier":
        with torch.no_grad():
            classifier.classifier.bias[0] = float("nan")
    else:
        monkeypatch.setattr(type(model), "forward", infinite)
    with pytest.raises(ValueError, match="NaN or infinite"):
        explainer(pictures()[0], classes=0)


def test_a_folder_is_loaded_with_its_processor(tiny_classifier, tmp_path):
    name = save(tmp_path / "resnet", tiny_classifier("resnet"))
    explainer = Explainer(name, device="cpu", patch_size=4)
    assert explainer.processor.to_dict() == AutoImageProcessor.from_pretrained(name).to_dict()
    made = explainer(pictures()[0])
    assert (made.classifier, made.grid_size, explainer.method) == ("resnet", (4, 4), "gradcam")
