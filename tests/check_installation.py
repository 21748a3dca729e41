"""What a user of the wheel has: `make package` runs this by the Python of an environment without the checkout.

HF_HUB_OFFLINE=1 HF_HOME=FOLDER/home python -I tests/check_installation.py FOLDER   (an empty one, where it writes)

It is no pytest module, because the tests' own settings and paths would hide what an installation lacks.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import evaluate
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline

BIN = Path(sys.executable).parent


def run(*words: str, status: int = 0) -> str:
    """Runs a program of the environment; returns what it wrote."""
    print(f"$ {' '.join(words)}", flush=True)
    command = [str(BIN / words[0]), *words[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800)
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}"
    return done.stdout


def check_commands() -> None:
    from salvage_hf.commands import COMMANDS

    assert run("salvage", "--version") == f"salvage {metadata('salvage-hf')['Version']}\n"
    overview = run("salvage")
    assert all(f"  {name}" in overview for name in COMMANDS)
    assert "usage: salvage train " in run("salvage", "train", "--help")
    # The recipe is read, and the command line wins over it.
    told = run("salvage", "train", "--config", "pet/explainer", "--new_subsets", "0", status=2)
    assert told.endswith("new_subsets must be at least 1, got 0 (with the arguments in 'pet/explainer')\n")


def check_demo() -> Path:
    """Trains, scores and draws; returns a picture."""
    assert "Open demo" in run("salvage", "demo", "--fast", "--output_dir", "demo")
    picture = sorted(Path("demo/data/val/checks").glob("*.png"))[0]
    run("salvage", "explain", str(picture), "--model", "demo/explainer", "--output", "map.png")
    assert min(Image.open("map.png").size) > 100
    recipe = Path("demo/explainer/recipe.yaml")
    launched = recipe.read_text().splitlines()[0].removeprefix("# ").replace("recipe.yaml", str(recipe)).split()
    run(*launched, "--max_train_steps", "1", "--output_dir", "again")
    assert json.loads(Path("again/all_results.json").read_text())["step"] == 1
    return picture


def check_python(picture: Path) -> None:
    """transformers and evaluate find explainer and metrics, without an import of this library."""
    classes = pipeline("image-classification", model="demo/explainer", trust_remote_code=True)(str(picture))
    assert len(classes) == 4
    model = AutoModel.from_pretrained("demo/explainer", trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained("demo/explainer")
    pixel_values = processor(Image.open(picture), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(pixel_values)
    assert out.attributions.shape == (1, 64, 4)
    target = out.logits.argmax(-1)
    run("salvage", "install-metrics")
    scores = evaluate.load("srg").compute(
        predictions=out.attributions[:, :, target[0]],
        references=target,
        pixel_values=pixel_values,
        model="demo/classifier",
    )
    assert -1 <= scores["srg"] <= 1


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    check_commands()
    check_python(check_demo())
    import salvage_hf

    assert Path(salvage_hf.__file__).is_relative_to(sys.prefix), salvage_hf.__file__
    print("The wheel has everything.")
