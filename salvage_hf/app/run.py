"""Starts the app: what `salvage app` and the Space do."""

from dataclasses import dataclass
from pathlib import Path

from ..arguments import arg, check_arguments
from ..explainer import Explainer

#: The explainer that `salvage demo` leaves.
_DEMO = "demo_output/explainer"


@dataclass
class AppArguments:
    """Arguments of `salvage app`."""

    model: str = arg(_DEMO, "A Salvage explainer or any image classifier: a folder, or a name on the Hub.")
    classifier: str | None = arg(
        None, "The classifier that the explainer explains: a folder, or a name. The one that it states when not given."
    )
    device: str | None = arg(None, "Where to compute, for example cpu or cuda; a GPU if there is one when not given.")
    share: bool = arg(False, "Also open the page to everyone who has its link, by Gradio's server, for some days.")

    def __post_init__(self):
        check_arguments(self)


def run_app(args: AppArguments) -> None:
    """Opens the page and serves it until it is stopped.

    Raises:
        ModuleNotFoundError: where gradio or matplotlib is missing.
        TypeError, ValueError: where the models cannot be loaded or do not fit each other.
        OSError: where no port is free.
    """
    from .layout import Page
    from .session import Models
    from .words import CSS

    if args.model == _DEMO and not Path(_DEMO).is_dir():
        raise ValueError(
            "model is needed: a Salvage explainer or an image classifier, a folder or a name on the Hub; `salvage "
            f"demo` makes an explainer in {_DEMO!r}, which is taken when none is given"
        )
    models = Models(Explainer(args.model, classifier=args.classifier, device=args.device))
    Page(models).app.launch(share=args.share, css=CSS, max_file_size="50mb")
