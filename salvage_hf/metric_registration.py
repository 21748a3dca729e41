"""Makes `evaluate.load("r_srg")` and its seven sisters work by name, from any working directory.

`evaluate` looks a bare name up in the working directory, on the Hub and in its module cache, and offers no registry of
its own. `register` therefore puts a look-up of our folder before these, in this process. `seed_module_cache` serves
processes that never import this library.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from . import metrics

_LOADING = "evaluate.loading"


def metric_scripts() -> dict[str, Path]:
    """Name -> script of every metric of this library, `metrics/<name>/<name>.py`."""
    folder = Path(metrics.__path__[0]).resolve()
    return {script.stem: script for script in sorted(folder.glob("*/*.py")) if script.stem == script.parent.name}


def register() -> None:
    """Teaches `evaluate` our names: at once if it is imported already, else as soon as it is.

    Importing `evaluate` takes seconds, which nobody who uses no metric should pay: so it is not imported here.
    """
    if _LOADING in sys.modules:
        _patch(sys.modules[_LOADING])
    elif not any(isinstance(finder, _PatchesLoading) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PatchesLoading())


def seed_module_cache() -> list[str]:
    """Puts our metrics into the module cache of `evaluate`, where processes without this hook find them.

    They still need this library installed, and look on the Hub first. To be repeated after an upgrade.

    Returns:
        the names of the metrics.
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
        # Of several versions in the cache the newest is loaded; one that lay there before keeps its old time.
        os.utime(Path(cache, "metrics", in_cache.replace("/", "--"), digest, f"{name}.py"))
    return list(scripts)


def _patch(loading: ModuleType) -> None:
    factory = loading.evaluation_module_factory
    if hasattr(factory, "knows_salvage"):
        return
    scripts = metric_scripts()

    def with_our_names(path: str, *args, **kwargs):
        # A folder of that name in the working directory comes first, as it does for every other metric.
        if path in scripts and not Path(path, f"{path}.py").is_file():
            path = str(scripts[path])
        return factory(path, *args, **kwargs)

    with_our_names.knows_salvage = True  # type: ignore[attr-defined]
    loading.evaluation_module_factory = with_our_names  # type: ignore[attr-defined]


class _PatchesLoading(MetaPathFinder):
    """Finds `evaluate.loading` where Python would, and patches it right after it is executed."""

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
