"""The autoencoder against torch diffusers, with the same weights; and its configuration."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_close, jit, normal

from slam_jax.formats import convert
from slam_jax.models import functional, layers
from slam_jax.models.vae import AutoencoderKL, SD3VAEConfig, VAEConfig, sample_latents, unscaled


def blocks(levels):
    return dict(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


CONFIGS = {
    "sd15": VAEConfig(
        **blocks(3), block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=4
    ),
    "sdxl": VAEConfig(
        **blocks(2),
        block_out_channels=(16, 8),
        norm_num_groups=2,
        latent_channels=3,
        sample_size=(16, 16),
        scaling_factor=0.13025,
        force_upcast=False,
    ),
    "sd3": SD3VAEConfig(
        **blocks(2),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
}
IMAGE_SIZES = {
    "sd15": (24, 16),
    "sdxl": (11, 6),
    "sd3": (8, 6),
}  # an odd size loses its last row of latents
LATENT_SIZES = {"sd15": (6, 4), "sdxl": (5, 3), "sd3": (4, 3)}


def example_images(name):
    return normal(1, 2, *IMAGE_SIZES[name], 3).astype(np.float32)


def example_latents(name):
    shape = (2, *LATENT_SIZES[name], CONFIGS[name].latent_channels)
    return normal(2, *shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What torch says: weights, moments of `example_images`, decoded `example_latents`."""

    state_dict: dict
    mean: np.ndarray
    logvar: np.ndarray
    std: np.ndarray
    images: np.ndarray


@functools.cache
def reference(name):
    import diffusers
    import torch

    def nchw(x):
        return torch.from_numpy(x).permute(0, 3, 1, 2)

    def nhwc(x):
        return x.permute(0, 2, 3, 1).numpy()

    torch.manual_seed(0)
    model = diffusers.AutoencoderKL.from_config(CONFIGS[name].to_dict())
    with torch.no_grad():  # the defaults, one and zero, would hide mistakes
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                is_scale = "norm" in parameter_name and parameter_name.endswith("weight")
                parameter.copy_(float(is_scale) + 0.3 * torch.randn_like(parameter))
        if name == "sdxl":  # log variances beyond both of their limits
            model.quant_conv.bias[3:5] = torch.tensor([-50.0, 40.0])
        posterior = model.encode(nchw(example_images(name))).latent_dist
        images = model.decode(nchw(example_latents(name))).sample
    return Reference(
        state_dict={key: value.numpy() for key, value in model.state_dict().items()},
        mean=nhwc(posterior.mean),
        logvar=nhwc(posterior.logvar),
        std=nhwc(posterior.std),
        images=nhwc(images),
    )


def torch_params(name):
    abstract = functional.abstract_params(AutoencoderKL, CONFIGS[name])
    params, missing, extra = convert.from_torch(reference(name).state_dict, abstract)
    assert not missing and not extra
    return params


def encode_and_decode(name):
    """Params -> moments of the example images and decoded example latents, compiled as one."""
    encode, decode = (
        functional.apply_fn(AutoencoderKL, CONFIGS[name], method) for method in ("encode", "decode")
    )
    images, latents = example_images(name), example_latents(name)
    return jit(lambda params: (*encode(params, images), decode(params, latents)))


@pytest.mark.parametrize("name", CONFIGS)
def test_moments_and_images_match_diffusers(name):
    expected = reference(name)
    mean, logvar, images = encode_and_decode(name)(torch_params(name))
    assert_close(mean, expected.mean, 1e-5)
    assert_close(logvar, expected.logvar, 1e-5)
    assert_close(images, expected.images, 1e-5)
    if name == "sdxl":
        assert (logvar.min(), logvar.max()) == (-30, 20)


def test_bfloat16_params_compute_in_bfloat16_and_return_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), torch_params("sdxl"))
    program = encode_and_decode("sdxl").lower(params).as_text()
    operands = re.findall(r"stablehlo.(?:dot_general|convolution).*: \((.*)\) ->", program)
    assert operands and not any("f32" in types for types in operands)
    mean, logvar, images = encode_and_decode("sdxl")(params)
    assert mean.dtype == logvar.dtype == images.dtype == jnp.float32
    expected = reference("sdxl")
    for actual, close in ((mean, expected.mean), (images, expected.images)):
        error = np.linalg.norm(actual - close) / np.linalg.norm(close)
        assert error <= 2e-2


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (5, 3)])
def test_downsampler_pads_after_the_map_only(size):
    layer = layers.Downsample2D(3, padding=(0, 1), rngs=nnx.Rngs(0))
    layer.conv.bias[...] = jnp.arange(3.0)
    x = normal(0, 2, *size, 3).astype(np.float32)
    kernel = np.asarray(layer.conv.kernel[...])
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    rows, columns = size[0] // 2, size[1] // 2
    expected = np.zeros((2, rows, columns, 3)) + np.arange(3)
    for i in range(rows):
        for j in range(columns):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[:, i, j] += np.einsum("bhwc,hwcd->bd", window, kernel)
    assert_close(jit(layer.__call__)(x), expected, 1e-5)


@pytest.mark.parametrize(
    ("name", "shift", "scale"), [("sdxl", 0, 0.13025), ("sd3", 0.0609, 1.5305)]
)
def test_sampled_latents_have_the_scaled_moments(name, shift, scale):
    expected, config = reference(name), CONFIGS[name]
    eps = normal(3, *expected.mean.shape).astype(np.float32)
    actual = sample_latents(expected.mean, expected.logvar, eps, config)
    z = expected.mean + expected.std * eps
    assert_close(actual, (z - shift) * scale, 1e-5)
    assert_close(unscaled(actual, config), z, 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_round_trip_is_exact(name):
    expected = reference(name).state_dict
    actual = convert.to_torch(torch_params(name))
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)


@pytest.mark.parametrize("convolutions", [False, True])
def test_attention_under_its_old_names(convolutions):
    old_names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value."}
    state_dict = {}
    for key, array in reference("sd15").state_dict.items():
        old_key = key.replace(".to_out.0.", ".proj_attn.")
        for new, old in old_names.items():
            old_key = old_key.replace(new, old)
        if convolutions and old_key != key and array.ndim == 2:
            array = array[:, :, None, None]
        state_dict[old_key] = array
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in state_dict
    abstract = functional.abstract_params(AutoencoderKL, CONFIGS["sd15"])
    params, missing, extra = convert.from_torch(state_dict, abstract)
    assert not missing and not extra
    jax.tree.map(np.testing.assert_array_equal, params, torch_params("sd15"))


PUBLISHED = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD3 = {
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


def test_config_round_trip_and_published_keys():
    for config in CONFIGS.values():
        assert type(config).from_dict(config.to_dict()) == config
    expected = VAEConfig(
        **blocks(4), block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512
    )
    assert expected.scaling_factor == 0.18215
    assert expected.downscale == 8
    assert VAEConfig.from_dict(PUBLISHED) == expected
    newer = {
        "force_upcast": True,
        "latents_mean": None,
        "latents_std": None,
        "mid_block_add_attention": True,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
    expected = dataclasses.replace(expected, sample_size=1024, scaling_factor=0.13025)
    assert VAEConfig.from_dict(PUBLISHED | newer) == expected
    expected = SD3VAEConfig(**dataclasses.asdict(expected), shift_factor=0.0609)
    changes = dict(scaling_factor=1.5305, latent_channels=16, use_quant_conv=False)
    expected = dataclasses.replace(expected, **changes, use_post_quant_conv=False)
    assert SD3VAEConfig.from_dict(PUBLISHED | newer | SD3) == expected


def test_parameter_count_of_published_models():
    import diffusers
    import torch

    abstract = functional.abstract_params(AutoencoderKL, VAEConfig.from_dict(PUBLISHED))
    assert round(functional.count_params(abstract) / 1e6, 2) == 83.65
    with torch.device("meta"):
        model = diffusers.AutoencoderKL.from_config(PUBLISHED | SD3)
    abstract = functional.abstract_params(AutoencoderKL, SD3VAEConfig.from_dict(PUBLISHED | SD3))
    assert functional.count_params(abstract) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"act_fn": "gelu"}, ["act_fn", "'gelu'", "'silu'"]),
        ({"shift_factor": 0.1159}, ["shift_factor", "0.1159", "None"]),
        ({"latents_mean": [0.0] * 4}, ["latents_mean", "None"]),
        ({"use_quant_conv": False}, ["use_quant_conv", "False", "True"]),
        ({"mid_block_add_attention": False}, ["mid_block_add_attention", "False"]),
        ({"colour": "blue"}, ["unknown", "colour", "'blue'"]),
        (
            {"down_block_types": ["AttnDownEncoderBlock2D"]},
            ["down_block_types", "'AttnDownEncoderBlock2D'", "1", "of DownEncoderBlock2D"],
        ),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, ["up_block_types", "1"]),
    ],
)
def test_unsupported_config_is_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        VAEConfig.from_dict(changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_what_sd3_leaves_fixed_is_refused_there_too():
    with pytest.raises(ValueError, match="latents_mean = .*, supported: None"):
        SD3VAEConfig.from_dict(PUBLISHED | SD3 | {"latents_mean": [0.0] * 16})
