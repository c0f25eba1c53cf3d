"""What torch-fidelity and clean-fid measure of two folders of pictures; fid_peers.py starts it.

    python benchmarks/fid_of_peers.py DRAWN REAL WEIGHTS BATCH

Prints JSON. It takes a Python with both programs, and no slam_jax.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch-fidelity", "clean-fid", "torch", "torchvision", "scipy", "numpy", "pillow")


def torch_fidelity(drawn: Path, real: Path, weights: Path, batch: int) -> dict[str, float]:
    """FID, and precision and recall with three neighbours, all in Inception's features.

    Args:
      drawn, real: folders of pictures.
      weights: in pytorch-fid's layout.
      batch: pictures at a time, which are of one size.
    """
    from torch_fidelity import calculate_metrics

    found = calculate_metrics(
        input1=str(drawn),
        input2=str(real),
        feature_extractor_weights_path=str(weights),
        batch_size=batch,
        feature_extractor="inception-v3-compat",  # of precision and recall too
        fid=True,
        prc=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # reads pictures in this process
        verbose=False,
    )
    names = {"fid": "frechet_inception_distance", "precision": "precision", "recall": "recall"}
    return {ours: found[theirs] for ours, theirs in names.items()}


def clean_fid(drawn: Path, real: Path, weights: Path, batch: int) -> dict[str, float]:
    """FID in its mode "clean".

    It downloads its weights as a TorchScript program. Here its other Inception, that of
    pytorch-fid, has the given ones instead, and sees what that program sees: (x - 128) / 128.

    Args:
      drawn, real, weights, batch: as in `torch_fidelity`.
    """
    import torch
    from cleanfid import fid, inception_pytorch

    def given(*_, **__):
        return torch.load(weights, weights_only=True)

    inception_pytorch.load_state_dict_from_url = given
    network = inception_pytorch.InceptionV3(resize_input=False, normalize_input=False).eval()

    def features(x):
        return network((x - 128) / 128)[0].flatten(1)

    rows = [
        fid.get_folder_features(
            str(folder),
            features,
            num_workers=0,
            batch_size=batch,
            device=torch.device("cpu"),
            mode="clean",
            verbose=False,
        )
        for folder in (drawn, real)
    ]
    return {"fid": float(fid.fid_from_feats(*rows))}


def measure(drawn: Path, real: Path, weights: Path, batch: int) -> dict[str, Any]:
    """Both, and their versions; arguments as in `torch_fidelity`."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "torch-fidelity": torch_fidelity(drawn, real, weights, batch),
        "clean-fid": clean_fid(drawn, real, weights, batch),
    }


if __name__ == "__main__":
    drawn, real, weights = map(Path, sys.argv[1:4])
    print(json.dumps(measure(drawn, real, weights, int(sys.argv[4]))))
