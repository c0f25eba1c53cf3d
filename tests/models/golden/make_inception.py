"""Makes inception.npz: what torch-fidelity's Inception says of random weights and pictures.

torch-fidelity asks for a torchvision that does not work with every torch; the module that is needed
here does without it:

    pip install --no-deps --target /tmp/fidelity torch-fidelity==0.4.0
    python tests/models/golden/make_inception.py /tmp/fidelity
"""

import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "support"))
import random_inception  # noqa: E402

package = ModuleType("torch_fidelity")  # without its __init__, which imports torchvision
package.__path__ = [str(Path(sys.argv[1]) / "torch_fidelity")]
sys.modules["torch_fidelity"] = package
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402


class Inception(FeatureExtractorInceptionV3):
    """With random weights instead of those of the file that it asks for."""

    def load_state_dict(self, _):
        every = self.state_dict()
        self.shapes = {k: tuple(v.shape) for k, v in every.items() if v.is_floating_point()}
        random = random_inception.state_dict(self.shapes)
        super().load_state_dict(every | {k: torch.from_numpy(v) for k, v in random.items()})


with tempfile.NamedTemporaryFile(suffix=".pth") as file:
    torch.save({}, file.name)
    network = Inception(
        "inception",
        ["2048"],
        feature_extractor_weights_path=file.name,
        feature_extractor_internal_dtype="float64",
    )
pictures = torch.from_numpy(random_inception.pictures().transpose(0, 3, 1, 2).copy())
features = network(pictures)[0].numpy()
np.savez_compressed(
    HERE / "inception.npz",
    features=features,
    names=np.array(list(network.shapes)),
    shapes=np.array([(*shape, 0, 0, 0)[:4] for shape in network.shapes.values()], np.int16),
)
print(features.shape, features.mean(), features.std(), (features == 0).mean())
