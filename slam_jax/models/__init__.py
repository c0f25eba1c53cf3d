"""The networks of latent diffusion in Flax NNX, used as pure functions of plain nested dicts.

layers.py      building blocks, named as in diffusers
unet.py        the denoiser: UNetConfig, UNet2DConditionModel
functional.py  init, abstract_params and apply_fn: module class + config -> pure functions
convert.py     torch weights <-> nested params: the one file with foreign names
weights.py     safetensors files
"""
