"""The files of a Space that shows the app."""

from pathlib import Path

from jinja2 import Template

#: The card of the Space, whose front matter says with which Gradio it runs.
TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "space_template.md"

_APP = '''"""The app of salvage-hf as a Space."""

from salvage_hf.app.run import AppArguments, run_app

run_app(AppArguments(model={model!r}, classifier={classifier!r}))
'''


def write_space(folder: Path, model: str, classifier: str | None) -> None:
    """Writes app, requirements and card into a folder.

    Args:
        folder: an empty one.
        model: a Salvage explainer or an image classifier on the Hub.
        classifier: that of the explainer on the Hub, where the explainer does not state it.
    """
    (folder / "app.py").write_text(_APP.format(model=model, classifier=classifier))
    (folder / "requirements.txt").write_text("salvage-hf[app]\n")
    card = Template(TEMPLATE.read_text()).render(model=model, classifier=classifier)
    (folder / "README.md").write_text(card + "\n")
