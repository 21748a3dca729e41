"""Do maps change when the layers of the model are given random weights? `salvage doctor` asks this through Quantus.

Adebayo et al. (2018): a map that stays as it was shows the image, and not what the model has learnt of it.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from .. import attribution_methods
from ..faithfulness import mean_and_stderr
from ..localization import upsample
from ..masking import MaskedClassifier
from ..targets import target_attributions
from .doctor_checks import RANDOMISED, Finding, finding, not_checked

#: The methods without training whose maps are checked, one that reads attention and one that takes gradients. Each adds
#: a map of every image after every layer, some hundred times in all.
UNTRAINED = ("last_attention", "saliency")

#: How many images are explained after every layer.
IMAGES = 4

#: (model, pixel_values [B, C, H, W], targets int64 [B]) -> maps [B, N]
MapsOf = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


def check_randomisation(
    v: MaskedClassifier, explainer: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor
) -> tuple[list[Finding], dict[str, list[float]]]:
    """Cascading randomisation from the top layer down, of the explainer and of the classifier for other methods.

    Args:
        v: the classifier.
        explainer: its explainer, a `SalvageModel`.
        pixel_values: [B, C, H, W], on their device.
        targets: int64 [B], the explained classes.

    Returns:
        A finding per method, and name of a method -> mean rank correlation with the first maps, after every layer.
        Both are left empty but for one "not checked" where Quantus is not installed.
    """
    if importlib.util.find_spec("quantus") is None:
        return [not_checked("maps: random layers", "Install Quantus for this check: pip install quantus.")], {}
    findings, cascades = [], {}
    untrained = [name for name in UNTRAINED if v.has_tokens or attribution_methods.REGISTRY[name].needs != "attention"]
    for name in tqdm(("explainer", *untrained), desc="Random layers"):
        title = f"maps: random layers, {name.replace('_', ' ')}"
        model: nn.Module = explainer if name == "explainer" else v
        maps_of = _explainer_maps if name == "explainer" else _maps_by(name)
        if (maps_of(model, pixel_values, targets).diff(dim=1) == 0).all():
            findings.append(not_checked(title, "Its maps are constant, and cannot change their order: see SRG above."))
            continue
        try:
            cascade = randomised(model, maps_of, pixel_values, targets, v.patch_grid(pixel_values))
        except AssertionError as error:  # so Quantus refuses maps that become constant on the way
            findings.append(not_checked(title, f"Quantus refuses its maps: {error}"))
            continue
        cascades[name] = cascade.mean(dim=1).tolist()
        value, stderr = mean_and_stderr(cascade[-1].abs())
        advice = "Do not explain this model by this method: its maps hardly depend on what the model has learnt."
        findings.append(finding(title, value, stderr, "rank correlation", RANDOMISED, advice))
    return findings, cascades


def randomised(
    model: nn.Module, maps_of: MapsOf, pixel_values: torch.Tensor, targets: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Spearman's correlation of maps with those before, float64 [layers, B], the last with all layers randomised.

    The model itself is left as it is, and so are torch's random numbers. Needs Quantus.
    """
    import quantus

    device, size = pixel_values.device, (pixel_values.shape[-2], pixel_values.shape[-1])

    def explain(model, inputs, targets, **_options):
        arrays = (torch.as_tensor(array, device=device) for array in (inputs, targets))
        maps = maps_of(model, *arrays)
        # Quantus wants maps of pixels, and refuses maps that are negative everywhere. Neither repeating the value of a
        # patch nor adding one number to a map changes a rank correlation.
        maps = maps - maps.amin(dim=1, keepdim=True)
        return upsample(maps, grid, size, mode="nearest")[:, None].cpu().numpy()

    before = explain(model, pixel_values, targets)
    metric = quantus.MPRT(layer_order="top_down", abs=False, normalise=False, disable_warnings=True)
    with torch.random.fork_rng():  # Quantus seeds the global generator
        found = metric(
            model=model,
            x_batch=pixel_values.cpu().numpy(),
            y_batch=targets.cpu().numpy(),
            a_batch=before,
            explain_func=explain,
            device=str(device),
            batch_size=len(pixel_values),
        )
    layers = [scores for layer, scores in found.items() if layer != "original"]
    # A map that has become constant correlates with nothing: NaN becomes 0.
    return torch.tensor(layers, dtype=torch.float64).nan_to_num()


@torch.no_grad()
def _explainer_maps(model: Any, pixel_values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return target_attributions(model(pixel_values).attributions, targets)


def _maps_by(name: str) -> MapsOf:
    return lambda model, pixel_values, targets: attribution_methods.load(name, model)(pixel_values, targets)
