"""Training data: sources, and the pipeline of batches drawn from them."""
