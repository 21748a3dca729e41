"""Explainers know the classifier that they were trained for, and are checked against the one that they meet."""

import json
import logging

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from salvage_hf import MaskedClassifier, attribution_methods
from salvage_hf.files import fingerprint
from salvage_hf.masking import check_provenance, processing_digest, provenance
from salvage_hf.modeling import SalvageModel


@pytest.fixture
def saved_classifier(tiny_classifier, save_processor, tmp_path):
    """A factory: saves a tiny classifier with its processor, and loads it as v(S)."""

    def save(name="classifier", seed=0, masking="drop", **processor):
        folder = tmp_path / name
        tiny_classifier(seed=seed).save_pretrained(folder)
        save_processor(folder, **processor)
        return MaskedClassifier.from_pretrained(str(folder), masking=masking)

    return save


def explainer_of(v, folder):
    SalvageModel.from_classifier(v.classifier, explained_classifier=provenance(v)).save_pretrained(folder)
    return folder


def test_an_explainer_is_taken_by_the_classifier_it_was_trained_for(saved_classifier, tmp_path, caplog):
    explainer = explainer_of(saved_classifier(), tmp_path / "explainer")
    again = saved_classifier()  # loaded once more
    with caplog.at_level(logging.WARNING, "salvage_hf"):
        attribution_methods.load("salvage", again, explainer=explainer)
    assert not caplog.records


def test_what_is_stored_names_no_local_folder(saved_classifier, tmp_path):
    explainer = explainer_of(saved_classifier("my-classifier"), tmp_path / "explainer")
    stated = json.loads((explainer / "config.json").read_text())["explained_classifier"]
    assert stated["name"] == "my-classifier"
    assert str(tmp_path) not in (explainer / "config.json").read_text()
    assert AutoModel.from_pretrained(explainer).config.explained_classifier == stated


def other_weights(save):
    return save("other", seed=1)


def other_config(save):
    v = save("other")
    v.classifier.config.layer_norm_eps = 1e-3
    return v


def other_masking(save):
    return save("other", masking="zero")


def other_processor(save):
    return save("other", image_mean=[0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_weights, "weights or config"),
        (other_config, "weights or config"),
        (other_masking, "masking .drop, here zero"),
        (other_processor, "image processor"),
    ],
)
def test_an_explainer_of_another_classifier_is_refused(saved_classifier, tmp_path, caplog, change, words):
    explainer, other = explainer_of(saved_classifier(), tmp_path / "explainer"), change(saved_classifier)
    with pytest.raises(ValueError, match=f"^explainer was trained for the classifier 'classifier'.*{words}"):
        attribution_methods.load("salvage", other, explainer=explainer)
    with caplog.at_level(logging.WARNING, "salvage_hf"):
        attribution_methods.load("salvage", other, explainer=explainer, allow_other_classifier=True)
    assert "was trained for the classifier 'classifier'" in caplog.text


def test_an_explainer_that_states_nothing_is_taken_with_a_warning(saved_classifier, salvage_model, caplog):
    with caplog.at_level(logging.WARNING, "salvage_hf"):
        attribution_methods.load("salvage", saved_classifier(), explainer=salvage_model())
    assert "does not state which classifier it was trained for" in caplog.text


def test_a_classifier_without_a_known_processor_is_compared_by_the_rest(saved_classifier, caplog):
    v = saved_classifier()
    stated = provenance(v)
    check_provenance(stated, MaskedClassifier(v.classifier))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_digest_of_a_processor_does_not_depend_on_its_backend(save_processor, tmp_path):
    save_processor(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    before = processing_digest(processor)
    settings = {**json.loads(processor.to_json_string()), "do_pad": False}
    another_backend = type("Processor", (), {**settings, "size": {"shortest_edge": 20, "height": None}})
    assert processing_digest(another_backend) == before
    processor.image_std = [0.9, 0.9, 0.9]
    assert processing_digest(processor) != before


def test_explainers_with_other_patches_are_refused(tiny_classifier, salvage_model):
    v = MaskedClassifier(tiny_classifier(), masking="zero", patch_size=8)
    with pytest.raises(ValueError, match="explainer has patches of 4 pixels, the classifier of 8"):
        attribution_methods.load("salvage", v, explainer=salvage_model())


def test_an_explainer_without_its_head_or_with_nan_is_refused(tiny_classifier, salvage_model, tmp_path):
    v, explainer = MaskedClassifier(tiny_classifier()), salvage_model()
    explainer.save_pretrained(tmp_path, state_dict=explainer.backbone.state_dict(prefix="backbone."))
    with pytest.raises(ValueError, match=r"lacks .* weights of a SalvageModel"):
        attribution_methods.load("salvage", v, explainer=tmp_path)
    with torch.no_grad():
        explainer.head.input_projection.bias[0] = float("nan")
    with pytest.raises(ValueError, match="weights that are NaN or infinite"):
        attribution_methods.load("salvage", v, explainer=explainer)


@pytest.mark.parametrize("family", ["dinov2", "vit"])
def test_a_fingerprint_stays_through_a_loss_and_through_loading_in_another_precision(tiny_classifier, images, family):
    classifier = tiny_classifier(family)
    before = fingerprint(classifier)
    classifier(images(2), labels=torch.tensor([0, 1]))  # transformers then writes problem_type into the config
    assert fingerprint(classifier) == before
    assert fingerprint(classifier.double()) == before
    classifier.config.layer_norm_eps = 1e-3
    assert fingerprint(classifier) != before


def test_a_fingerprint_covers_the_configs_in_a_config(salvage_model):
    model = salvage_model()
    before = fingerprint(model)
    model.config.backbone_config.dtype = torch.float64
    assert fingerprint(model) == before
    model.config.backbone_config.layer_norm_eps = 1e-3
    assert fingerprint(model) != before
