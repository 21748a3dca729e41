"""Loads the metrics by name, from any working directory.

`evaluate` looks for a name in the working directory, on the Hub and in its module cache, and has no registry to which
a library could add its own metrics. There are three ways around this: `load_metric` gives `evaluate` the path of a
metric; `register` makes `evaluate.load` know the names in this process; `seed_module_cache` makes it know them in
processes that never import this library.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import metrics
from ..tensors import one_of

_LOADING = "evaluate.loading"


def metric_scripts() -> dict[str, Path]:
    """The script of every metric by its name: `metrics/<name>/<name>.py`."""
    folder = Path(metrics.__path__[0]).resolve()
    return {script.stem: script for script in sorted(folder.glob("*/*.py")) if script.stem == script.parent.name}


def register() -> None:
    """Makes `evaluate.load` and `evaluate.combine` know the names of the metrics, in this process.

    This happens at once if `evaluate` is imported already, otherwise right after it is imported. It is not imported
    here, because that takes seconds, which would be wasted where no metric is used.
    """
    if _LOADING in sys.modules:
        _patch(sys.modules[_LOADING])
    elif not any(isinstance(finder, _PatchesLoading) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PatchesLoading())


def load_metric(name: str, **options: Any) -> Any:
    """Loads a metric of this library: `evaluate.load` with the path of its script in place of its name.

    It needs neither `register` nor the module cache, and never asks the Hub.

    Args:
        name: "srg", "lif" or "mif" (Algorithm 1), "r_srg", "r_lif" or "r_mif" (Algorithm 2), "rra" or "rma".
        options: further arguments of `evaluate.load`.

    Returns:
        An `evaluate.Metric`.

    Raises:
        ValueError: where there is no metric of that name.

    Examples:
        >>> srg = load_metric("srg")
        >>> srg.compute(predictions=maps, references=classes, pixel_values=pixel_values, model="org/dinov2-pet")
    """
    import evaluate  # takes seconds

    scripts = metric_scripts()
    return evaluate.load(str(scripts[one_of("name", name, scripts)]), **options)


def seed_module_cache() -> list[str]:
    """Copies the metrics into the module cache of `evaluate`, so that processes find them without this import.

    The library must still be installed, and `evaluate` looks on the Hub first. Repeat this after an upgrade.

    Returns:
        The names of the metrics.
    """
    from evaluate import loading

    cache = loading.init_dynamic_modules()
    scripts = metric_scripts()
    for name, script in scripts.items():
        in_cache = f"evaluate-metric/{name}"
        _, digest = loading._create_importable_file(
            local_path=str(script),
            local_imports=[],
            additional_files=[],
            dynamic_modules_path=cache,
            module_namespace="metrics",
            name=in_cache,
            download_mode=None,
        )
        # `evaluate` loads the newest of several versions in the cache. One that is there already keeps its old time.
        os.utime(Path(cache, "metrics", in_cache.replace("/", "--"), digest, f"{name}.py"))
    return list(scripts)


def _patch(loading: ModuleType) -> None:
    """Makes `evaluate.loading` look up the metrics' names first; a second call changes nothing."""
    factory = loading.evaluation_module_factory
    if hasattr(factory, "knows_salvage"):
        return
    scripts = metric_scripts()

    def with_our_names(path: str, *args, **kwargs):
        # A folder of that name in the working directory comes first, as it does for any other metric.
        if path in scripts and not Path(path, f"{path}.py").is_file():
            path = str(scripts[path])
        return factory(path, *args, **kwargs)

    with_our_names.knows_salvage = True  # type: ignore[attr-defined]
    loading.evaluation_module_factory = with_our_names  # type: ignore[attr-defined]


class _PatchesLoading(MetaPathFinder):
    """An import hook that patches `evaluate.loading` right after Python has imported it, and then removes itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _LOADING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec
