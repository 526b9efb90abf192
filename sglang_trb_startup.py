"""Lets a CPU build of torch import a CUDA build of torchvision, the only one PyPI has.

torchvision registers fake kernels for ``torchvision::nms`` and ``torchvision::qnms`` when it is imported. Both schemas
live in its compiled library, which needs the CUDA runtime; where that library does not load, ``import torchvision``
raises, and with it ``import transformers.image_utils`` and ``import sglang``. Declaring the two schemas is enough: no
text model calls the operators. Checked with torch 2.13.0, torchvision 0.28.0, sglang 0.5.21.

SGLang imports torchvision before it looks for plug-ins, and in every child it spawns, so this cannot be a plug-in:
``scripts/setup_env.sh`` writes a ``.pth`` file that imports this module when the interpreter starts. It therefore uses
the standard library alone and touches torch only at the moment torchvision is first imported.
"""

import importlib.machinery
import os
import sys

_libraries = []  # torch drops a declaration when its Library object is collected


def declare_missing_schemas(torchvision_dir: str) -> bool:
    """Declares the two schemas unless torchvision's own library loads.

    Args:
        torchvision_dir: the folder of the torchvision package that is about to be imported.

    Returns:
        Whether the schemas were declared here.
    """
    import torch

    try:
        torch.ops.load_library(os.path.join(torchvision_dir, "_C.so"))
        return False
    except OSError:
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    return True


class _TorchvisionFinder:
    """Finds nothing; acts once, just before torchvision is imported."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(cls)
            spec = importlib.machinery.PathFinder.find_spec(name)
            if spec is not None and spec.submodule_search_locations:
                declare_missing_schemas(spec.submodule_search_locations[0])


if "torchvision" not in sys.modules and _TorchvisionFinder not in sys.meta_path:
    sys.meta_path.insert(0, _TorchvisionFinder)
