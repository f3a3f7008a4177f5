"""Text to image retrieval: at which rank of a database the true image of each text stands (docs/method.md 8.2).

rank = 1 + (images more similar) + (images equally similar with a smaller index): ties are decided, always alike.
The matrix of similarities is made and looked at a block of queries at a time, never held as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 23  # similarities at once: 32 MiB
AT = (1, 5, 10)
PAPER_LIST = 10
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Retrieval:
    """Where each query's true image stands.

    Attributes:
        ranks: int64 [Q], 1 for the first; in ``paper`` order, ``places`` of ``paper_places``.
        database: number of images.
        paper: whether they are places in the released code's unsorted list.
    """

    ranks: NDArray[np.int64]
    database: int
    paper: bool = False

    def hits(self, at: int) -> NDArray[np.float64]:
        """1 for each query whose image is among the first so many, else 0: float64 [Q]; its mean is the recall."""
        return (self.ranks <= at).astype(np.float64)

    def recall(self, at: int) -> float:
        """Share of the queries whose image is among the first so many."""
        return float(self.hits(at).mean())

    def recalls(self) -> dict[int, float]:
        """Recall at 1, 5 and 10."""
        return {at: self.recall(at) for at in AT}


def vectors(tokens: Tensor, precision: Precision = "float32") -> Tensor:
    """CLS, or the mean of the patches, as retrieval compares it: of length 1.

    Args:
        tokens: [N, C] CLS, or [N, T, C] patches, which are pooled; of any precision.
        precision: float16 rounds the result, as the released evaluation does.

    Returns:
        [N, C] in that precision.

    Raises:
        ValueError: another shape, or rows that are not finite or have no direction.
    """
    exact = tokens.float()
    pooled = exact.mean(1) if exact.ndim == 3 else exact
    if pooled.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens {tuple(tokens.shape)} are neither [N, C] nor [N, T, C] with at least one of each")
    lengths = pooled.norm(dim=1)
    if bad := (~(torch.isfinite(lengths) & (lengths > 0))).nonzero().flatten().tolist():
        raise ValueError(f"{len(bad)} of {len(pooled)} vectors are not finite or zero, the first of them row {bad[0]}")
    return (pooled / lengths[:, None]).to(torch.float16 if precision == "float16" else torch.float32)


def similarities(queries: Tensor, database: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Which queries, and their similarities with all images, float32 [q, N], a block at a time.

    The block's memory is used again for the next one. Of float16 vectors, products are rounded to float16 too, after
    they are summed in float32: what a GPU does.

    Raises:
        ValueError: shapes or precisions that do not fit.
    """
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1] or not len(database):
        raise ValueError(f"queries {tuple(queries.shape)} can't be sought among {tuple(database.shape)}")
    if queries.dtype != database.dtype:
        raise ValueError(f"queries of {queries.dtype} and a database of {database.dtype} are not alike")
    columns = database.float().T.contiguous()
    rows = max(1, BLOCK // len(database))
    buffer = torch.empty(min(rows, len(queries)), len(database), device=queries.device)
    for start in range(0, len(queries), rows):
        which = slice(start, min(start + rows, len(queries)))
        block = torch.mm(queries[which].float(), columns, out=buffer[: which.stop - start])
        yield which, block.half().float() if queries.dtype == torch.float16 else block


def retrieve(queries: Tensor, database: Tensor, truth: Tensor, *, paper: bool = False) -> Retrieval:
    """Seek each query's image.

    Args:
        queries: [Q, C], of ``vectors``; several may have the same truth.
        database: [N, C], of ``vectors`` in the same precision.
        truth: int64 [Q], indices of the true images.
        paper: places in the released code's list instead of ranks, see ``paper_list``.

    Raises:
        ValueError: no queries, shapes that do not fit, or truths that are no images of the database.
    """
    if not len(queries) or truth.shape != (len(queries),):
        raise ValueError(f"{len(queries)} queries can't be sought with truths {tuple(truth.shape)}")
    if int(truth.min()) < 0 or int(truth.max()) >= len(database):
        raise ValueError(f"truths {int(truth.min())} to {int(truth.max())} are not all among {len(database)} images")
    ranks = torch.empty(len(queries), dtype=torch.int64)
    for which, block in similarities(queries, database):
        true = truth[which].to(block.device)
        ranks[which] = paper_places(block, true) if paper else ranks_of(block, true)
    return Retrieval(ranks.numpy(), len(database), paper)


def ranks_of(block: Tensor, truth: Tensor) -> Tensor:
    """Ranks [q] of the truths [q] among similarities [q, N]."""
    values, true = block.cpu().numpy(), block.gather(1, truth[:, None]).cpu().numpy()
    # numpy counts six times as fast as torch sums truth values.
    ranks = 1 + np.count_nonzero(values > true, axis=1)
    for row in np.flatnonzero(np.count_nonzero(values == true, axis=1) > 1):  # ties are rare
        ranks[row] += np.count_nonzero(values[row, : truth[row]] == true[row])
    return torch.from_numpy(ranks)


def top(queries: Tensor, database: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most similar images of each query, best first, ties by index: for pictures of what is found.

    Args:
        queries: [Q, C].
        database: [N, C].
        count: how many; fewer where the database has no more.

    Returns:
        Indices int64 [Q, count] and similarities float32 [Q, count].
    """
    found = [best(block, min(count, len(database))) for _, block in similarities(queries, database)]
    indices = torch.cat([some for some, _ in found]) if found else torch.empty(0, count, dtype=torch.int64)
    return indices, torch.cat([values for _, values in found]) if found else torch.empty(0, count)


def best(block: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and values of the greatest of [q, N], best first, ties by index."""
    # One whole number says both: the bits of a float, made to rise with it, and below them the index, falling.
    bits = (block + 0.0).view(torch.int32).long()  # -0 becomes 0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    index = torch.arange(block.shape[1], device=block.device)
    chosen = (rising * (1 << 32) - index).topk(count, dim=1).indices
    return chosen.cpu(), block.gather(1, chosen).cpu()


def paper_list(block: Tensor) -> Tensor:
    """The released code's top 10 of similarities [q, N], which it cuts after 1 and 5 as if it were sorted.

    It takes them with ``sorted=False``. A GPU gives those above the tenth value in the order of their index, and the
    tenth last: so the first of the list is any of the best nine.

    Returns:
        int64 [q, 10], or all N if there are fewer.
    """
    ranked, _ = best(block, min(PAPER_LIST, block.shape[1]))
    return torch.cat([ranked[:, :-1].sort(dim=1).values, ranked[:, -1:]], dim=1)


def paper_places(block: Tensor, truth: Tensor) -> Tensor:
    """Places [q] of the truths in ``paper_list``, from 1; one beyond the list where they are not in it."""
    listed = paper_list(block) == truth[:, None].cpu()
    return torch.where(listed.any(1), 1 + listed.int().argmax(1), listed.shape[1] + 1)
