"""The networks of latent diffusion in Flax NNX, used as pure functions of plain nested dicts.

networks     layers.py, unet.py, vae.py, clip.py: modules and configs with the names of diffusers
             (published_config.py)
how          execution.py: what can be computed in several ways: attention.py, norms.py; remat.py
as functions functional.py: init, abstract_params and apply_fn
weights      weights.py: safetensors files; convert.py: torch's names and layouts; weight_files.py:
             which file of a folder has them; saved.py: a Flax network in a folder
published    hub.py, folder.py, tokenizer.py: diffusers folders and hub repositories
together     pipeline.py: a UNet and what surrounds it, in general; digits_pipeline.py and
             sd_pipeline.py: the two there are; load.py: the one builder
"""
