"""The reference that any method has to beat: random maps."""

from ..keyed_random import KeyedGenerator, image_keys
from ..masking import MaskedClassifier
from .registry import Method, register


@register("random", title="Random", needs="nothing", source="reference of Table 1")
def random(classifier: MaskedClassifier, seed: int = 0) -> Method:
    """Independent uniform values."""

    def attribute(pixel_values, targets):
        rows, columns = classifier.patch_grid(pixel_values)
        return KeyedGenerator("random maps", seed, keys=image_keys(pixel_values)).uniform(rows * columns)

    return attribute
