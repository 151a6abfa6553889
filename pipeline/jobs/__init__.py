"""The life of a batch, from submission to its final status.

Every function here may run twice, at the same time as any other, or be cut off anywhere: a transaction is the unit,
and what one left undone the sweeper finds.

Rows are locked in one order, by whoever locks more than one: slices, requests, batches, files, ledger; and within a
table in the order of ids.
"""

from __future__ import annotations
