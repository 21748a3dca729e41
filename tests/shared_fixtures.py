"""What tests share: tiny random models, the real classifier and photographs where they are present, two processes."""

import json
import os
import socket
from io import BytesIO
from pathlib import Path

import hypothesis
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from forked import Forked
from transformers import (
    AutoModel,
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTConfig,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from salvage_hf.cli import main

torch.set_num_threads(1)  # the models are so tiny that threads would only wait for each other

LONG_TESTS = os.environ.get("SALVAGE_LONG_TESTS") == "1"
# The same examples in every run, so that a failure can be repeated. A slow machine is no failure. Fixtures that
# hypothesis calls "function-scoped" are factories here, which one test may call for many examples.
hypothesis.settings.register_profile(
    "salvage",
    deadline=None,
    derandomize=True,
    print_blob=True,
    max_examples=1000 if LONG_TESTS else 50,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("salvage")


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "image_size": 16}
FAMILIES = {
    "dinov2": (Dinov2ForImageClassification, Dinov2Config, {**VIT, "mlp_ratio": 2}),
    "dinov2_with_registers": (
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersConfig,
        {**VIT, "mlp_ratio": 2, "num_register_tokens": 3},
    ),
    "vit": (ViTForImageClassification, ViTConfig, {**VIT, "intermediate_size": 64}),
    "deit": (DeiTForImageClassification, DeiTConfig, {**VIT, "intermediate_size": 64}),
    # The DeiT class whose distillation token contributes to the logits.
    "deit_teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig, {**VIT, "intermediate_size": 64}),
    "beit": (BeitForImageClassification, BeitConfig, {**VIT, "intermediate_size": 64}),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "swin": (
        SwinForImageClassification,
        SwinConfig,
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    "siglip": (
        SiglipForImageClassification,
        SiglipConfig,
        {"vision_config": {**VIT, "intermediate_size": 64}, "text_config": {"bos_token_id": 1, "eos_token_id": 2}},
    ),
    "convnext": (
        ConvNextForImageClassification,
        ConvNextConfig,
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    ),
    "efficientnet": (
        EfficientNetForImageClassification,
        EfficientNetConfig,
        {
            "image_size": 16,
            "kernel_sizes": [3, 3],
            "in_channels": [32, 32],
            "out_channels": [32, 32],
            "depthwise_padding": [],
            "strides": [1, 2],
            "num_block_repeats": [1, 1],
            "expand_ratios": [1, 2],
            "width_coefficient": 0.25,
            "depth_coefficient": 1.0,
            "hidden_dim": 320,  # a quarter of the 1280 that transformers has in its code
        },
    ),
    "mobilenet_v2": (
        MobileNetV2ForImageClassification,
        MobileNetV2Config,
        {
            "image_size": 16,
            "depth_multiplier": 0.1,
            "min_depth": 4,
            "depth_divisible_by": 4,
            "output_stride": 8,
            "finegrained_output": False,
        },
    ),
    "mobilevit": (
        MobileViTForImageClassification,
        MobileViTConfig,
        {
            "image_size": 16,
            "hidden_sizes": [8, 12, 16],
            "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16],
            "num_attention_heads": 2,
            "output_stride": 8,
            "last_hidden_state_dropout": 0.0,
        },
    ),
}

BACKBONES = {
    "dinov2": (Dinov2Config, {"mlp_ratio": 2}),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, {"mlp_ratio": 2, "num_register_tokens": 3}),
    "dinov3_vit": (DINOv3ViTConfig, {"intermediate_size": 64, "num_register_tokens": 3}),
    "vit": (ViTConfig, {"intermediate_size": 64}),
    "deit": (DeiTConfig, {"intermediate_size": 64}),
    "beit": (
        BeitConfig,
        {"intermediate_size": 64, "use_absolute_position_embeddings": True, "use_relative_position_bias": True},
    ),
}


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Makes all weights, also tokens and layer scales, so large that every part of a model affects its output."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if "running_var" in name or "lambda" in name or ("norm" in name and name.endswith("weight")):
            tensor.copy_(1 + 0.3 * noise.clamp(-2, 2))
        elif name.endswith("bias"):
            tensor.copy_(0.2 * noise)
        elif "token" in name or "position" in name or "embedding" in name:
            tensor.copy_(0.5 * noise)
        else:
            tensor.copy_(noise * 1.5 / max(tensor[0].numel(), 1) ** 0.5)
    return model


@pytest.fixture
def tiny_classifier():
    """A factory: tiny_classifier("dinov2", num_labels=3, seed=0, **config) -> a random classifier in eval mode."""

    def build(family: str = "dinov2", num_labels: int = 3, seed: int = 0, **overrides):
        model_class, config_class, config = FAMILIES[family]
        return randomize(model_class(config_class(**{**config, "num_labels": num_labels, **overrides})), seed).eval()

    return build


@pytest.fixture
def tiny_backbone():
    """A factory: tiny_backbone("dinov2", **config) -> a random vision transformer without a head in eval mode."""

    def build(kind: str, **overrides):
        config_class, config = BACKBONES[kind]
        return randomize(AutoModel.from_config(config_class(**{**VIT, **config, **overrides}))).eval()

    return build


@pytest.fixture
def images():
    """A factory: images(B, height=16, width=None, seed=0) -> float32 [B, 3, H, W]."""

    def build(batch_size: int = 2, height: int = 16, width: int | None = None, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch_size, 3, height, width or height, generator=generator)

    return build


@pytest.fixture
def salvage_model():
    """A factory: a tiny random explainer, `SalvageModel` or the given class."""
    from salvage_hf.modeling import SalvageConfig, SalvageModel

    def build(num_labels: int = 3, model_class=SalvageModel, family: str = "dinov2", seed: int = 0, **config):
        _, backbone_class, backbone = FAMILIES[family]
        config = SalvageConfig(backbone_config=backbone_class(**backbone), num_labels=num_labels, **config)
        return randomize(model_class(config), seed).eval()

    return build


@pytest.fixture
def save_processor():
    """A factory: writes an image processor for images of a size into a model's folder."""

    def write(folder, image_size: int = 16, **overrides):
        processor = {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": image_size + 4},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": image_size, "width": image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.25, 0.25, 0.25],
        }
        Path(folder, "preprocessor_config.json").write_text(json.dumps({**processor, **overrides}))

    return write


def draw_nothing(monkeypatch):
    """Files of figures hold a picture of one colour, because drawing takes seconds."""
    from PIL import Image

    from salvage_hf.evaluation import plots

    file = BytesIO()
    Image.new("RGB", (1200, 400)).save(file, "PNG")
    monkeypatch.setattr(plots, "file_content", lambda figure, **options: file.getvalue())


@pytest.fixture
def undrawn(monkeypatch):
    draw_nothing(monkeypatch)


@pytest.fixture
def impatient_streams(monkeypatch):
    """New versions of `datasets` wait five seconds after a stream that is not read to its end; here it is less."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.2, raising=False)


@pytest.fixture
def run_two():
    """A function: runs a command of `salvage` in two processes on the CPU, which are forked and so import nothing.

    What users do, `accelerate launch`, is tried in training/test_launching.py; it takes some fifteen seconds longer.
    """

    def run(*words: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])

        def work():
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            return main(list(words)), PartialState().num_processes

        shared = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        forks = [Forked(work, **shared, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
        assert [fork.result() for fork in forks] == [(0, (0, 2)), (0, (0, 2))]

    return run


@pytest.fixture(scope="session")
def shared():
    """The folder with the real classifier and data; a clone of the repository alone has none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared folder with the real classifier and photographs is not here")
    return folder


@pytest.fixture(scope="session")
def imagenette_classifier(shared):
    """Name (a folder) of a real DINOv2 classifier, fine-tuned on masked ImageNette images of 112 px."""
    folder = shared / "models" / "dinov2-small-imagenette"
    if not folder.is_dir():
        pytest.skip("models/dinov2-small-imagenette is not in the shared folder")
    return str(folder)


@pytest.fixture(scope="session")
def imagenette_images(shared, imagenette_classifier):
    """(pixel_values [10, 3, 112, 112], labels [10]): one validation photograph per class, in the classifier's order."""
    from PIL import Image
    from transformers import AutoImageProcessor

    folder = shared / "data" / "imagenette" / "val"
    if not folder.is_dir():
        pytest.skip("data/imagenette is not in the shared folder")
    photos = [Image.open(sorted(d.iterdir())[0]).convert("RGB") for d in sorted(folder.iterdir()) if d.is_dir()]
    processor = AutoImageProcessor.from_pretrained(imagenette_classifier)
    return processor(photos, return_tensors="pt")["pixel_values"], torch.arange(len(photos))
