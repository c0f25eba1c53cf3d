"""Networks only, in Flax NNX, used as pure functions of plain nested dicts.

layers.py, unet.py, mmdit.py, vae.py, clip.py and t5.py have the names of diffusers' checkpoints;
inception.py, clip_vision.py and dinov2.py are networks that pictures are compared in, with the
published names; functional.py makes functions of all; execution.py, attention.py and remat.py say
how they are computed.
"""
