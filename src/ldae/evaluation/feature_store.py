"""Features of many images in bounded memory: beyond a limit they are kept in a temporary file."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


FEATURE_MEMORY = 4 * 2**30  # bytes of features that are kept in memory
PIECE_BYTES = 8 * 2**20  # of features that are read at a time when all of them are needed


class FeatureStore:
    """Features `(n, F, C)` in float32, written in pieces and read by rows.

    Beyond the limit they are in a file without a name, so that nothing is left behind however the process ends; it is
    read and not mapped, so that what was read does not stay in the process.

    Args:
        memory (`int`, defaults to 4 GiB): Bytes that are kept in memory (twice that while the first read joins the
            pieces); one piece more moves all into the file, in the system's temporary folder (TMPDIR).

    Example:
        >>> kept, written = FeatureStore(), FeatureStore(memory=0)
        >>> for store in (kept, written):
        ...     store.append(torch.arange(6.0).view(3, 1, 2))
        ...     store.append(torch.arange(6.0, 10).view(2, 1, 2))
        >>> written.shape, written.in_memory
        ((5, 1, 2), False)
        >>> index = torch.tensor([[4, 0], [1, 1]])
        >>> torch.equal(kept[index], written[index])
        True
    """

    def __init__(self, memory: int = FEATURE_MEMORY) -> None:
        self.memory = memory
        self.device = torch.device("cpu")
        self._pieces: list[torch.Tensor] = []
        self._file: Any = None
        self._rows = 0
        self._row_shape: tuple[int, ...] = ()

    def append(self, rows: torch.Tensor) -> None:
        """Add features `(b, F, C)` of the next b images.

        Raises:
            ValueError: If their F or C differs from that of earlier rows.
        """
        if rows.ndim != 3 or (self._rows and tuple(rows.shape[1:]) != self._row_shape):
            raise ValueError(f"features must be (b, F, C) with (F, C) = {self._row_shape}; got {tuple(rows.shape)}.")
        self._row_shape = tuple(rows.shape[1:])
        self._rows += len(rows)
        self._pieces.append(rows.float().to(self.device))
        if self._file is not None or self._rows * self._row_bytes > self.memory:
            if self._file is None:
                # closed with the store
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._file.seek(0, os.SEEK_END)
            for piece in filter(len, self._pieces):
                # One call may write only part of a large piece.
                left = memoryview(piece.cpu().contiguous().numpy().data).cast("B")
                while left:
                    left = left[self._file.write(left) :]
            self._pieces = []

    def __len__(self) -> int:
        return self._rows

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, F, C)`."""
        return (self._rows, *self._row_shape)

    @property
    def in_memory(self) -> bool:
        """`True` if nothing is in the file."""
        return self._file is None

    def to(self, device: torch.device | str) -> "FeatureStore":
        """Give rows on a device from now on; what is in memory moves there."""
        self.device = torch.device(device)
        self._pieces = [piece.to(self.device) for piece in self._pieces]
        return self

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Read the features `(..., F, C)` of the rows `(...)`."""
        if not self.in_memory:
            rows = self._read(index.flatten().cpu().numpy()).to(self.device)
        else:
            self._join()
            rows = self._pieces[0].index_select(0, index.flatten().to(self.device))
        return rows.view(*index.shape, *self._row_shape)

    def whole(self) -> torch.Tensor:
        """Read all features `(n, F, C)`, without a copy of those in memory."""
        if not self.in_memory:
            return self[torch.arange(self._rows)]
        self._join()
        return self._pieces[0]

    def _join(self) -> None:
        if len(self._pieces) > 1:
            self._pieces = [torch.cat(self._pieces)]

    @property
    def _row_bytes(self) -> int:
        return 4 * int(np.prod(self._row_shape))

    def _read(self, index: np.ndarray) -> torch.Tensor:
        """Read rows of the file, neighbouring ones at once."""
        rows = torch.empty(len(index), *self._row_shape)
        if not len(index):
            return rows
        into = memoryview(rows.numpy().data).cast("B")
        size = self._row_bytes
        starts = np.flatnonzero(np.diff(index, prepend=-2) != 1)
        for begin, end in zip(starts, [*starts[1:], len(index)], strict=True):
            place, left = int(index[begin]) * size, into[begin * size : end * size]
            while left:
                self._file.seek(place)
                count = self._file.readinto(left)
                if not count:
                    raise OSError("the temporary file of features is shorter than what was written to it.")
                place, left = place + count, left[count:]
        return rows


class Rows:
    """The rows `index` `(m,)` of a store, in this order: what a probe trains on."""

    def __init__(self, store: FeatureStore, index: torch.Tensor) -> None:
        self.store, self.index = store, index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(m, F, C)`."""
        return (len(self.index), *self.store.shape[1:])

    def to(self, device: torch.device | str) -> "Rows":
        """Give rows on a device from now on, as [`FeatureStore.to`]."""
        return Rows(self.store.to(device), self.index.to(device))

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Read the features `(..., F, C)` of the rows `(...)`."""
        return self.store[self.index[index.to(self.index.device)]]


def pieces_of(features: torch.Tensor | Rows, copies: int = 1) -> Iterator[torch.Tensor]:
    """Yield all features `(n, F, C)` in their order, `(b, F, C)` at a time: with `copies` of a piece about 8 MiB."""
    n, num_sets, width = features.shape
    rows = max(1, PIECE_BYTES // (4 * num_sets * width * copies))
    device = features.device if isinstance(features, torch.Tensor) else features.index.device
    for begin in range(0, n, rows):
        yield features[torch.arange(begin, min(begin + rows, n), device=device)]
