"""The explainer of any classifier: its backbone, and how the two see the same patches.

An explainer's backbone is a plain vision transformer (`modeling.BACKBONES`). It is a copy of the classifier's own where
the classifier is one, and otherwise that of any other model, by name. The classifier may then be anything whose v(S)
exists: a ResNet, a ConvNeXt or a Swin, whose patches are hidden in the pixels.

Such a pair wants different images. The classifier's have the size and the normalisation of its image processor, and
patches of `patch_size` pixels, which v(S) hides. The backbone's have the normalisation that it was trained with, and
patches of its own size. Both must have the same grid, and patch i must show the same part of the picture. Two image
processors would have to agree in every rule of resizing, cropping and padding, for every size of a picture; and
whatever hands an explainer the pixels of the classifier (methods, scores, refinement, caches) would have to carry two
images. So there is one image processor, the classifier's, which is stored with the explainer, and the explainer makes
its backbone's images from the classifier's (`SalvageModel.backbone_pixels`): by a linear map of the channels, and by a
resize in which a patch of the one becomes a patch of the other. Patch i is the same part by construction, and the
explainer sees what the classifier sees. The price is that the backbone sees no finer detail than that.

The explainer's config states all of it: `patch_size` and `channel_map`, how the backbone's images are made, and
`explained_classifier`, whose patches these are and how v(S) hides them.
"""

from typing import Any

import torch
from transformers import AutoModel

from ..data.processors import channel_map
from ..masking import MaskedClassifier, provenance
from ..modeling import BACKBONES, WITH_POOLER, SalvageModel
from ..pretrained import load_config, load_model, load_processor


def new_explainer(classifier: MaskedClassifier, backbone: str | None, **config: Any) -> SalvageModel:
    """An untrained explainer of a classifier, on the classifier's patches.

    Args:
        classifier: the classifier, with its image processor.
        backbone: the model whose backbone the explainer starts from, a name on the Hub or a folder; it may have a head.
            None takes the classifier's own.
        config: passed on to `SalvageConfig`.

    Raises:
        ValueError: where the backbone is none that an explainer can start from, its weights or its image processor are
            missing, or the colours that it wants cannot be made from the classifier's pixel values.
    """
    stated = {"patch_size": classifier.patch_size, "explained_classifier": provenance(classifier), **config}
    if backbone is None:
        return SalvageModel.from_classifier(classifier.classifier, **stated)
    kind = load_config(backbone).model_type
    if kind not in BACKBONES:
        raise ValueError(
            f"explainer_backbone={backbone!r} is of the type {kind!r}; an explainer can start from the types "
            f"{', '.join(BACKBONES)}"
        )
    # Without the pooler, which some checkpoints lack and no explainer uses.
    options = {"add_pooling_layer": False} if kind in WITH_POOLER else {}
    model = load_model(AutoModel, backbone, dtype=torch.float32, **options)
    channels = channel_map(classifier.processor, load_processor(backbone))
    return SalvageModel.from_backbone(model, classifier.classifier, channel_map=channels, **stated)
