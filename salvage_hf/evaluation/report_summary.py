"""The report's first page in plain words: what was measured, which method is best, whether that is sure, what it costs.

Every sentence is made from the numbers of a benchmark or an ablation, also where they do not favour this library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ranking import TRAINED, Ranking, first_score, ranking
from .reading import Benchmark
from .report_settings import shown
from .report_tables import CLASSIFYING
from .results import finished_runs, method_titles
from .scores import TABLES, scores_of_table
from .significance import MIN_MARKED
from .tables import percent


@dataclass(frozen=True)
class Point:
    """A paragraph: the words that it begins with, which are printed in bold, and the rest."""

    lead: str
    text: str


@dataclass(frozen=True)
class Summary:
    """What the page says of a benchmark or an ablation: its title, the answer in a sentence or two, and the rest."""

    title: str
    answer: str
    points: Sequence[Point]


def benchmark_summary(dataset: str, benchmark: Benchmark) -> Summary:
    """The summary of a benchmark.

    Args:
        dataset: its title on the page.
        benchmark: the benchmark.
    """
    methods = benchmark.results["methods"]
    score = first_score(methods)
    first = ranking(methods, score) if score else None
    answer, points = [_measured(dataset, benchmark)], [_judged(first)]
    if first:
        answer.append(_winner(methods, first))
        points += [*_trained(methods, first), *_other_scores(methods, first)]
    answer.append(_costs(methods, first))
    points += _classification(benchmark.results["classification"])
    return Summary(dataset, " ".join(answer), points)


def ablation_summary(dataset: str, ablation: Mapping[str, Any]) -> Summary:
    """The summary of an ablation: which arm is best, and whether its seeds lie above those of the others.

    Args:
        dataset: its title on the page.
        ablation: what its ablation.json holds.
    """
    seeds = {
        arm.title: [100 * float(np.mean(run["r_srg"])) for run in runs.values()]
        for arm, runs in finished_runs(ablation)
    }
    best, *others = sorted(seeds, key=lambda title: float(np.mean(seeds[title])), reverse=True)
    answer = f"In the ablation on {dataset}, {_quoted(best)} has the highest R-SRG, {_spread(seeds[best])}"
    if others:
        second = f"{_quoted(others[0])}, {_spread(seeds[others[0]])}"
        if len(seeds[best]) == 1 or len(seeds[others[0]]) == 1:
            answer += f", before {second}: single runs, of which nothing is sure"
        elif min(seeds[best]) > max(seeds[others[0]]):
            answer += f"; each of its seeds lies above all those of the next, {second}"
        else:
            answer += f"; its seeds and those of the next overlap, {second}"
    numbers = [f"{_quoted(title)} {_spread(values)}" for title, values in seeds.items()]
    text = (
        f"Explainers of one classifier were trained in {len(seeds)} ways, with "
        f"{ablation['settings']['max_train_steps']:,} steps each. R-SRG of their maps in percent, mean and range over "
        f"the seeds: {_joined(numbers)}. Where ranges overlap, nothing is sure; so few runs allow no test."
    )
    return Summary(f"Ablation on {dataset}", f"{answer}.", [Point("Which part of the training matters.", text)])


def _spread(values: Sequence[float]) -> str:
    """A mean, and from two values on their range."""
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)" if len(values) > 1 else mean


def _measured(dataset: str, benchmark: Benchmark) -> str:
    """How many methods explained which classifier on which images, and what an explanation is."""
    results = benchmark.results
    rows, columns = results["grid_size"]
    name = benchmark.recipe.arguments.get("model_name_or_path") if benchmark.recipe else None
    classifier = f"the classifier “{shown(name)}”" if isinstance(name, str) and name else "an image classifier"
    number, images = len(results["methods"]), len(results["ids"])
    return (
        f"{f'{number} methods' if number > 1 else 'One method'} explained {classifier} on {images:,} images of "
        f"{dataset}. An explanation is a map that says how much each of the {rows} x {columns} = {rows * columns} "
        "patches of an image speaks for the true class."
    )


def _judged(first: Ranking | None) -> Point:
    """How a map gets its score."""
    text = (
        "The classifier itself is asked: patches are hidden, and a good map says which of them it cannot do without. "
        "Scores are in percent, mean ± standard error over images."
    )
    return Point("How a map is judged.", f"{text} {first.score.title}: {first.score.meaning}" if first else text)


def _winner(methods: Mapping[str, Mapping[str, Any]], first: Ranking) -> str:
    """Who is first by a score, by how much, and whether that is sure."""
    titles, names, score = method_titles(methods), first.names, first.score.title
    if len(names) == 1:
        return f"{_with_score(titles, first, names[0])} was scored by {score} alone, with nothing to compare it with."
    best, second = (_with_score(titles, first, name) for name in names[:2])
    by, tested = f"By {score}, which is explained below,", f"paired bootstrap over {first.images} images"
    if first.tied is None:
        few = f"{first.images} images are too few to say whether this is chance ({MIN_MARKED} are needed)"
        return f"{by} {best} comes before {second}; {few}."
    lead = _interval(first.compared(names[0], names[1]))
    if not first.tied:
        return f"{by} {best} explains best, before {second}. Its lead, {lead}, is no chance ({tested})."
    others = _joined([_quoted(titles[name]) for name in first.tied])
    return f"{by} {best} comes before {second} by {lead}, but cannot be told apart from {others} ({tested})."


def _trained(methods: Mapping[str, Mapping[str, Any]], first: Ranking) -> list[Point]:
    """Where the trained explainers stand, each with what it lacks to the best method."""
    titles, names = method_titles(methods), first.names
    trained = [name for name in names if name in TRAINED]
    if not trained or len(names) == 1:
        return []
    wins = trained[0] == names[0]
    sentences = [] if wins else [f"No explainer that was trained for this classifier is first by {first.score.title}."]
    for name in trained:
        sentence = f"{_with_score(titles, first, name)} is in place {names.index(name) + 1} of {len(names)}"
        if name != names[0]:
            sentence += f", {_gap(titles, first, names[0], name)}"
        if (above := names[names.index(name) - 1]) != names[0] and name != names[0]:
            sentence += f", and {_gap(titles, first, above, name)}"
        sentences.append(f"{sentence}.")
    if "random" in names and names[0] != "random":
        sentences.append(f"Random maps have {_score(first, 'random')}: a method near that shows nothing.")
    return [Point("The explainers trained for this classifier.", " ".join(sentences))]


def _gap(titles: Mapping[str, str], first: Ranking, better: str, worse: str) -> str:
    """By how much a method is behind a better one, and whether that is sure."""
    mean, low, high = first.compared(better, worse)
    points = f"{100 * mean:.1f} points behind {_quoted(titles[better])}"
    if first.tied is None:
        return points
    sure = "no chance" if first.is_apart(better, worse) else "which may be chance"
    return f"{points} ({sure}: {100 * low:.1f} to {100 * high:.1f})"


def _interval(lead: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in lead)
    return f"{mean:.1f} points ({low:.1f} to {high:.1f} in 90% of the resamples)"


def _other_scores(methods: Mapping[str, Mapping[str, Any]], first: Ranking) -> list[Point]:
    """The best by the other scores of the first table."""
    titles, points = method_titles(methods), []
    for score in scores_of_table(next(iter(TABLES))):
        other = ranking(methods, score)
        if score.name == first.score.name or other is None or len(other.names) < 2:
            continue
        text = f"{score.meaning} First is {_with_score(titles, other, other.names[0])}"
        if other.tied:
            text += f", not told apart from {_joined([_quoted(titles[tied]) for tied in other.tied])}"
        elif other.tied is not None:
            text += ", told apart from all others"
        points.append(Point(f"By {score.title}.", f"{text}."))
    return points


def _costs(methods: Mapping[str, Mapping[str, Any]], first: Ranking | None) -> str:
    """Forwards and time of the trained explainers and of the best other method."""
    titles = method_titles(methods)
    order = first.names if first else list(titles)
    others = [name for name in order if name not in TRAINED and name != "random"][:1]
    named = [name for name in order if name in TRAINED or name in others] or order[:1]
    costs = [
        f"{methods[name]['forwards']:,.1f} by {_quoted(titles[name])} ({_time(methods[name]['seconds'])})"
        for name in named
    ]
    return (
        f"What an explanation costs, in forwards of the classifier (and in time on the machine used): {_joined(costs)}."
    )


def _classification(classification: Mapping[str, Any]) -> list[Point]:
    """How often the explainers are right when they are read as classifiers."""
    labels = np.array(classification["labels"])
    models = {title: classification[name] for name, title in CLASSIFYING.items() if name in classification}
    if len(models) < 2 or not len(labels):
        return []
    shares = [
        f"{_quoted(title)} {100 * np.mean(np.array(entry['predictions']) == labels):.1f}%"
        for title, entry in models.items()
    ]
    text = f"An explainer also says which class it finds. Right on the {len(labels):,} images are: {_joined(shares)}."
    return [Point("Explainers as classifiers.", text)]


def _time(seconds: float) -> str:
    """Seconds, or milliseconds below one: "0.21 ms"."""
    if seconds >= 0.9995:
        return f"{seconds:,.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.00995 else f"{1000 * seconds:.2g} ms"


def _quoted(title: str) -> str:
    return f"“{title}”"


def _score(order: Ranking, name: str) -> str:
    """The score of a method as the tables have it, in one piece."""
    return percent(order.values[name]).replace(" ", "\N{NO-BREAK SPACE}")


def _with_score(titles: Mapping[str, str], order: Ranking, name: str) -> str:
    return f"{_quoted(titles[name])} ({_score(order, name)})"


def _joined(parts: Sequence[str]) -> str:
    """Parts of a sentence with commas, and "and" before the last."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
