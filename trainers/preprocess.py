"""What Preprocess says, done on the device: uint8 images to the model's input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.spec import Preprocess


def prepare(images: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (N, height, width, channels) -> normalised float32 (N, channels, *size), on the images' device.

    Images of another aspect are scaled until they cover `size`. The result is a channels-last view of memory wherever
    nothing had to be scaled.
    """
    x = images.permute(0, 3, 1, 2).float()
    height, width = x.shape[2:]
    rows, columns = preprocess.size
    scale = max(preprocess.resize / min(height, width), rows / height, columns / width)
    if scale != 1:
        target = (round(height * scale), round(width * scale))
        x = F.interpolate(x, target, mode=preprocess.interpolation, align_corners=False, antialias=scale < 1)
    top, left = (x.shape[2] - rows) // 2, (x.shape[3] - columns) // 2
    x = x[:, :, top : top + rows, left : left + columns]
    mean = torch.tensor(preprocess.mean, device=x.device).view(1, -1, 1, 1)
    std = torch.tensor(preprocess.std, device=x.device).view(1, -1, 1, 1)
    return (x / 255 - mean) / std
