"""What a recorded decoding step reads: memory that stays in its place, on the host and on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.layers.attention import StepMetadata
from workers.engine.device_memory import Mirrored, StreamMark
from workers.engine.messages import Draw, Step

#: Rows of the buffer of numbers.
_TOKEN_ID, _POSITION, _SLOT = range(3)
#: A row that is no sequence: no slot is written, and position -1 makes a context of length 0, which attends to nothing.
_PADDING = np.array([[0], [-1], [-1]])


class DecodeInputs:
    """One new token for each of at most `max_num_sequences`.

    What was filled in is read by the next step on the device's stream, which may run long after `fill` has returned.
    """

    def __init__(self, max_num_sequences: int, max_num_blocks: int, block_size: int, device: torch.device) -> None:
        """`max_num_blocks` is how many blocks the longest sequence may have."""
        self._block_size = block_size
        self._numbers = Mirrored((3, max_num_sequences), torch.int64, device)
        self._tables = Mirrored((max_num_sequences, max_num_blocks), torch.int32, device)
        self._temperatures = Mirrored((max_num_sequences,), torch.float32, device)
        self._keys = Mirrored((max_num_sequences, 2), torch.int32, device)
        self._numbers.host[:] = _PADDING
        self._numbers.send()
        self._starts = torch.arange(max_num_sequences + 1, dtype=torch.int32, device=device)
        #: Behind the copies to the device: only then may what they read be written again.
        self._copied = StreamMark(device)
        self._copied.set()
        #: The table that each row of `_tables` holds: most do not change from one step to the next.
        self._held: list[list[int]] = [[] for _ in range(max_num_sequences)]

    def fill(self, step: Step, size: int) -> None:
        """Put the step's sequences into the first rows, and padding into the others of the first `size`."""
        num = len(step.token_ids)
        self._copied.wait()
        self._fill_tables(step.block_tables)
        positions = np.asarray(step.context_lengths) - 1
        blocks = self._tables.host[np.arange(num), positions // self._block_size].astype(np.int64)
        numbers = self._numbers.host
        numbers[_TOKEN_ID, :num] = step.token_ids
        numbers[_POSITION, :num] = positions
        numbers[_SLOT, :num] = blocks * self._block_size + positions % self._block_size
        numbers[:, num:size] = _PADDING
        self._numbers.send()
        if step.draws:
            self._fill_draws(step.draws)
        self._copied.set()

    def token_ids(self, size: int) -> Tensor:
        """[size] int64, as the step has them: ~row for what the step before chose in that row."""
        return self._numbers.device[_TOKEN_ID, :size]

    def positions(self, size: int) -> Tensor:
        """[size] int64; -1 in a row of padding."""
        return self._numbers.device[_POSITION, :size]

    def metadata(self, size: int) -> StepMetadata:
        """Of the first `size` rows. Context lengths are computed from the positions, which is part of the step."""
        return StepMetadata(
            slots=self._numbers.device[_SLOT, :size],
            query_starts=self._starts[: size + 1],
            context_lengths=(self.positions(size) + 1).to(torch.int32),
            block_tables=self._tables.device[:size],
        )

    def draws(self, num: int) -> tuple[Tensor, Tensor]:
        """Temperatures [num] float32, 0 where nothing is drawn, and keys [num, 2] int32 of the first rows."""
        return self._temperatures.device[:num], self._keys.device[:num]

    def _fill_draws(self, draws: list[Draw]) -> None:
        temperatures, firsts, seconds = zip(*draws, strict=True)
        rows = slice(len(draws))
        self._temperatures.host[rows] = temperatures
        self._keys.host[rows] = np.column_stack((firsts, seconds))
        self._temperatures.send(rows)
        self._keys.send(rows)

    def _fill_tables(self, tables: list[list[int]]) -> None:
        changed = [row for row, table in enumerate(tables) if self._held[row] != table]
        if not changed:
            return
        rows = self._tables.host
        for row in changed:
            self._held[row] = tables[row].copy()
            rows[row, : len(tables[row])] = tables[row]
        self._tables.send(slice(changed[0], changed[-1] + 1))
