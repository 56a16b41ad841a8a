"""Images made by the project: characters of no script, for what photos do not show, lines and their shapes.

An alphabet of characters of one to three curves, the same ever; each time one is drawn it is bent, turned, thick or
thin, sharp or as coarse as 8 pixels, in two colours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

CHARACTERS = 300
_STROKES, _POINTS, _CORNERS = 3, 24, 4  # curves, points drawn of each, places of a grid where they begin, bend and end
_SIZES = (8, 12, 16, 32)  # pixels that a character is drawn with before it is enlarged
_BENT, _TURNED = 0.06, 0.25  # deviation of each of its three points, in shares of the side; of the angle, in radians


def _alphabet() -> tuple[Tensor, Tensor]:
    """Return the curves' points, (characters, strokes, 3, 2) in [-1, 1], and which curves there are."""
    draw = torch.Generator().manual_seed(7)
    corners = torch.randint(_CORNERS, (CHARACTERS, _STROKES, 3, 2), generator=draw)
    there = torch.arange(_STROKES) < torch.randint(1, _STROKES + 1, (CHARACTERS, 1), generator=draw)
    return (corners / (_CORNERS - 1) * 2 - 1) * 0.7, there


_CURVES, _THERE = _alphabet()


def draw_glyphs(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` characters, (count, 3, side, side) float32 in [-1, 1], and which they are, (count,) int64."""
    labels = torch.randint(CHARACTERS, (count,), generator=generator)
    curves = _CURVES[labels] + 2 * _BENT * torch.randn(count, _STROKES, 3, 2, generator=generator)
    angle = _TURNED * torch.randn(count, generator=generator)
    stretch = 0.75 + 0.45 * torch.rand(count, 2, generator=generator)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(count, 2, 2) * stretch[:, None]
    move = 0.2 * (torch.rand(count, 1, 2, generator=generator) * 2 - 1)
    along = torch.linspace(0, 1, _POINTS)
    shares = torch.stack([(1 - along) ** 2, 2 * along * (1 - along), along**2])  # a quadratic Bezier curve
    points = torch.einsum("nskd,kp->nspd", curves, shares).flatten(1, 2) @ turn + move
    missing = ~_THERE[labels].repeat_interleave(_POINTS, 1)
    thick = 0.06 + 0.1 * torch.rand(count, 1, generator=generator)
    size = _SIZES[int(torch.randint(len(_SIZES), (), generator=generator))]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flip(-1).view(1, -1, 2)
    away = torch.cdist(pixels.expand(count, -1, 2), points).masked_fill(missing[:, None], math.inf).amin(2)
    ink = torch.sigmoid((thick - away) * 1.5 * size).view(count, 1, size, size)
    ink = functional.interpolate(ink, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    paper, colour = (torch.rand(2, count, 3, 1, 1, generator=generator) * 2 - 1).unbind(0)
    grey = torch.rand(count, 1, 1, 1, generator=generator) < 0.5  # as often without colours
    paper = torch.where(grey, paper.mean(1, keepdim=True).sign().expand_as(paper), paper)
    colour = torch.where(grey, -paper, colour)
    return paper + (colour - paper) * ink, labels
