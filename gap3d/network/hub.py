"""Files of the hub: where the repository with Sketchfab's objects has an object, and how it is asked."""

import gzip
import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import get_token_to_send

from gap3d import temporary
from gap3d.network.http import Web, host_of
from gap3d.network.origins import harmless
from gap3d.parts import fsync_path
from gap3d.records import Failure, Status, SystemicFault

REPOSITORY = "allenai/objaverse"
TABLE = "object-paths.json.gz"
LOGIN = "set HF_TOKEN to a token that may read it, or log in with `hf auth login`, then run again"
TABLE_BYTES = 1 << 30
GROUP_ROWS = 10_000  # of the kept table: what is read to find one uid


def token_state() -> str:
    """Whether the hub is told who is asking; never the token."""
    return "set" if get_token_to_send(None) else "none"


TABLE_COLUMNS = pa.schema([("uid", pa.string()), ("path", pa.string())])


def unzipped(path: Path) -> bytes:
    """The bytes of a gzip file.

    Raises:
        ValueError: they are more than a table of paths can have.
    """
    with gzip.open(path) as file:
        content = file.read(TABLE_BYTES + 1)
    if len(content) > TABLE_BYTES:
        raise ValueError(f"it unpacks to more than {TABLE_BYTES} bytes")
    return content


class Hub:
    """One revision of the repository.

    Args:
        web: asks the hub.
        folder: where the table of paths is kept; all workers of a store have the same.
        revision: a commit, branch or tag.
        endpoint: the hub's address; empty takes the public one.
    """

    def __init__(self, web: Web, folder: Path, revision: str, endpoint: str) -> None:
        self.web = web
        self.folder = folder
        self.revision = revision
        self.endpoint = endpoint.rstrip("/") or constants.ENDPOINT

    def fetch(self, filename: str, copy: Path, most: int) -> bool:
        """Write a file of the repository; see Web.fetch."""
        address = hf_hub_url(REPOSITORY, filename, repo_type="dataset", revision=self.revision, endpoint=self.endpoint)
        asked = self.web.mirrored(address)
        token = get_token_to_send(None) if host_of(asked) == host_of(self.endpoint) else None  # not a mirror's business
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self.web.fetch(asked, copy, most, headers, LOGIN)

    def path_of(self, uid: str) -> str:
        """The repository's path of a Sketchfab object.

        Raises:
            Failure: ``missing``: the table does not have it; ``unreachable``: there is no table yet.
        """
        rows = pq.read_table(self.table(), columns=["path"], filters=[("uid", "=", uid)])
        path = str(rows["path"][0]) if rows.num_rows else ""
        if not harmless(path):
            raise Failure(Status.MISSING, f"{TABLE} of {REPOSITORY} at {self.revision} has no object {uid}")
        return path

    def table(self) -> Path:
        """The table of paths, sorted by uid; fetched by whoever needs it first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / f"object-paths-{self.revision.replace('/', '_')}.parquet"
        if not kept.exists():
            with FileLock(kept.with_suffix(".lock")):
                if not kept.exists():
                    self.make_table(kept)
        return kept

    def make_table(self, kept: Path) -> None:
        """Fetch the table and keep it.

        Raises:
            SystemicFault: the hub has none at this revision: no object's fault.
        """
        with temporary.temporary_file(self.folder, ".table") as copy:
            try:
                self.fetch(TABLE, copy, TABLE_BYTES)
                paths = sorted(json.loads(unzipped(copy)).items())
                table = pa.table(
                    {"uid": [uid for uid, _ in paths], "path": [path for _, path in paths]}, schema=TABLE_COLUMNS
                )
            except Failure as failure:
                if failure.status is Status.UNREACHABLE:
                    raise
                raise SystemicFault(
                    f"{TABLE} of {REPOSITORY} at revision {self.revision}: {failure.reason}"
                ) from failure
            except (OSError, EOFError, zlib.error, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise SystemicFault(f"{TABLE} of {REPOSITORY} at {self.revision} is damaged: {error}") from error
            pq.write_table(table, copy, row_group_size=GROUP_ROWS, compression="zstd")
            fsync_path(copy)
            copy.replace(kept)
            fsync_path(self.folder)
