"""The loss of the detector of `train_networks.py`, in torch: task-aligned assignment, as YOLOv8 has it.

Each true box gets the cells inside of it whose score and overlap together are best (Feng et al., TOOD, 2021). Their
class scores are to become that measure, their boxes the true one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from detection import Boxes
from network_modules import Detector
from torch import Tensor
from torch.nn import functional

_MOST = 10  # cells for a box


def pack(boxes: Sequence[Boxes]) -> tuple[Tensor, Tensor]:
    """Corners float32 [n, most, 4] and classes int64 [n, most], -1 where there is no box."""
    most = max(len(found.classes) for found in boxes)
    corners, classes = np.zeros((len(boxes), most, 4), np.float32), np.full((len(boxes), most), -1)
    for row, found in enumerate(boxes):
        corners[row, : len(found.classes)], classes[row, : len(found.classes)] = found.corners, found.classes
    return torch.from_numpy(corners), torch.from_numpy(classes)


def detector_loss(network: Detector, pixels: Tensor, corners: Tensor, classes: Tensor) -> Tensor:
    """Of a batch; `corners` and `classes` as `pack` gives them."""
    distances, logits = network.raw(pixels)
    found = torch.cat(network.corners(distances), 1).transpose(1, 2)  # [n, cells, 4]
    scores = logits.transpose(1, 2)
    with torch.no_grad():
        owner, wanted = _assign(network, found, scores.sigmoid(), corners, classes)
    loss = functional.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")
    row, cell = torch.nonzero(owner >= 0, as_tuple=True)
    weight = wanted[row, cell].sum(1)
    total = weight.sum().clamp(min=1)
    true = corners[row, owner[row, cell]]
    overlap = _generalized(found[row, cell], true)
    loss = loss + 7.5 * ((1 - overlap) * weight).sum()
    return cast(Tensor, loss + 1.5 * (_edges(network, distances, row, cell, true) * weight).sum()) / total


def _assign(
    network: Detector, found: Tensor, scores: Tensor, corners: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each cell the box that it is for, -1 for none [n, cells], and its scores [n, cells, classes]."""
    centres = (network.cells * network.strides).t()  # [cells, 2]
    low, high = corners[:, :, None, :2], corners[:, :, None, 2:]
    inside = ((centres > low) & (centres < high)).all(3) & (classes >= 0)[:, :, None]  # [n, boxes, cells]
    overlap = _generalized(found[:, None], corners[:, :, None]).clamp(min=0)
    right = scores.transpose(1, 2).gather(1, classes.clamp(min=0)[:, :, None].expand(-1, -1, scores.shape[1]))
    measure = (right.sqrt() * overlap**4 + 1e-9) * inside
    best = measure.topk(_MOST, 2)
    chosen = torch.zeros_like(measure).scatter(2, best.indices, (best.values > 0).float()) * measure
    value, owner = chosen.max(1)
    owner = torch.where(value > 0, owner, -1)
    # The best cell of a box is to have its overlap as score, the others in proportion.
    scale = (overlap * (chosen > 0)).amax(2) / chosen.amax(2).clamp(min=1e-12)
    quality = value * scale.gather(1, owner.clamp(min=0))
    wanted = torch.zeros_like(scores)
    kinds = classes.gather(1, owner.clamp(min=0)).clamp(min=0)
    wanted.scatter_(2, kinds[:, :, None], (quality * (owner >= 0))[:, :, None])
    return owner, wanted.clamp(0, 1)


def _generalized(first: Tensor, second: Tensor) -> Tensor:
    """Generalized intersection over union of pairs of corners [..., 4]."""
    size = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(
        min=0
    )
    shared = size.prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    union = areas[0] + areas[1] - shared + 1e-6
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    return shared / union - (hull.prod(-1) - union) / (hull.prod(-1) + 1e-6)


def _edges(network: Detector, distances: Tensor, row: Tensor, cell: Tensor, true: Tensor) -> Tensor:
    """Distribution focal loss: the two bins around each true distance are to share the probability."""
    stride, centre = network.strides[0, cell][:, None], network.cells[:, cell].t()
    wanted = torch.cat([centre - true[:, :2] / stride, true[:, 2:] / stride - centre], 1)
    wanted = wanted.clamp(0, network.BINS - 1.01)
    logits = distances[row, :, cell].view(-1, network.BINS)
    low = wanted.long().flatten()
    share = wanted.flatten() - low
    losses = functional.cross_entropy(logits, low, reduction="none") * (1 - share)
    losses = losses + functional.cross_entropy(logits, low + 1, reduction="none") * share
    return losses.view(-1, 4).mean(1)
