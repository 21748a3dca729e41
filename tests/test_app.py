"""The app: its events without a page, its pictures and words, and a page in a browser."""

import io
import re
import runpy
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from browser import assert_fits, chromium
from PIL import Image
from test_one_line import PROCESSOR, pictures, pixels

from salvage_hf import Explainer, attribution_methods
from salvage_hf.app import run, words
from salvage_hf.app import session as events
from salvage_hf.app.pictures import files_of, map_picture, visible_picture
from salvage_hf.app.session import Models
from salvage_hf.app.space import write_space
from salvage_hf.modeling import Geometry, overlay
from salvage_hf.refinement import refine


@pytest.fixture
def file(tmp_path):
    """A picture of 40 x 20 pixels, of which the model sees the 16 x 16 in the middle."""
    pictures()[0].save(tmp_path / "a & b.png")
    return tmp_path / "a & b.png"


@pytest.fixture
def models(salvage_model, tiny_classifier):
    """A factory: an explainer and its classifier, of so many labels."""

    def build(num_labels=3):
        model, classifier = (
            salvage_model(num_labels, logit_temperature=30.0),
            tiny_classifier(seed=1, num_labels=num_labels),
        )
        return Models(Explainer(model, classifier=classifier, processor=PROCESSOR))

    return build


@pytest.fixture
def plain(tiny_classifier):
    """A factory: a classifier without an explainer."""
    return lambda family="dinov2": Models(Explainer(tiny_classifier(family), processor=PROCESSOR))


# What the models are asked


def test_one_forward_of_the_explainer_serves_all_classes(models, file):
    ours = models()
    forwards = []
    ours.explainer.model.register_forward_hook(lambda *_: forwards.append("explainer"))
    session = ours.start(file)
    assert forwards == ["explainer"]
    with torch.no_grad():
        output = ours.explainer.model(pixels(Image.open(file)))
    forwards.clear()
    for target in range(3):
        session = ours.choose(session, target)
        torch.testing.assert_close(session.main.attributions[:, 0], output.attributions[0, :, target])
    assert forwards == []
    assert session.name == "a & b"
    torch.testing.assert_close(session.whole.explainer_probabilities, output.logits[0].softmax(-1))


def test_a_click_changes_v_and_u_as_the_models_say(models, file):
    ours = models()
    session = ours.start(file)
    assert session.visible.all()
    patch = events.patch_at(session, *_centre(session, row=1, column=2))
    assert patch == 1 * 4 + 2
    hidden = events.toggle(session, patch)
    assert (hidden.num_visible, hidden.cursor, session.num_visible) == (15, patch, 16)
    before, after = ours.answers(session), ours.answers(hidden)
    subset = torch.ones(1, 1, 16, dtype=torch.bool)
    subset[..., patch] = False
    pixel_values = pixels(Image.open(file))
    torch.testing.assert_close(after.classifier, ours.explainer.v.probabilities(pixel_values, subset)[0, 0])
    with torch.no_grad():
        output = ours.explainer.model(pixel_values)
        expected = ours.explainer.model.subset_logits(output, subset).softmax(-1)[0, 0]
    torch.testing.assert_close(after.explainer, expected)
    assert not torch.allclose(before.classifier, after.classifier)
    assert not torch.allclose(before.explainer, after.explainer)
    again = ours.answers(events.toggle(hidden, patch))
    torch.testing.assert_close(again.classifier, before.classifier)


def _centre(session, row, column):
    """The middle of a patch in the drawn picture, by hand: 4 x 4 patches in the box."""
    left, top, right, bottom = session.whole.drawn()[1].box
    return left + (column + 0.5) / 4 * (right - left), top + (row + 0.5) / 4 * (bottom - top)


def test_every_place_in_the_picture_has_its_patch(models, file):
    session = models().start(file)
    for row in range(4):
        for column in range(4):
            assert events.patch_at(session, *_centre(session, row, column)) == 4 * row + column
            assert events.patch_in_grid(session, row + 1, column + 1) == 4 * row + column
    width, height = session.whole.drawn()[0].size
    for x, y in ((0, 0), (width - 1, height - 1), (0, height / 2), (-1, 5), (width, 5)):
        assert events.patch_at(session, x, y) is None
    wrong = [(0, 1, "row must be a whole number of at least 1"), (1, 5, "column must be at most 4, got 5")]
    for row, column, message in [*wrong, (None, 1, "row")]:
        with pytest.raises(ValueError, match=message):
            events.patch_in_grid(session, row, column)


def test_padding_has_no_patch_to_click(models, file):
    session = models().start(file)
    seen = (10.0, 4.0, 20.0, 18.0)  # the right half of the box is padding
    whole = replace(session.whole, geometry=Geometry((10.0, 4.0, 30.0, 18.0), seen))
    session = replace(session, whole=whole)
    places = events.patches_of_pixels(session)
    assert set(np.unique(places)) == {-1, *(4 * row + column for row in range(4) for column in range(2))}


def test_all_none_and_invert(models, file):
    ours = models()
    session = events.toggle(ours.start(file), 3)
    assert events.show_all(session).num_visible == 16
    assert events.show_none(session).num_visible == 0
    assert events.invert(session).visible.nonzero().tolist() == [[3]]
    nothing = ours.answers(events.show_none(session))
    empty = torch.zeros(1, 1, 16, dtype=torch.bool)
    expected = ours.explainer.v.probabilities(session.prepared.pixel_values, empty)[0, 0]
    torch.testing.assert_close(nothing.classifier, expected)


@pytest.mark.parametrize("highest_first", [True, False])
def test_the_slider_goes_along_the_order_of_the_map(models, file, highest_first):
    session = models().start(file)
    values = session.main.attributions[:, 0].tolist()
    ranked = sorted(range(16), key=lambda patch: values[patch], reverse=highest_first)
    for percent in (0, 6, 25, 50, 99, 100):
        shown = events.show_share(session, percent / 100, highest_first).visible
        assert set(shown.nonzero().flatten().tolist()) == set(ranked[: round(percent / 100 * 16)])
    assert events.show_share(session, 1.0).visible.all()
    assert not events.show_share(session, 0.0).visible.any()


# Maps


def test_the_parts_of_the_evidence_are_the_explainers(models, file):
    ours = models()
    session = ours.choose(ours.start(file), 2)
    (positive, limit), (negative, same) = (events.evidence_of(session, kind) for kind in ("positive", "negative"))
    torch.testing.assert_close(positive, session.output.positive_values[0, :, 2])
    torch.testing.assert_close(negative, -session.output.negative_values[0, :, 2])
    assert limit == same == max(float(positive.abs().max()), float(negative.abs().max()))
    everything, limit = events.evidence_of(session, "all")
    torch.testing.assert_close(everything, positive + negative)
    assert limit == float(everything.abs().max())
    with pytest.raises(ValueError, match="kind must be one of"):
        events.evidence_of(session, "some")


def test_a_budget_improves_the_map_and_another_method_stands_beside_it(models, file):
    ours = models()
    session = ours.choose(ours.start(file), 1, "saliency", 32)
    pixel_values, target = session.prepared.pixel_values, torch.tensor([1])
    for name, made in (("salvage", session.main), ("saliency", session.beside)):
        explainer = {"explainer": ours.explainer.model} if name == "salvage" else {}
        maps = attribution_methods.load(name, ours.explainer.v, **explainer)(pixel_values, target)
        expected = refine(ours.explainer.v, maps, pixel_values, target, 32).attributions[0]
        torch.testing.assert_close(made.attributions[:, 0], expected, rtol=1e-4, atol=1e-6)
    again = ours.choose(session, 1, "", 32)
    assert again.beside is None
    assert again.main is session.main  # what did not change is not computed again
    assert torch.equal(events.evidence_of(session, "positive")[0], session.main.attributions[:, 0])


def test_a_method_that_asks_gets_a_budget_of_its_own(models, file):
    ours = models()
    assert ours.choose(ours.start(file), 0, "rise").beside.budget == 256
    assert ours.choose(ours.start(file), 0, "rise", 32).beside.budget == 32
    for method, target in (("magic", 0), ("salvage", 0), ("rise", 3)):
        with pytest.raises(ValueError, match="must be one of"):
            ours.choose(ours.start(file), target, method)


@pytest.mark.parametrize("family", ["dinov2", "resnet", "beit"])
def test_a_plain_classifier_has_maps_and_v_alone(plain, file, family):
    ours = plain(family)
    session = ours.start(file)
    assert session.output is None
    assert session.whole.classes == (session.target,)
    answers = ours.answers(events.toggle(session, 0))
    assert answers.explainer is None
    subset = torch.arange(len(session.visible))[None, None] > 0
    expected = ours.explainer.v.probabilities(session.prepared.pixel_values, subset)[0, 0]
    torch.testing.assert_close(answers.classifier, expected)
    other = (session.target + 1) % 3
    method = ours.explainer.method
    options = {"budget": 256} if method == "rise" else {}
    load = attribution_methods.load(method, ours.explainer.v, **options)
    expected = load(session.prepared.pixel_values, torch.tensor([other]))[0]
    torch.testing.assert_close(ours.choose(session, other).main.attributions[:, 0], expected)
    assert torch.equal(events.evidence_of(session, "negative")[0], session.main.attributions[:, 0])
    assert method not in ours.methods
    assert "random" in ours.methods
    assert ("last_attention" in ours.methods) == (family == "dinov2")
    assert "u(S)" not in words.answers(session, answers)


def test_an_explainer_alone_has_u_alone(salvage_model, file):
    ours = Models(Explainer(salvage_model(), processor=PROCESSOR))
    session = ours.start(file)
    assert ours.methods == []
    answers = ours.answers(session)
    assert answers.classifier is None
    torch.testing.assert_close(answers.explainer, session.whole.explainer_probabilities)
    assert "The classifier was not asked" in words.warnings(session.whole.warnings)


def test_one_label_has_two_classes(models, file):
    ours = models(num_labels=1)
    session = ours.start(file)
    no, yes = (ours.choose(session, target) for target in (0, 1))
    torch.testing.assert_close(no.main.attributions, -yes.main.attributions)
    torch.testing.assert_close(events.evidence_of(no, "positive")[0], -events.evidence_of(yes, "negative")[0])
    torch.testing.assert_close(
        events.evidence_of(yes, "positive")[0], session.output.positive_values[0, :, 0]
    )  # fmt: skip
    answers = ours.answers(events.toggle(session, 5))
    subset = (torch.arange(16) != 5)[None, None]
    present = ours.explainer.v.probabilities(session.prepared.pixel_values, subset)[0, 0]
    torch.testing.assert_close(answers.classifier, torch.cat([1 - present, present]))
    assert answers.explainer.sum() == pytest.approx(1)


def test_the_page_warns_where_the_models_disagree(models, file):
    whole = models().start(file).whole
    shares = torch.eye(3)
    same = replace(whole, classifier_probabilities=shares[1], explainer_probabilities=shares[1])
    other = replace(same, explainer_probabilities=shares[2])
    assert words.warnings(same.warnings) == ""
    assert "the classifier predicts LABEL_1, the explainer LABEL_2" in words.warnings(other.warnings)


def test_a_broken_file_is_refused_by_its_name(models, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^image 'broken.png' cannot be read: it is damaged"):
        models().start(tmp_path / "broken.png")


# Pictures, words and files


def test_opacity_leads_from_the_photograph_to_the_map(models, file):
    session = models().start(file)
    picture, geometry = session.main.drawn()
    values, limit = events.evidence_of(session, "all")
    assert map_picture(session.main, values, limit, 0.0).tobytes() == picture.tobytes()
    expected = overlay(picture, values.view(4, 4).numpy(), geometry, limit)
    assert map_picture(session.main, values, limit, 1.0).tobytes() == expected.tobytes()
    assert map_picture(session.main, torch.zeros(16), 0.0).size == picture.size


def test_hidden_patches_are_dark_and_the_rest_is_as_it_was(models, file):
    session = events.toggle(models().start(file), 6)
    shown, picture = np.asarray(visible_picture(session)).astype(int), np.asarray(session.whole.drawn()[0]).astype(int)
    places = events.patches_of_pixels(session)
    for patch in range(16):
        ys, xs = np.nonzero(places == patch)
        y, x = (ys.min() + ys.max()) // 2, (xs.min() + xs.max()) // 2
        if patch == 6:
            assert (shown[y, x] <= 0.2 * picture[y, x]).all()
        else:
            assert (shown[y, x] == picture[y, x]).all()
    framed = places[(shown == (255, 210, 63)).all(-1)]
    assert set(framed) == {6}


def test_names_cannot_become_html(models, file):
    ours = models()
    ours.explainer.v.config.id2label = {0: "<b>cat</b>", 1: "dog", 2: "dog"}
    ours.explainer.model.config.id2label = ours.explainer.v.config.id2label
    session = ours.start(file)
    said = words.probabilities(session) + words.answers(session, ours.answers(session))
    said += words.key(session.main, 1.0) + words.warnings(["<b>"])
    assert "<b>" not in said
    assert {name for name, _ in words.class_choices(session.whole)} == {"<b>cat</b>", "dog (1)", "dog (2)"}
    assert sorted(number for _, number in words.class_choices(session.whole)) == [0, 1, 2]


def test_files_are_what_is_shown(models, file):
    ours = models()
    session = ours.choose(ours.start(file), 2, "saliency")
    found = files_of(session, "all", 1.0)
    assert set(found) == {"map_a & b.png", "visible_a & b.png", "figure_a & b.png", "map_a & b.npz",
                          "saliency_figure_a & b.png", "saliency_map_a & b.npz"}  # fmt: skip
    arrays = np.load(io.BytesIO(found["map_a & b.npz"]))
    np.testing.assert_array_equal(arrays["attributions"], session.main.attributions.numpy())
    picture = Image.open(io.BytesIO(found["visible_a & b.png"]))
    assert picture.tobytes() == visible_picture(session).tobytes()


# The page


def test_the_page_in_a_browser(models, file, tmp_path):
    pytest.importorskip("gradio")
    from salvage_hf.app.layout import Page

    (tmp_path / "broken.png").write_bytes(b"no picture")
    with chromium() as browser:
        app = Page(models()).app
        _, url, _ = app.launch(prevent_thread_lock=True, css=words.CSS, quiet=True)
        try:
            page = browser.new_page(viewport={"width": 390, "height": 844})
            page.set_default_timeout(60_000)
            page.goto(url)
            page.wait_for_selector("input[type=file]", state="attached")
            page.set_input_files("input[type=file]", tmp_path / "broken.png")
            page.wait_for_selector("[role=alert]:has-text('broken.png')")
            page.get_by_label("Clear").or_(page.get_by_label("Remove")).first.click()
            page.set_input_files("input[type=file]", file)
            page.wait_for_selector("#seen img")
            status = page.locator(".salvage[role=status]")
            assert "16 of 16" in status.inner_text()
            assert_fits(page)
            box = page.locator("#seen img").bounding_box()
            assert box["width"] > 250  # a small picture is enlarged
            # The model sees x = 12..28 and y = 2..18 of 40 x 20 pixels: here is row 3, column 4.
            page.locator("#seen img").click(position={"x": box["width"] * 26 / 40, "y": box["height"] * 12 / 20})
            page.wait_for_selector("text=15 of 16 patches visible")
            assert [page.get_by_label(name).input_value() for name in ("Row", "Column")] == ["3", "4"]
            first = re.findall(r"[\d.]+%", status.inner_text())
            for width in (390, 1280):  # a click means the patch under it, however large the picture is drawn
                page.set_viewport_size({"width": width, "height": 844})
                box = page.locator("#seen img").bounding_box()
                for number, (row, column) in enumerate([(1, 1), (1, 4), (4, 1), (4, 4)]):
                    place = {"x": box["width"] * (10 + 4 * column) / 40, "y": box["height"] * 4 * row / 20}
                    page.locator("#seen img").click(position=place)
                    visible = 14 - number if width == 390 else 12 + number
                    page.wait_for_selector(f"text={visible} of 16 patches visible")
                    assert [page.get_by_label(name).input_value() for name in ("Row", "Column")] == [
                        str(row),
                        str(column),
                    ]
            page.get_by_role("button", name="Make files").click()
            page.wait_for_selector("text=map_a")
            page.get_by_role("button", name="None").press("Enter")  # by the keyboard
            page.wait_for_selector("text=0 of 16 patches visible")
            assert re.findall(r"[\d.]+%", status.inner_text()) != first
            page.get_by_label("Column").fill("2")
            page.get_by_role("button", name="framed patch").press("Enter")
            page.wait_for_selector("text=1 of 16 patches visible")
            assert_fits(page)
        finally:
            app.close()


@pytest.mark.parametrize("classifier", [None, "org/dinov2-pet"])
def test_the_space_starts_the_same_app(monkeypatch, tmp_path, classifier):
    gradio = pytest.importorskip("gradio")
    given = []
    monkeypatch.setattr(run, "run_app", given.append)
    write_space(tmp_path, "org/salvage-pet", classifier)
    runpy.run_path(str(tmp_path / "app.py"))
    assert given == [run.AppArguments("org/salvage-pet", classifier)]
    _, settings, text = (tmp_path / "README.md").read_text().split("---", 2)
    settings = yaml.safe_load(settings)
    assert settings["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0]
    assert settings["models"] == ["org/salvage-pet"]
    assert ("org/dinov2-pet" in text) == bool(classifier)
