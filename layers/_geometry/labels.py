"""Labels s of tables of matches, rows (x1, y1, x2, y2, s): 1 a true match, others as the layer says."""

from __future__ import annotations

from torch import Tensor

from .._engine.checks import BlobError, deferred, raise_if


def expect_labels(wrong: Tensor, known: str, **tables: Tensor) -> None:
    """Raise :class:`BlobError` at the first row, of ``[P]`` or ``[N, P]``, that has a ``wrong`` label.

    ``known`` says in words which there are. The one table given by name is blamed; its column 4 is s.
    On a CUDA device ValueError, later, and without the row.
    """
    ((name, table),) = tables.items()
    if deferred(table):
        raise_if(wrong.any().reshape(1), f"{name}: s not {known}")
    elif bool(wrong.any()):
        *image, row = wrong.nonzero()[0].tolist()
        where = f"row {row} of image {image[0]}" if image else f"row {row}"
        s = table[(*image, row, 4)].item()
        raise BlobError(f"{{{name}}}: {where} has s = {s:g}, not {known}", **{name: table.shape})
