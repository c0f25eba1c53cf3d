"""Small CLIP and DINOv2 in the layout of transformers, with random weights that show mistakes."""

import tiny_tokenizer

VOCABULARY = len(tiny_tokenizer.vocabulary()[0])
LAYERS = dict(num_hidden_layers=2, num_attention_heads=2)


def clip(width=12, image_size=24, patch_size=8):
    """transformers' CLIPModel.

    Args:
        width: of the projected features.
        image_size, patch_size: in pixels.
    """
    import transformers

    text = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=40, **LAYERS)
    text |= dict(eos_token_id=VOCABULARY - 1, bos_token_id=VOCABULARY - 2)
    vision = dict(hidden_size=20, intermediate_size=48, **LAYERS)
    vision |= dict(image_size=image_size, patch_size=patch_size)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    return randomised(transformers.CLIPModel(config))


def dinov2(hidden_size=24, image_size=84):
    """transformers' Dinov2Model, with patches of 14 pixels."""
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=hidden_size, image_size=image_size, patch_size=14, mlp_ratio=2, **LAYERS
    )
    return randomised(transformers.Dinov2Model(config))


def randomised(model):
    """With other scales and biases than one and zero, and weights that are not small."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith((".weight", ".lambda1"))
            if parameter.ndim in (2, 4) and "embedding" not in name:
                values /= parameter[0].numel() ** 0.5
            parameter.copy_(1 + 0.3 * values if is_scale else values)
    return model.eval()


def clip_folder(folder, **sizes):
    """Writes a CLIP with a tokenizer; returns the model."""
    model = clip(**sizes)
    model.save_pretrained(folder)
    tiny_tokenizer.write_tokenizer(folder, None)
    return model


def dinov2_folder(folder, **sizes):
    """Writes a DINOv2; returns the model."""
    model = dinov2(**sizes)
    model.save_pretrained(folder)
    return model
