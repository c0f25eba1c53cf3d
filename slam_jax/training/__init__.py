"""The step, the loop around it, checkpoints, metrics, the folder of a run."""
