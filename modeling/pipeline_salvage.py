"""The pipeline "image-attribution": what a Salvage explainer says of pictures, with its maps drawn over them."""

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image

from .geometry_salvage import Geometry, picture_geometry, process

#: ColorBrewer's RdBu, from its blue end to its red one, as red, green and blue of 255: matplotlib's "RdBu_r".
_COLOURS = np.array(
    [
        *((5, 48, 97), (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247)),
        *((253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43), (103, 0, 31)),
    ],
    dtype=np.float32,
)


def overlay(
    picture: Image.Image, attributions: np.ndarray, geometry: Geometry | None = None, limit: float | None = None
) -> Image.Image:
    """A map over a picture, in the picture's size: red patches speak for the class, blue ones against it.

    Args:
        picture: the original, in any size.
        attributions: [rows, columns], the map of one class.
        geometry: where the map lies in the picture, over all of it when None; what the map does not show of the picture
            is drawn pale.
        limit: the absolute value that is drawn in full colour; the map's own largest when None.

    Raises:
        ValueError: where a value of the map is NaN or infinite.
    """
    if not np.isfinite(attributions).all():
        raise ValueError("attributions have values that are NaN or infinite")
    whole = (0.0, 0.0, float(picture.width), float(picture.height))
    limit = limit or float(np.abs(attributions).max()) or 1.0
    grid = torch.from_numpy((attributions / limit).clip(-1, 1).astype(np.float32))
    values = (geometry or Geometry(whole, whole)).placed(grid[None], picture.height, picture.width)[0].numpy()
    inside = ~np.isnan(values)[..., None]
    values = np.nan_to_num(values)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    return Image.fromarray((255 * np.where(inside, coloured(values, grey), pale(grey))).round().astype(np.uint8))


def coloured(values: np.ndarray, grey) -> np.ndarray:
    """What stands for a map's values [...], from -1 to 1, over greys [..., 1] from 0 to 1: colours [..., 3].

    Zero leaves the grey nearly as it is. Red and blue are told apart by those who do not tell red from green.
    """
    opacity = (0.1 + 0.65 * np.abs(values))[..., None]
    ends = np.linspace(-1, 1, len(_COLOURS))
    colours = np.stack([np.interp(values, ends, channel) for channel in _COLOURS.T / 255], axis=-1)
    return (1 - opacity) * grey + opacity * colours


def pale(grey):
    """What stands for a grey where a map has no value."""
    return 0.4 * grey + 0.55


class ImageAttributionPipeline(Pipeline):
    """Explains pictures: the most probable classes of each, with a map that says which patches speak for the class.

    Pictures are given as to `pipeline("image-classification")`: a path, a URL, a PIL image or an array, a list of
    these, or a data set or generator of them, with `batch_size` and `num_workers`.

    For a picture the answer is a list with a dict per class, the most probable first:

    - "label": its name. With one label there are two answers, LABEL and "not LABEL".
    - "score": its probability, as the explainer itself predicts it (eq. 6).
    - "map": float32 [rows, columns] on the grid of patches, the attributions as the model gives them. They are not
      interpolated, so that they keep their sums, and the metrics take them.
    - "box": (left, top, right, bottom), where this grid lies in the picture, in pixels. The image processor may crop,
      so that it is smaller than the picture, or pad, so that it is larger. `post_process_attributions` of the model
      gives maps on the picture's pixels.
    - "overlay": a PIL image of the picture's size. Red patches speak for the class, blue ones against it, on one scale
      for all classes of the picture; what the model does not see is pale.

    The model computes in the type of its weights. Half precision rounds, so that the last digits of a map then depend
    on the batch; `pipeline(..., dtype="float32")` is exact.

    Args:
        top_k: how many classes are listed, 5 when not given.
        classes: in place of these, the classes to list, as names or as numbers.
        timeout: how many seconds a URL may take.

    Examples:
        >>> explain = pipeline("image-attribution", model="org/salvage-pet", trust_remote_code=True)
        >>> explain("cat.jpg", top_k=2)[0]["overlay"].save("map.png")
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, top_k=None, classes=None, timeout=None):
        shown = {}
        if top_k is not None:
            if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
                raise ValueError(f"top_k must be a whole number from 1, got {top_k!r}")
            shown["top_k"] = top_k
        if classes is not None:
            shown["classes"] = self._numbers([classes] if isinstance(classes, (str, int)) else list(classes))
        return {} if timeout is None else {"timeout": timeout}, {}, shown

    def _names(self) -> list[str]:
        """The names of all answers."""
        config = self.model.config
        names = [config.id2label[index] for index in range(config.num_labels)]
        return names if len(names) > 1 else [f"not {names[0]}", names[0]]

    def _numbers(self, classes: list) -> list[int]:
        """Which answers are meant, by name or number; raises ValueError where there is none of that name or number."""
        names, found = self._names(), []
        for given in classes:
            is_number = isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(names)
            if not is_number and given not in names:
                listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                raise ValueError(f"classes must be names or numbers of the {len(names)}: {listed}; got {given!r}")
            found.append(given if is_number else names.index(given))
        if not found:
            raise ValueError("classes must name one class or more, got none")
        return found

    def preprocess(self, image, timeout=None):
        if isinstance(image, (np.ndarray, torch.Tensor)):
            picture = to_pil_image(image).convert("RGB")
        else:
            picture = load_image(image, timeout=timeout)
        # Not in the model's type yet: a batch is cast as a whole.
        return {"pixel_values": process(self.image_processor, [picture]), "picture": picture}

    def _forward(self, model_inputs):
        pixel_values, patch_size = model_inputs["pixel_values"], self.model.config.patch_size
        outputs = self.model(pixel_values.to(self.dtype))
        probabilities, attributions = self.model.answers(outputs)
        grid = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
        maps = attributions.transpose(1, 2).unflatten(-1, grid)  # [B, N, T] -> [B, T, rows, columns]
        return {"probabilities": probabilities, "maps": maps, "picture": model_inputs["picture"]}

    def postprocess(self, model_outputs, top_k=5, classes=None):
        probabilities, maps = model_outputs["probabilities"][0], model_outputs["maps"][0]
        order = probabilities.argsort(descending=True, stable=True).tolist()
        listed = order[:top_k] if classes is None else [index for index in order if index in classes]
        # Of a batch every picture comes alone, of a single input as it was.
        picture, names = model_outputs["picture"], self._names()
        geometry = picture_geometry(self.image_processor, *picture.size)
        limit = maps[listed].abs().max().item()
        return [
            {
                "label": names[index],
                "score": probabilities[index].item(),
                "map": maps[index].numpy(),
                "box": geometry.box,
                "overlay": overlay(picture, maps[index].numpy(), geometry, limit),
            }
            for index in listed
        ]
