"""Tars as the library reads them."""

import gc
import warnings

import webdataset


def read_back(paths):
    """Samples by key; the library leaves its files to the collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = [dict(sample) for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)]
        gc.collect()
    assert len({sample["__key__"] for sample in found}) == len(found)
    return {sample["__key__"]: sample for sample in found}
