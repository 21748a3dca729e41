"""The report's tables of classification and of cost; those of scores are in `tables`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

from ..objectives import OBJECTIVES
from .tables import Cell, Table

#: The models that classify, in the order of the paper's Table 4: name in results.json -> title.
CLASSIFYING = {
    "classifier": "Classifier",
    **{name: objective.title for name, objective in reversed(OBJECTIVES.items())},
}


def classification_table(results_of: Mapping[str, Mapping[str, Any]]) -> Table:
    """The paper's Table 4: how well classifier and explainers classify, and how often they agree.

    Args:
        results_of: data set -> what its results.json holds.
    """
    several, rows = len(results_of) > 1, []
    for dataset, results in results_of.items():
        for name, title in CLASSIFYING.items():
            if name in results["classification"]:
                cells = [*([dataset] if several else []), title, *_classification_cells(results, name)]
                rows.append([Cell(text) for text in cells])
    header = ["model", "accuracy", "precision", "recall", "F1", "MCC", "agrees with the classifier"]
    return Table(["data set", *header] if several else header, rows)


def _classification_cells(results: Mapping[str, Any], name: str) -> list[str]:
    """Accuracy, precision, recall, F1, Matthews' correlation, and the share of images where the classifier agrees."""
    labels, predicted = results["classification"]["labels"], results["classification"][name]["predictions"]
    average = "binary" if len(results["label_names"]) == 1 else "macro"
    # Macro means are over the classes that the images have, and not over a class that is only predicted.
    present = None if average == "binary" else sorted(set(labels))
    *shares, _ = precision_recall_fscore_support(labels, predicted, labels=present, average=average, zero_division=0)
    same = np.mean(np.array(predicted) == results["classification"]["classifier"]["predictions"])
    # With a single class the correlation is undefined, but scikit-learn returns 0.
    correlation = f"{matthews_corrcoef(labels, predicted):.3f}" if len(set(labels)) > 1 else "-"
    return [
        *(f"{100 * share:.1f}%" for share in (accuracy_score(labels, predicted), *shares)),
        correlation,
        f"{100 * same:.1f}%",
    ]


def cost_table(methods_of: Mapping[str, Mapping[str, Mapping[str, Any]]], titles: Mapping[str, str]) -> Table:
    """Forwards and seconds per image of every method.

    Args:
        methods_of: data set -> name of a method -> its entry in results.json.
        titles: name -> title of every method, in the order of the rows.
    """
    several = len(methods_of) > 1
    header = ["method"]
    header += [f"{dataset} {unit}" if several else unit for dataset in methods_of for unit in ("forwards", "seconds")]
    rows = []
    for name, title in titles.items():
        cells = [Cell(title)]
        for methods in methods_of.values():
            entry = methods.get(name)
            texts = (f"{entry['forwards']:,.1f}", f"{entry['seconds']:.3g}") if entry else ("-", "-")
            cells += map(Cell, texts)
        rows.append(cells)
    return Table(header, rows)
