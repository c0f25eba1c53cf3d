"""`python -m slam_jax.main --config ...`: the same as `slam-jax train --config ...`."""

from slam_jax.commands.train import main

if __name__ == "__main__":
    main()
