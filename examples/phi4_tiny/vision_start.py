"""Where the picture encoder's training starts: heads that look at neighbours, as a convolution does.

A position is written as cosines and sines of its row and column, for which "one to the left" is a
rotation; each head starts with the rotation of one neighbour. From random positions, training
spends most of its steps on finding out which patches are next to each other.
"""

import math

import torch

SIDE, WAVES = 32, 8  # positions along a side; waves per axis
# what the four heads of a layer look at, in patches (down, right)
ACROSS = ((0, 1), (0, -1), (1, 0), (-1, 0))
DIAGONAL = ((1, 1), (1, -1), (-1, 1), (-1, -1))
LAYERS = ((ACROSS, 1), (DIAGONAL, 1), (ACROSS, 2), (DIAGONAL, 2))  # directions, distance
SHARPNESS = 2.0


def waves():
    """Angle of one step for each wave: low enough that positions between two patches blend."""
    return math.pi * (torch.arange(WAVES) + 0.5) / 12


def position_table():
    """(SIDE * SIDE, 4 * WAVES): cosines and sines of the row, then of the column."""
    angles = torch.arange(SIDE)[:, None] * waves()
    one = torch.cat([angles.cos(), angles.sin()], 1)
    rows, columns = one[:, None].expand(-1, SIDE, -1), one[None].expand(SIDE, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def turn(steps):
    """(2 * WAVES, 2 * WAVES) matrix that moves a position by ``steps`` along its axis."""
    c, s = (waves() * steps).cos().diag(), (waves() * steps).sin().diag()
    return torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)])


@torch.no_grad()
def start_local(tower, used_layers):
    """Set positions, queries and keys of ``tower``'s first ``used_layers`` layers as said above."""
    size = 4 * WAVES
    table = tower.embeddings.position_embedding.weight
    table.zero_()
    table[:, :size] = position_table()
    tower.embeddings.patch_embedding.weight[:size] = 0
    for layer, (directions, distance) in zip(tower.encoder.layers[:used_layers], LAYERS, strict=True):
        attention = layer.self_attn
        for head, (down, right) in enumerate(directions):
            rows = slice(head * size, (head + 1) * size)  # a head is as wide as a position
            move = torch.block_diag(turn(down * distance), turn(right * distance))
            for linear, matrix in ((attention.q_proj, move), (attention.k_proj, torch.eye(size))):
                linear.weight[rows] *= 0.1
                linear.weight[rows, :size] += SHARPNESS * matrix
        attention.out_proj.weight[:size] = 0
        layer.mlp.fc2.weight[:size] = 0
