"""What any method has to beat."""

from ..masking import MaskedClassifier
from ..subsets import KeyedGenerator, image_keys
from .registry import Method, register


@register("random", title="Random", needs="nothing", source="reference of Table 1")
def random(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Independent uniform values."""

    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        # (seed, 1): the scores draw from (seed,), and would else meet the very numbers that made the map.
        return KeyedGenerator((seed, 1), image_keys(pixel_values)).uniform(rows * columns)

    return attribute
