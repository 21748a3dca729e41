"""The README's Python runs as it stands, in a new process where org/... are folders with tiny models."""

import os
import re
import subprocess
import sys
from pathlib import Path

from salvage_hf import attribution_methods

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_python_of_the_readme_runs(tiny_classifier, salvage_model, save_processor, tmp_path):
    explainer = salvage_model()
    for name, model in {"dinov2-pet": tiny_classifier(), "salvage-pet": explainer}.items():
        model.save_pretrained(tmp_path / "org" / name)
        save_processor(tmp_path / "org" / name)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 5
    before = "from PIL import Image\nimages = [Image.new('RGB', (30, 20), color) for color in ('red', 'green')]\n"
    before += "images[0].save('cat.png')\n"
    # The second block hands the pixels on without a name.
    between = "pixel_values = processor(images, return_tensors='pt')['pixel_values']\n"
    after = """
from salvage_hf import attribution_methods
maps = attribution_methods.load("last_attention", v)(pixel_values, classes)
assert maps.shape == attributions.shape == (2, 16)
results = r_srg.compute(
    predictions=attributions, references=classes, pixel_values=pixel_values, model=v, budget=160, seed=0
)
assert refined.attributions.shape == refined.stderr.shape == (2, 16)
assert results["num_forwards"] <= 2 * 160
"""
    code = before + blocks[0] + blocks[1] + between + "".join(blocks[2:]) + after
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_the_readme_names_methods_that_exist():
    names = re.search(r"--methods ([a-z_ ]+)", README).group(1).split()
    assert set(names) <= set(attribution_methods.REGISTRY)
    listed = README[README.index("Methods, for DINOv2") : README.index("Most need")]
    assert set(re.findall(r"`([a-z_]+)`", listed)) == set(attribution_methods.REGISTRY)
