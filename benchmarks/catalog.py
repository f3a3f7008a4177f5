"""From tables of Objaverse-XL's size to catalog shards: seconds, memory, and the ratio to a plain rewrite of the rows.

The rows are made up, with the columns, lengths, repetitions and shares of the real tables (10.2 million objects of four
sources, 480,000 captions and scores); the selection is the paper's: 60,000 objects and a reserve. The rival reads the
same tables and writes them again, partitioned by a hash, and decides nothing: DuckDB at its best.

python -m benchmarks.catalog [--rows 10200000] [--described 480000]; it writes where ``TMPDIR`` says.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from benchmarks._arguments import Arguments
from benchmarks._timing import ratio, timed

SHARES = {"github": 0.5496, "thingiverse": 0.3652, "sketchfab": 0.0847, "smithsonian": 0.0005}
IDENTIFIERS = {
    "github": "'https://github.com/org' || (r % 90000) || '/repository-' || (r % 300000) || '/blob/' "
    "|| sha1((r % 300000)::VARCHAR) || '/assets/models/part' || (i % 97) || '/mesh_' || i || '.obj'",
    "thingiverse": "'https://www.thingiverse.com/thing:' || (r % 2000000) || '/files?fileId=' || i",
    "sketchfab": "'https://sketchfab.com/3d-models/' || md5(i::VARCHAR)",
    "smithsonian": "'https://3d-api.si.edu/content/document/3d_package:' || md5(i::VARCHAR) || '/' || i || '.glb'",
}
TYPES = "['obj', 'glb', 'gltf', 'usdz', 'usd', 'fbx', 'stl', 'usda', 'dae', 'ply', 'abc', 'blend'][1 + (r % 12)::INT]"
LICENCES = (
    "['MIT License', NULL, 'Creative Commons - Attribution', 'GNU General Public License v3.0', "
    "'Creative Commons - Attribution - Non-Commercial', 'Apache License 2.0'][1 + (r % 6)::INT]"
)
ALLOWED = ("MIT*", "Apache*", "Creative Commons - Attribution", "")
# The program with the memory that it took at most, in its last line.
PROGRAM = """
import json, resource, sys
from pipelines import catalog
from gap3d.settings import Settings
report = catalog.run(Settings.model_validate_json(sys.argv[1]))
print(json.dumps([report.count("found"), report.by_status("catalog"), [dict(step) for step in report.funnel]]))
"""


def write_tables(folder: Path, rows: int, described: int) -> tuple[list[Path], Path]:
    """The made-up tables: (annotations, captions)."""
    connection = duckdb.connect()
    tables = []
    for source, share in SHARES.items():
        path = folder / f"{source}.parquet"
        kind = TYPES if source == "github" else "'stl'" if source == "thingiverse" else "'glb'"
        words = "'{}'" if source == "sketchfab" else """'{"filename": "file_' || i || '.obj", "title": "a thing"}'"""
        connection.execute(f"""
            COPY (
                SELECT {IDENTIFIERS[source]} AS fileIdentifier, '{source}' AS source, {LICENCES} AS license,
                    {kind} AS fileType,
                    sha256('{source}' || CASE WHEN r % 20 = 0 THEN i // 2 ELSE i END) AS sha256, {words} AS metadata
                FROM (SELECT i, (hash(i) % 1000000007)::BIGINT AS r FROM range({round(rows * share)}) t(i))
            ) TO '{path}' (FORMAT parquet)
        """)
        tables.append(path)
    told = folder / "captions.csv"
    connection.execute(f"""
        COPY (
            SELECT sha256, fileIdentifier AS file_identifier, 4 + (hash(sha256) % 400) / 100 AS aesthetic_score,
                to_json([repeat('a red wooden chair, ', n) || md5(sha256) FOR n IN range(1, 9)]) AS captions
            FROM read_parquet('{folder}/github.parquet') WHERE hash(fileIdentifier) % 5610000 < {described}
        ) TO '{told}' (HEADER)
    """)
    connection.close()
    return tables, told


def measured(command: list[str]) -> tuple[float, float, str]:
    """(seconds, most resident GiB, what it printed) of a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if after == before:
        raise RuntimeError("an earlier program took more memory: measure the largest one first")
    return seconds, after / 2**20, done.stdout


def main() -> None:
    """The table."""
    parser = Arguments(__doc__)
    parser.add_size("--rows", 10_200_000, 20_000)
    parser.add_size("--described", 480_000, 2_000)
    parser.add_size("--shards", 64, 4)
    asked = parser.read()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables, told = write_tables(folder, asked.rows, asked.described)
        size = sum(path.stat().st_size for path in (*tables, told)) / 2**30
        started = time.perf_counter()
        rival = duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(folder / "spilled")})
        rival.execute("SET preserve_insertion_order = false")
        rival.execute(f"""
            COPY (SELECT *, hash(fileIdentifier) % 64 AS shard FROM read_parquet({[str(path) for path in tables]}))
            TO '{folder}/plain' (FORMAT parquet, PARTITION_BY (shard), COMPRESSION zstd)
        """)
        rival.close()
        plain = time.perf_counter() - started
        settings = {
            "store": str(folder / "store"),
            "collection": "objaverse",
            "source": {"kind": "tables", "tables": [str(path) for path in tables], "described_by": [str(told)]},
            "catalog": {"count": 72_000, "shards": asked.shards, "licences": ALLOWED},
        }
        command = [sys.executable, "-c", PROGRAM, json.dumps(settings)]
        seconds, memory, printed = measured(command)
        found, statuses, funnel = json.loads(printed.splitlines()[-1])
        again = timed(lambda: subprocess.run(command, check=True, stdout=subprocess.PIPE))
        print(f"{found} rows, {size:.2f} GiB of tables, to {sum(statuses.values())} rows in {asked.shards} shards:")
        print(f"  {statuses}")
        for step in funnel:
            print(f"  {step['step']:<20} {step['left_out']:>9} out, {step['rows']:>9} left")
        print(f"catalog {seconds:.1f} s, {memory:.2f} GiB; again, nothing changed: {again:.1f} s")
        print(f"plain rewrite by DuckDB {plain:.1f} s; ratio {ratio([seconds], [plain]):.2f}")


if __name__ == "__main__":
    main()
