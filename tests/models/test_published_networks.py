"""The layers of the published networks, against those of diffusers and transformers."""

import pytest

from slam_jax.models.published_networks import TEXT_ENCODERS, TRANSFORMERS, UNETS, published_layers


def torch_layers(module):
    """Dotted path -> the kernel's shape as it is here, of linear layers and convolutions."""
    import torch

    return {
        path: (*layer.weight.shape[2:], *layer.weight.shape[1::-1])
        for path, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }


@pytest.mark.slow
@pytest.mark.parametrize("base", UNETS)
def test_layers_are_those_of_torch(base):
    import diffusers
    import torch
    import transformers

    found = dict(published_layers(base))  # which is kept
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(UNETS[base].to_dict())
    assert found.pop("denoiser") == torch_layers(unet)
    assert found.keys() == TEXT_ENCODERS[base].keys()
    for part, config in TEXT_ENCODERS[base].items():
        values = transformers.CLIPTextConfig.from_dict(config.to_dict())
        kind = "CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"
        with torch.device("meta"):
            text_encoder = getattr(transformers, kind)(values)
        paths = {path.removeprefix("text_model."): s for path, s in found[part].items()}
        theirs = torch_layers(text_encoder)
        assert paths == {path.removeprefix("text_model."): s for path, s in theirs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("base", TRANSFORMERS)
def test_layers_of_transformers_are_those_of_torch(base):
    import diffusers
    import torch

    with torch.device("meta"):
        network = diffusers.SD3Transformer2DModel.from_config(TRANSFORMERS[base].to_dict())
    assert published_layers(base)["denoiser"] == torch_layers(network)
