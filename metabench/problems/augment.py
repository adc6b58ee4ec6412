"""Augmentations of a batch of images, differentiable in how strong they are.

All strengths are [n], one an image, or one number; 0 leaves the image as it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Strengths(NamedTuple):
    """What is done to each image: ``rotation`` in degrees, shifts ``right`` and ``down`` as parts
    of the side, ``scale`` as the log of the magnification, ``brightness`` as the part by which
    pixels grow, ``cutout`` the side of an erased square as a part of the image's."""

    rotation: Tensor
    right: Tensor
    down: Tensor
    scale: Tensor
    brightness: Tensor
    cutout: Tensor


def augment(x: Tensor, by: Strengths, corner: Tensor) -> Tensor:
    """Images [n, channels, side, side], turned, shifted, magnified, brightened, and a square around
    ``corner`` [n, 2] (in 0..1) erased. What comes in from outside is black."""
    x = warped(x, affine(by)) * (1 + by.brightness.view(-1, 1, 1, 1))
    return x * (1 - erased(x.shape[-1], by.cutout, corner))


def rotated(x: Tensor, degrees: Tensor) -> Tensor:
    """Images [n, channels, side, side] turned by ``degrees`` [n].

    The grid is written out: affine_grid has no rule for vmap.
    """
    side, angle = x.shape[-1], degrees * (math.pi / 180)
    at = (2 * torch.arange(side, dtype=x.dtype, device=x.device) + 1) / side - 1
    cos, sin = (v.to(x)[:, None, None] for v in (angle.cos(), angle.sin()))
    right, down = at[None, None, :], at[None, :, None]
    grid = torch.stack([cos * right - sin * down, sin * right + cos * down], -1)
    return F.grid_sample(x, grid, align_corners=False)


def affine(by: Strengths) -> Tensor:
    """[n, 2, 3]: where each pixel comes from, in coordinates from -1 to 1."""
    angle, near = by.rotation * (math.pi / 180), (-by.scale).exp()
    cos, sin = near * angle.cos(), near * angle.sin()
    rows = (cos, -sin, -2 * by.right), (sin, cos, -2 * by.down)
    return torch.stack([torch.stack(torch.broadcast_tensors(*row), -1) for row in rows], -2)


def warped(x: Tensor, to: Tensor) -> Tensor:
    """Images [n, channels, h, w] read bilinearly where ``to`` [n, 2, 3] says."""
    grid = F.affine_grid(to.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def erased(side: int, size: Tensor, corner: Tensor) -> Tensor:
    """[n, 1, side, side]: the part of each pixel that a square of ``size`` sides covers."""
    first = torch.arange(side, dtype=corner.dtype, device=corner.device) / side
    half, centre = size.view(-1, 1, 1) / 2, corner[..., None]
    low = torch.maximum(first, centre - half)
    high = torch.minimum(first + 1 / side, centre + half)
    covered = side * (high - low).clamp(min=0)  # [n, 2, side]
    return (covered[:, 0, :, None] * covered[:, 1, None, :])[:, None]
