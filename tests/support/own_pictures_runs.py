"""Command lines of small runs that are distilled on the teacher's own pictures."""

COUNT, SHARD, STEPS, W, SEED = 10, 4, 2, 1.5, 3


def options(prompts, **changes):
    """Of a command line: the pictures of these prompts."""
    given = {"count": COUNT, "steps": STEPS, "w": W, "batch": 1, **changes}
    data = [f"--config.data.teacher_{name}={value}" for name, value in given.items()]
    return [f"--config.data.source=teacher:{prompts}", f"--config.seed={SEED}", *data]
