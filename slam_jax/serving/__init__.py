"""Students for others: the sampler that needs jax alone, the check of published students."""
