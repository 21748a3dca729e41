"""What the app says beside its pictures, as HTML. Names of labels and files are escaped, because anybody gives them."""

from collections.abc import Sequence
from html import escape

import torch

from ..attribution_methods import REGISTRY
from ..evaluation.map_panels import key_colours
from ..explanation import Explanation
from .session import Answers, Session

#: How many classes the table of probabilities has, besides the chosen one.
_NAMED = 5

#: Style sheet of the page; the colours are those of Gradio's theme, light or dark.
CSS = """
.salvage table {width: 100%; border-collapse: collapse; border: 0 !important; font-size: .95rem; margin: 0}
.salvage th, .salvage td {padding: .3rem .4rem; text-align: left; border: 0 !important; font-weight: 400;
  border-bottom: 1px solid var(--border-color-primary) !important; color: var(--body-text-color); vertical-align: top}
.salvage td.number, .salvage th.number {text-align: right; font-variant-numeric: tabular-nums}
.salvage td.number {white-space: nowrap}
.salvage tr.chosen * {font-weight: 700}
.salvage .bar {display: block; height: .4rem; background: var(--border-color-primary); min-width: 4rem}
.salvage .bar span {display: block; height: 100%; background: var(--body-text-color)}
.salvage .warning {background: #ffd23f; color: #000; border: 1px solid #000; padding: .5rem .75rem; font-weight: 700;
  margin: .25rem 0; overflow-wrap: anywhere}
.salvage .key {height: .8rem; border: 1px solid var(--border-color-primary)}
.salvage .ends {display: flex; justify-content: space-between; font-size: .85rem}
.salvage small {display: block; color: var(--body-text-color); font-size: .78rem}
.salvage table, .salvage thead, .salvage tbody, .salvage tr {border: 0 !important}
.picture .image-frame {width: 100%}
.picture img {width: auto !important; max-width: 100%; height: auto !important; max-height: 80vh; margin: auto;
  cursor: crosshair}
"""


def warnings(sentences: Sequence[str]) -> str:
    """Sentences that nobody may overlook, read aloud at once by screen readers; empty where there are none."""
    boxes = "".join(f'<p class="warning">{escape(sentence)}</p>' for sentence in sentences)
    return f'<div class="salvage" role="alert">{boxes}</div>' if boxes else ""


def probabilities(session: Session) -> str:
    """The probabilities of the whole picture by both models, side by side: the most probable classes and the chosen."""
    said = session.whole.probabilities
    highest = torch.stack(list(said.values())).max(dim=0).values  # [L]
    rows = highest.argsort(descending=True, stable=True)[:_NAMED].tolist()
    rows += [] if session.target in rows else [session.target]
    head = "".join(f'<th scope="col" class="number">{model}</th>' for model in said)
    body = ""
    for index in rows:
        chosen = ' class="chosen" aria-current="true"' if index == session.target else ""
        cells = "".join(
            f'<td class="number">{_percent(values[index])}{_bar(values[index])}</td>' for model, values in said.items()
        )
        body += f'<tr{chosen}><th scope="row">{escape(session.whole.label_names[index])}</th>{cells}</tr>'
    return f'<div class="salvage"><table><tr><th scope="col">Whole picture</th>{head}</tr>{body}</table></div>'


def answers(session: Session, given: Answers) -> str:
    """v(S) and u(S) of the chosen class, beside those of the whole picture, and the most probable class."""
    names, target = session.whole.label_names, session.target
    rows = ""
    for model, symbol, values in (("classifier", "v", given.classifier), ("explainer", "u", given.explainer)):
        if values is None:
            continue
        best, whole = int(values.argmax()), session.whole.probabilities[model][target]
        rows += (
            f'<tr><th scope="row">{symbol}(S), {model}<small>most probable: {escape(names[best])} '
            f'{_percent(values[best])}</small></th><td class="number">{_percent(values[target])}{_bar(values[target])}'
            f'</td><td class="number">{_percent(whole)}</td></tr>'
        )
    return (
        '<div class="salvage" role="status"><table><tr>'
        f'<th scope="col">{session.num_visible} of {len(session.visible)} patches visible</th><th scope="col" '
        f'class="number">{escape(names[target])}</th><th scope="col" class="number">with all</th></tr>'
        f"{rows}</table></div>"
    )


def key(explanation: Explanation, limit: float) -> str:
    """The scale of colours, and what the map is made with."""
    pale = " Pale: outside the model's view." if explanation.is_cropped else ""
    return (
        f'<div class="salvage"><div class="key" style="background: linear-gradient(90deg, {", ".join(key_colours(17))})'
        f'"></div><div class="ends"><span>{-limit:.2g} against</span><span>0</span><span>{limit:.2g} for '
        f"{escape(explanation.labels[0])}</span></div><small>{escape(explanation.made_with)}.{pale}</small></div>"
    )


def class_choices(explanation: Explanation) -> list[tuple[str, int]]:
    """All classes as (name, number), the most probable first; names that stand twice have their number."""
    said = next(iter(explanation.probabilities.values()))
    names = explanation.label_names
    return [
        (names[index] if names.count(names[index]) == 1 else f"{names[index]} ({index})", index)
        for index in said.argsort(descending=True, stable=True).tolist()
    ]


def method_choices(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Methods as (title, name), none first."""
    return [("none", ""), *((REGISTRY[name].title, name) for name in methods)]


def _percent(share: torch.Tensor) -> str:
    return f"{100 * float(share):.1f}%"


def _bar(share: torch.Tensor) -> str:
    """A bar beside a number, which says the same and is not read aloud."""
    return f'<span class="bar" aria-hidden="true"><span style="width: {100 * float(share):.1f}%"></span></span>'
