"""Proof that a model's weights are the ones it was loaded with: a checksum of every piece, compared again later.

Works on any device; the sums are of integers, so equal bytes give equal checksums everywhere. They find faults, of
memory or of software; they are no cryptographic hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import accumulate

import torch

PIECE_BYTES = 16 * 2**20
"""Bytes per checksum; a comparison needs four times as much beside the model."""

_ODD = -7046029254386353131
"""2^64 divided by the golden ratio, as a signed integer."""

_Piece = tuple[str, int]
"""Name of a tensor and the piece's first byte in it."""


class Seal:
    """Checksums of a model's parameters and persistent buffers, taken when it is made.

    Attributes:
        hash: of all of them, 64 hexadecimal digits.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        pieces = _pieces(model)
        self._expected = dict(zip(pieces, _checksums(pieces.values()), strict=True))
        self._next = 0
        described = "".join(f"{name}\0{start}\0{checksum}\n" for (name, start), checksum in self._expected.items())
        self.hash = hashlib.sha256(described.encode()).hexdigest()

    def broken(self, limit: int | None = None) -> str | None:
        """The name of a tensor whose bytes have changed, or None.

        Args:
            limit: how many bytes to compare at most, but one piece at least, going round from call to call; None
                compares all.
        """
        found = _pieces(self._model)
        if missing := self._expected.keys() ^ found.keys():
            return min(missing)[0]
        chosen = list(found) if limit is None else self._turn(found, limit)
        sums = _checksums(found[piece] for piece in chosen)
        changed = (piece for piece, value in zip(chosen, sums, strict=True) if self._expected[piece] != value)
        return next((name for name, _ in changed), None)

    def _turn(self, pieces: dict[_Piece, torch.Tensor], limit: int) -> list[_Piece]:
        """The pieces whose turn it is."""
        names = list(pieces)
        in_order = names[self._next :] + names[: self._next]
        sizes = accumulate(len(pieces[name]) for name in in_order)
        turn = [name for name, size in zip(in_order, sizes, strict=True) if size <= limit] or in_order[:1]
        self._next = (self._next + len(turn)) % len(names)
        return turn


def _pieces(model: torch.nn.Module) -> dict[_Piece, torch.Tensor]:
    """Views of the model's memory, as bytes; a tensor with gaps in it is copied."""
    pieces: dict[_Piece, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().reshape(-1).view(torch.uint8)
        pieces |= {(name, at): flat[at : at + PIECE_BYTES] for at in range(0, len(flat), PIECE_BYTES)}
    return pieces


def _checksums(pieces: Iterable[torch.Tensor]) -> list[int]:
    """Σ w_i x_i modulo 2^64 over a piece's 64-bit words; w_i is odd, so that one changed word always shows."""
    sums = []
    weights = torch.empty(0, dtype=torch.int64)
    for piece in pieces:
        words = torch.zeros(-(-len(piece) // 8), dtype=torch.int64, device=piece.device)
        words.view(torch.uint8)[: len(piece)] = piece
        if len(weights) < len(words) or weights.device != words.device:
            weights = torch.arange(1, 2 * len(words), 2, device=words.device) * _ODD
        sums.append(words.mul_(weights[: len(words)]).sum())
    return torch.stack(sums).tolist()
