"""Models measured on many pictures: prompts, protocols, references, results."""
