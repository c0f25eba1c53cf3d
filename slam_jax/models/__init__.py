"""Networks only, in Flax NNX, used as pure functions of plain nested dicts.

layers.py, unet.py, vae.py and clip.py have the names of diffusers' checkpoints; functional.py makes
functions of them; execution.py, attention.py and remat.py say how they are computed.
"""
