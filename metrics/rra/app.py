"""The app of this metric's Space."""

from pathlib import Path

from salvage_hf.evaluate_modules.spaces import build

app = build(Path(__file__).with_name("rra.py"))

if __name__ == "__main__":
    app.launch()
