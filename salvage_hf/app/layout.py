"""The page of the app: which controls there are, and which event of `session` each of them starts. Needs gradio."""

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
import gradio as gr

from . import session as events
from . import words
from .pictures import files_of, map_picture, visible_picture
from .session import EVIDENCE, Models, Session

#: What asks a model or changes a session runs one after another: attribution methods change the classifier while they
#: look into it, and of two events at once a session would keep one.
_ASKS: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private"}
_LOOKS: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

#: While a slider moves, the place where it comes to rest is never left out.
_SLIDES: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}

#: The most forwards that the page spends on a map, and the step, which is more than the fewest of `refinement`.
_MOST_FORWARDS, _FORWARDS_STEP = 512, 32

_TITLE = """
# What does the classifier look at?
Drop a picture, choose a class, and hide patches: **v(S)** is what the classifier says of the visible patches S,
**u(S)** what the explainer expects it to say.
"""


def _in_words(handler: Callable) -> Callable:
    """A handler whose ValueError is a message on the page, and no fault of the program."""

    @functools.wraps(handler)
    def handle(*inputs):
        try:
            return handler(*inputs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return handle


class Page:
    """The controls, and the handlers of their events, which turn a session into what is shown of it.

    Args:
        models: what the sessions of all visitors ask.

    Attributes:
        app: the `gradio.Blocks`.
    """

    def __init__(self, models: Models):
        self.models, self.has_v, self.has_u = models, models.explainer.v is not None, models.explainer.classifies
        self.folder = tempfile.TemporaryDirectory(prefix="salvage-app-")
        with gr.Blocks(title="Salvage", analytics_enabled=False, delete_cache=(3600, 3600)) as self.app:
            self.session = gr.State(None, time_to_live=6 * 3600)
            gr.Markdown(_TITLE)
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    self._add_choices()
                with gr.Column(scale=6, min_width=300, visible=False) as self.work, gr.Row():
                    with gr.Column(min_width=300):
                        self._add_maps()
                    with gr.Column(min_width=300):
                        self._add_patches()
            self._connect()

    # Controls

    def _add_choices(self) -> None:
        self.file = gr.File(label="Picture", file_types=["image"], type="filepath", height=120)
        self.warning = gr.HTML()
        with gr.Column(visible=False) as self.choices:
            self.target = gr.Dropdown(label="Class", choices=[], interactive=True)
            self.table = gr.HTML()

    def _add_maps(self) -> None:
        gr.Markdown("### Map: red speaks for the class, blue against it")
        self.map = self._picture("Map", "map")
        self.key = gr.HTML()
        self.evidence = gr.Radio(
            [("for and against", "all"), ("for, φ+", "positive"), ("against, φ-", "negative")],
            value=EVIDENCE[0],
            label="Evidence",
            visible=self.has_u,
        )
        self.opacity = gr.Slider(0, 100, 85, step=5, label="Opacity of the map in percent")
        self.budget = gr.Slider(
            0,
            _MOST_FORWARDS,
            0,
            step=_FORWARDS_STEP,
            visible=self.has_v,
            label="Budget: forwards of the classifier for each map",
            info="0: the map as the method gives it. More improve it, and take longer.",
        )
        self.method = gr.Dropdown(
            label="Another method beside it",
            choices=words.method_choices(self.models.methods),
            value="",
            visible=bool(self.models.methods),
            interactive=True,
        )
        self.other = self._picture("The other method's map", "other", visible=False)
        self.other_key = gr.HTML(visible=False)

    def _add_patches(self) -> None:
        gr.Markdown("### Visible patches: click to hide or show")
        self.seen = self._picture("Visible patches", "seen")
        self.answers = gr.HTML()
        with gr.Row():
            self.buttons = {
                gr.Button(title, size="sm", min_width=70): event
                for title, event in (("All", events.show_all), ("None", events.show_none), ("Invert", events.invert))
            }
        self.share = gr.Slider(0, 100, 100, step=1, label="Visible patches in percent, along the map's order")
        self.order = gr.Radio(
            [("highest first (insertion)", True), ("lowest first (deletion)", False)],
            value=True,
            label="Which are shown first",
        )
        with gr.Row():
            self.row = gr.Number(1, label="Row", minimum=1, step=1, precision=0, min_width=70)
            self.column = gr.Number(1, label="Column", minimum=1, step=1, precision=0, min_width=70)
        self.toggle = gr.Button("Hide or show the framed patch", size="sm")
        self.save = gr.Button("Make files: pictures, figure, map as npz", size="sm")
        self.files = gr.Files(label="Files", visible=False)

    def _picture(self, label: str, name: str, **options: Any) -> gr.Image:
        # JPEG, because to write another format takes longer than the models do.
        return gr.Image(
            label=label,
            show_label=False,
            elem_id=name,
            elem_classes="picture",
            format="jpeg",
            interactive=False,
            buttons=["fullscreen"],
            **options,
        )

    # Events

    def _connect(self) -> None:
        seen = [self.session, self.seen, self.answers, self.row, self.column]
        moved, maps = [*seen, self.share], [self.map, self.key, self.other, self.other_key, self.evidence]
        view = [self.opacity, self.evidence]
        chosen = [self.session, self.table, *maps, self.answers]
        started = [self.session, self.warning, self.work, self.choices, self.target, self.table, self.files, *maps,
                   *moved[1:]]  # fmt: skip
        self.file.change(self._start, [self.file, self.method, self.budget, *view], started, **_ASKS)
        inputs = [self.session, self.target, self.method, self.budget, *view]
        for choice in (self.target, self.method):
            choice.input(_in_words(self._choose), inputs, chosen, **_ASKS)
        self.budget.input(_in_words(self._choose), inputs, chosen, trigger_mode="always_last", **_ASKS)
        self.evidence.input(self._maps, [self.session, *view], maps, **_LOOKS)
        self.opacity.input(self._maps, [self.session, *view], maps, trigger_mode="always_last", **_LOOKS)
        for picture in (self.map, self.seen, self.other):
            picture.select(_in_words(self._click), self.session, moved, show_progress="hidden", **_ASKS)
        for button, event in self.buttons.items():
            handler = functools.partial(self._change, event)
            button.click(_in_words(handler), self.session, moved, show_progress="hidden", **_ASKS)
        along = [self.session, self.share, self.order]
        self.share.input(_in_words(self._slide), along, seen, **_SLIDES, **_ASKS)
        self.order.input(_in_words(self._slide), along, seen, show_progress="hidden", **_ASKS)
        place = [self.session, self.row, self.column]
        for number in (self.row, self.column):
            number.input(self._move, place, [self.session, self.seen], **_SLIDES, **_ASKS)
        self.toggle.click(_in_words(self._toggle), place, moved, show_progress="hidden", **_ASKS)
        self.save.click(_in_words(self._files), [self.session, *view], self.files, **_ASKS)

    def _start(self, file: str | None, method: str, budget: int, opacity: float, evidence: str) -> list[Any]:
        hidden = [gr.update(visible=False)] * 2
        rest: list[Any] = [gr.skip()] * 13
        if file is None:
            return [None, "", *hidden, *rest]
        try:
            session = self.models.start(file, method, budget)
        except ValueError as error:
            return [None, words.warnings([f"{str(error)[0].upper()}{str(error)[1:]}."]), *hidden, *rest]
        target = gr.update(choices=words.class_choices(session.whole), value=session.target)
        shown = [gr.update(visible=True)] * 2
        maps, moved = self._maps(session, opacity, evidence), self._moved(session)
        return [session, words.warnings(session.whole.warnings), *shown, target, words.probabilities(session),
                gr.update(value=None, visible=False), *maps, *moved[1:]]  # fmt: skip

    def _choose(
        self, session: Session, target: int, method: str, budget: int, opacity: float, evidence: str
    ) -> list[Any]:
        session = self.models.choose(session, target, method, budget)
        maps = self._maps(session, opacity, evidence)
        return [session, words.probabilities(session), *maps, words.answers(session, self.models.answers(session))]

    def _maps(self, session: Session, opacity: float, evidence: str) -> list[Any]:
        values, limit = events.evidence_of(session, evidence)
        shown = [map_picture(session.main, values, limit, opacity / 100), words.key(session.main, limit)]
        other = session.beside
        if other is None:
            shown += [gr.update(visible=False)] * 2
        else:
            picture = map_picture(other, other.attributions[:, 0], other.limit, opacity / 100)
            shown += [
                gr.update(value=picture, visible=True),
                gr.update(value=words.key(other, other.limit), visible=True),
            ]
        return [*shown, gr.update(visible=self.has_u and not session.budget)]

    def _seen(self, session: Session) -> list[Any]:
        """The session, what is visible, the answers, and the row and the column of the cursor."""
        row, column = divmod(session.cursor, session.whole.grid_size[1])
        given = words.answers(session, self.models.answers(session))
        return [session, visible_picture(session), given, row + 1, column + 1]

    def _moved(self, session: Session) -> list[Any]:
        """As `_seen`, and the share of visible patches."""
        return [*self._seen(session), round(100 * session.num_visible / len(session.visible))]

    def _change(self, event: Callable[[Session], Session], session: Session) -> list[Any]:
        return self._moved(event(session))

    def _click(self, session: Session, place: gr.SelectData) -> list[Any]:
        patch = events.patch_at(session, *place.index)
        if patch is None:
            raise ValueError("the model does not see this part of the picture, which is drawn pale")
        return self._moved(events.toggle(session, patch))

    def _slide(self, session: Session, share: float, highest_first: bool) -> list[Any]:
        return self._seen(events.show_share(session, share / 100, highest_first))

    def _toggle(self, session: Session, row: Any, column: Any) -> list[Any]:
        return self._moved(events.toggle(session, events.patch_in_grid(session, row, column)))

    def _move(self, session: Session, row: Any, column: Any) -> list[Any]:
        try:
            session = events.move(session, events.patch_in_grid(session, row, column))
        except ValueError:  # a number is not yet typed to its end
            return [gr.skip(), gr.skip()]
        return [session, visible_picture(session)]

    def _files(self, session: Session, opacity: float, evidence: str) -> Any:
        # Gradio copies what is in it, and deletes its copies after an hour; the folders go when the program ends.
        folder = Path(tempfile.mkdtemp(dir=self.folder.name))
        for name, content in files_of(session, evidence, opacity / 100).items():
            (folder / name).write_bytes(content)
        return gr.update(value=[str(file) for file in sorted(folder.iterdir())], visible=True)
