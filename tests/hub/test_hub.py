"""Publishing and loading, with the package and without it: every process here is one a user could start."""

import textwrap
from pathlib import Path

import pytest
import torch
from fresh_processes import run_fresh
from local_hub import run_on

from salvage_hf import modeling
from salvage_hf.modeling import SalvageForImageClassification, SalvageModel

# The process of someone who has only torch and transformers.
WITHOUT_THE_PACKAGE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "salvage_hf":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NotInstalled())
try:
    import salvage_hf
    raise SystemExit("salvage_hf can be imported")
except ModuleNotFoundError:
    pass
"""


def code_files(folder):
    return {path.name: path.read_text() for path in Path(folder).glob("*.py")}


@pytest.fixture
def expected(salvage_model, images, save_processor, tmp_path):
    """Writes org/salvage-pet with its processor, and the model's output for some images."""
    model = salvage_model()
    folder = tmp_path / "org" / "salvage-pet"
    model.save_pretrained(folder)
    save_processor(folder)
    with torch.no_grad():
        torch.save({"pixel_values": images(2), "output": dict(model(images(2)))}, tmp_path / "expected.pt")
    return folder


@pytest.mark.parametrize("model_class", [SalvageModel, SalvageForImageClassification])
def test_the_saved_code_is_the_modeling_folder(salvage_model, tmp_path, model_class):
    salvage_model(model_class=model_class).save_pretrained(tmp_path)
    source = code_files(Path(modeling.__file__).parent)
    del source["__init__.py"]  # it registers the Auto classes, which is of use in this package only
    assert code_files(tmp_path) == source
    names = ("configuration", "geometry", "modeling", "pipeline")
    assert set(source) == {f"{name}_salvage.py" for name in names}


# difference 0, from either Auto class, whatever "org/salvage-pet" is: a folder here or a repository on the Hub
LOAD = """
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

expected = torch.load("expected.pt")
for auto_class in (AutoModel, AutoModelForImageClassification):
    model = auto_class.from_pretrained("org/salvage-pet", **arguments)
    with torch.no_grad():
        output = model(expected["pixel_values"])
    for name, value in expected["output"].items():
        assert torch.equal(output[name], value), name
subsets = torch.rand(2, 5, 16) < 0.5
assert model.subset_logits(output, subsets).shape == (2, 5, 3)
processor = AutoImageProcessor.from_pretrained("org/salvage-pet")
assert processor.crop_size["height"] == 16
print(type(model).__module__, type(model).__name__)
"""


def test_remote_code_from_a_folder(expected, tmp_path):
    """The loaded model can be saved again with its code, and loaded once more."""
    again = """
    model.save_pretrained("org/again")
    AutoModel.from_pretrained("org/again", **arguments)
    """
    code = WITHOUT_THE_PACKAGE + "arguments = {'trust_remote_code': True}\n" + LOAD + textwrap.dedent(again)
    printed = run_fresh(code, tmp_path, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert "transformers_modules" in printed
    assert "SalvageForImageClassification" in printed
    assert code_files(tmp_path / "org" / "again") == code_files(expected)


def test_push_to_hub_and_load(expected, tmp_path):
    """Pushed and loaded by a process with the package, then loaded as remote code by one without it."""
    folder = expected.rename(tmp_path / "trained")  # otherwise the folder would be found in place of the repository
    push = """
    import salvage_hf.modeling
    from transformers import AutoImageProcessor, AutoModel

    AutoModel.from_pretrained("trained").push_to_hub("org/salvage-pet")
    AutoImageProcessor.from_pretrained("trained").push_to_hub("org/salvage-pet")
    arguments = {}
    """
    printed = run_on(tmp_path, textwrap.dedent(push) + LOAD)
    assert "salvage_hf.modeling.modeling_salvage SalvageForImageClassification" in printed
    repository = tmp_path / "hub" / "models" / "org" / "salvage-pet"
    assert code_files(repository) == code_files(folder)
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {p.name for p in repository.iterdir()}
    assert str(tmp_path) not in (repository / "config.json").read_text()
    code = WITHOUT_THE_PACKAGE + "arguments = {'trust_remote_code': True}\n" + LOAD
    assert "transformers_modules.org.salvage" in run_on(tmp_path, code, HF_HOME=str(tmp_path / "another_home"))
