"""The digits job with the published recipe taken literally; everything else as in digits.py.

The authors' noise scale inside the sub-path, the network told (s, gamma) through the gamma
embedding, one gamma per sub-path, drawn uniformly. On a short budget this falls far behind;
docs/results.md says how far, and why.

    slam-jax train --config digits_paper \\
        --config.teacher.path=runs/digits/teacher
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("digits.py")))["get_config"]()
    config.name = "digits_paper"
    config.method.update(
        sigma="paper", conditioning="embedding", gamma="uniform", gammas_per_subpath=1
    )
    return config
