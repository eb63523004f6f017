"""Real torch, transformers and timm, which `launch/test.sh --interop` installs."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def torchvision():
    """timm and transformers import torchvision, of which nothing is used here.

    Its wheels on PyPI are built for CUDA; beside a torch for CPU the two operators that it
    describes on import are not there, so they are declared.
    """
    torch = pytest.importorskip("torch")
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision
