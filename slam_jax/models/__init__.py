"""The networks of latent diffusion in Flax NNX, used as pure functions of plain nested dicts."""
