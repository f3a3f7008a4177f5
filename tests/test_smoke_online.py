"""The program for people with a network, on stored repositories in place of github.com."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq
from repositories import configure
from shared_data import DATA, needs_data

from pipelines import smoke_online


@needs_data
def test_objects_of_a_source_go_through_every_stage_and_the_table_says_what_came_out(tmp_path, monkeypatch, capsys):
    configure(monkeypatch, f"file://{DATA / 'repos'}/")
    with (DATA / "repos.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file_type"] in ("obj", "stl")]
    names = {"fileIdentifier": "file_identifier", "sha256": "sha256", "fileType": "file_type", "license": "licence"}
    table = [{**{name: row[column] for name, column in names.items()}, "source": "github"} for row in rows]
    (tmp_path / "github").mkdir()
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "github" / "github.parquet")
    flags = {
        "preset": "demo",
        "objects": "4",
        "origins": "github",
        "store": tmp_path / "store",
        "source.annotations": tmp_path,
        "catalog.shards": "1",
        "views.points": "200",
        "renders.resolution": "32",
        "renders.samples": "1",
        "compute.workers": "0",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["smoke_online", *words])
    smoke_online.main()
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("github ")]
    counts = [int(word) for word in line.split()[1:7]]
    assert counts[0] == 4 and all(1 <= count <= 4 for count in counts)
    assert "random-small: not compared with the authors' code" in said
