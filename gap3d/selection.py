"""Which of the listed objects take part: one decision for every row of ten million, in DuckDB.

Each row is left out at the first step that it does not pass, or is admitted. The steps and their counts are the funnel.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from gap3d.annotations import checked, literal, table_sql
from gap3d.catalog import parse_captions
from gap3d.denials import matches, read_denials
from gap3d.records import Status, SystemicFault
from gap3d.references import FILE_TYPES
from gap3d.schemas import LEFT_OUT
from gap3d.settings import CatalogSettings

MEMORY = "2GB"  # of DuckDB; what does not fit goes to the scratch folder
OWN = ("folder", "samples")  # sources whose objects are never duplicates: equal bytes may have other companions
REPOSITORY = r"^https?://github\.com/([^/]+/[^/]+)/blob/([0-9a-fA-F]{7,64})/"
THING = r"^https?://www\.thingiverse\.com/(thing:[0-9]+)"
# A repository of a commit is fetched once for all its objects; a repository of any commit is near itself.
FETCH_GROUP = f"""CASE WHEN regexp_matches(identifier, '{REPOSITORY}')
    THEN regexp_replace(identifier, '{REPOSITORY}.*$', 'github.com/\\1@\\2') ELSE key END"""
CLUSTER = f"""CASE WHEN regexp_matches(identifier, '{REPOSITORY}')
    THEN 'github.com/' || lower(regexp_extract(identifier, '{REPOSITORY}', 1))
    ELSE coalesce(nullif(regexp_extract(identifier, '{THING}', 1), ''), sha256) END"""
HOSTS = {
    "https://github.com/": "github",
    "https://sketchfab.com/": "sketchfab",
    "https://www.thingiverse.com/": "thingiverse",
    "https://3d-api.si.edu/": "smithsonian",
}
LISTED: Mapping[str, str] = {
    **dict.fromkeys(("source", "identifier", "sha256", "licence", "file_type"), "VARCHAR"),
    "bytes": "BIGINT",
    "score": "DOUBLE",
    "captions": "VARCHAR",
}
TOLD: Mapping[str, str] = {"sha256": "VARCHAR", "identifier": "VARCHAR", "score": "DOUBLE", "captions": "VARCHAR"}
ONCE, FIRST, SAMPLE = "listed once", "first of its bytes", "sample"  # the steps that look at other rows
DENIED = "not denied"


@dataclass(frozen=True)
class Step:
    """A reason to leave a row out.

    Attributes:
        name: in the funnel.
        test: SQL that is true for the rows that are left out; None where other rows decide.
        status: of such a row.
        reason: SQL of its text.
    """

    name: str
    test: str | None
    status: Status
    reason: str


def steps(settings: CatalogSettings) -> list[Step]:
    """In the order in which they are asked; a setting that is not given asks nothing."""

    def outside(column: str, values: Sequence[str]) -> str:
        return f"{column} NOT IN ({', '.join(literal(value.lower()) for value in values)})" if values else "true"

    def left(why: str) -> str:
        return literal(f"left out by catalog.{why}")

    found = [
        Step("names a file", "identifier = ''", Status.UNSUPPORTED, "'the table names no file'"),
        Step(ONCE, None, Status.DUPLICATE, "'listed before: the same source and identifier'"),
        Step("known file type", outside("file_type", FILE_TYPES), Status.UNSUPPORTED, "'file type: ' || file_type"),
        Step(
            "has a sha256",
            "NOT regexp_full_match(sha256, '[0-9a-f]{64}')",
            Status.UNSUPPORTED,
            "'no sha256 in the table: its bytes could not be checked'",
        ),
        Step(DENIED, "denial IS NOT NULL", Status.EXCLUDED, "'denied: ' || denial"),
    ]
    if settings.sources is not None:
        found.append(Step("source", outside("source", settings.sources), Status.EXCLUDED, left("sources")))
    if settings.licences is not None:
        reason = f"{left('licences')} || ': ' || licence"
        found.append(Step("licence", "NOT licence_allowed", Status.EXCLUDED, reason))
    if settings.file_types is not None:
        found.append(Step("file type", outside("file_type", settings.file_types), Status.EXCLUDED, left("file_types")))
    if settings.most_bytes is not None:
        found.append(Step("size", f"bytes > {settings.most_bytes}", Status.EXCLUDED, left("most_bytes")))
    if settings.least_score is not None:
        test = f"score IS NULL OR NOT score >= {settings.least_score}"
        found.append(Step("aesthetic score", test, Status.EXCLUDED, left("least_score")))
    if settings.captioned:
        test = "CASE WHEN captions IS NULL THEN true ELSE NOT has_captions(captions) END"
        found.append(Step("captions", test, Status.EXCLUDED, left("captioned")))
    if settings.held_out:
        found.append(Step("not held out", "held_out", Status.EXCLUDED, left("held_out")))
    found.append(Step(FIRST, None, Status.DUPLICATE, "'same bytes as ' || duplicate_of"))
    if settings.count is not None:
        reason = literal(f"rank: beyond the first {settings.count} (catalog.count)")
        found.append(Step(SAMPLE, None, Status.NOT_ADMITTED, reason))
    return found


class Selection:
    """Decides over rows that are listed in files or in memory.

    Args:
        settings: the filters, the seed, the number of objects.
        scratch: an empty folder for what does not fit into memory: some 300 bytes a row.
        described_by: tables of captions and scores, joined by sha256 (docs/method.md 1.1); where several rows have
            the same bytes, the first file's counts.
    """

    def __init__(self, settings: CatalogSettings, scratch: Path, described_by: Sequence[Path] = ()) -> None:
        self.settings = settings
        self.scratch = scratch
        self.steps = steps(settings)
        self.number = {step.name: place for place, step in enumerate(self.steps, start=1)}
        self.denials = read_denials(settings.denied) if settings.denied else []
        self.connection = duckdb.connect(str(scratch / "selection.duckdb"))
        for setting in (
            f"memory_limit = '{MEMORY}'",
            f"temp_directory = {literal(str(scratch / 'spilled'))}",
            "preserve_insertion_order = false",
            "enable_progress_bar = false",
        ):
            self.run(f"SET {setting}")
        self.run(f"CREATE TABLE told ({', '.join(f'{name} {kind}' for name, kind in TOLD.items())}, file INTEGER)")
        for number, path in enumerate(checked(described_by, "source.described_by")):
            self.run(f"INSERT INTO told SELECT *, {number} FROM ({table_sql(self.connection, path, TOLD, 'sha256')})")
        self.run("""
            CREATE TABLE described AS SELECT lower(sha256) AS sha256, identifier, score, captions FROM told
            WHERE rowid IN (
                SELECT arg_min(rowid, (file, identifier, captions)) FROM told
                WHERE sha256 IS NOT NULL GROUP BY lower(sha256)
            )
        """)
        self.run("DROP TABLE told")

    def close(self) -> None:
        """Let go of the files."""
        self.connection.close()

    def run(self, sql: str) -> duckdb.DuckDBPyConnection:
        """Execute.

        Raises:
            ValueError: a table is damaged.
            SystemicFault: the disk is full, or the machine has too little memory.
        """
        try:
            return self.connection.execute(sql)
        except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
            raise ValueError(f"a table can't be read: {' '.join(str(error).split())[:400]}") from error
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise SystemicFault(f"selecting from the tables: {' '.join(str(error).split())[:400]}") from error

    def take_files(self, tables: Sequence[Path]) -> None:
        """Decide over the rows of annotation files."""
        self._take(" UNION ALL ".join(table_sql(self.connection, path, LISTED, "identifier") for path in tables))

    def take_table(self, table: pa.Table) -> None:
        """Decide over rows in memory, with the columns of LISTED."""
        self.connection.register("in_memory", table)
        cells = ", ".join(f"{name}::{kind} AS {name}" for name, kind in LISTED.items())
        self._take(f"SELECT {cells} FROM in_memory")

    def _take(self, listed: str) -> None:
        self._list(listed)
        if self.denials:
            self._deny_copies()
        self._compare()

    def _list(self, listed: str) -> None:
        """The table ``listed`` of all rows: their keys, and the first step that they fail on their own account."""
        settings = self.settings
        self._small_tables(listed)
        if settings.captioned:
            self.connection.create_function(
                "has_captions", lambda text: bool(parse_captions(text)), ["VARCHAR"], "BOOLEAN"
            )
        bits = 32 - (settings.shards - 1).bit_length()
        shard = f"('0x' || sha256({FETCH_GROUP})[:8])::UINTEGER >> {bits}" if bits < 32 else "0"
        host = " ".join(f"WHEN starts_with(identifier, '{start}') THEN '{name}'" for start, name in HOSTS.items())
        asked = " ".join(f"WHEN {step.test} THEN {self.number[step.name]}" for step in self.steps if step.test)
        denial = "coalesce(by_key.reason, by_name.reason, by_hash.reason, licence_denial)"
        denied = "\n".join(
            f"LEFT JOIN denied AS by_{name} ON by_{name}.object = placed.{column}"
            for name, column in {"key": "key", "name": "identifier", "hash": "sha256"}.items()
        )
        # Each hash has a twin in Python (object_id_of, shard_of, rank_of): a test holds them together.
        self.run(f"""
            CREATE TABLE listed AS
            WITH named AS (
                SELECT lower(coalesce(nullif(source, ''), CASE {host} ELSE 'unknown' END)) AS source,
                    coalesce(identifier, '') AS identifier, lower(coalesce(sha256, '')) AS sha256,
                    coalesce(licence, '') AS licence, bytes, score, captions,
                    lower(coalesce(nullif(file_type, ''), regexp_extract(identifier, '\\.([A-Za-z0-9]+)$', 1), ''))
                        AS file_type
                FROM ({listed})
            ), placed AS (
                SELECT *, sha256(source || chr(0) || identifier)[:32] AS key FROM named
            ), joined AS (
                SELECT placed.* EXCLUDE (score, captions), coalesce(placed.score, described.score) AS score,
                    coalesce(placed.captions, described.captions) AS captions,
                    coalesce(described.identifier = placed.identifier, false) AS named,
                    {denial} AS denial, allowed AS licence_allowed, held.sha256 IS NOT NULL AS held_out
                FROM placed
                LEFT JOIN described ON described.sha256 = placed.sha256
                LEFT JOIN licences ON licences.licence = placed.licence
                LEFT JOIN held ON held.sha256 = placed.sha256
                {denied}
            )
            SELECT *, CASE WHEN step = 0
                THEN ('0x' || sha256('{settings.seed}:rank:' || key)[:16])::UBIGINT >> 1 END AS rank
            FROM (
                SELECT * EXCLUDE (licence_allowed, held_out, bytes), ({shard})::USMALLINT AS shard,
                    CASE {asked} ELSE 0 END::UTINYINT AS step
                FROM joined
            )
        """)

    def _small_tables(self, listed: str) -> None:
        """Licences, denials and held-out bytes, to be joined."""
        settings, denials = self.settings, self.denials
        self.run("CREATE TABLE denied (object VARCHAR, reason VARCHAR)")
        objects = {denial.object: denial.reason for denial in denials if denial.object}
        if objects:
            self.connection.executemany("INSERT INTO denied VALUES (?, ?)", list(objects.items()))
        names = [row[0] for row in self.run(f"SELECT DISTINCT coalesce(licence, '') FROM ({listed})").fetchall()]
        self.run("CREATE TABLE licences (licence VARCHAR, allowed BOOLEAN, licence_denial VARCHAR)")
        rows = [
            (
                name,
                settings.licences is None or matches(name, settings.licences),
                next((d.reason for d in denials if d.licence and matches(name, [d.licence])), None),
            )
            for name in names
        ]
        if rows:
            self.connection.executemany("INSERT INTO licences VALUES (?, ?, ?)", rows)
        tables = [
            table_sql(self.connection, path, {"sha256": "VARCHAR"}, "sha256")
            for path in checked(settings.held_out, "catalog.held_out")
        ]
        held = " UNION ALL ".join(tables) or "SELECT '' AS sha256"
        self.run(f"CREATE TABLE held AS SELECT DISTINCT lower(sha256) AS sha256 FROM ({held}) WHERE sha256 <> ''")

    def _deny_copies(self) -> None:
        """Deny the copies of a denied object too: else the first of them would bring its bytes back."""
        own, number = ", ".join(map(literal, OWN)), self.number[DENIED]
        found = " UNION ALL ".join(
            f"SELECT denied.object, sha256, denied.reason, source FROM listed JOIN denied ON denied.object = {column}"
            for column in ("key", "identifier", "listed.sha256")
        )
        self.run(f"CREATE TABLE taken_down AS {found}")
        self.run(f"""
            UPDATE listed SET step = {number}, denial = 'same bytes as ' || copied.object || ': ' || copied.reason
            FROM (
                SELECT sha256, arg_min(object, object) AS object, arg_min(reason, object) AS reason FROM taken_down
                WHERE sha256 <> '' AND source NOT IN ({own}) GROUP BY sha256
            ) AS copied
            WHERE listed.sha256 = copied.sha256 AND source NOT IN ({own}) AND (step = 0 OR step > {number})
        """)

    def idle_denials(self) -> list[str]:
        """What the deny-list names and no row is."""
        if not self.denials:
            return []
        hit = {row[0] for row in self.run("SELECT DISTINCT object FROM taken_down").fetchall()}
        names = [row[0] for row in self.run("SELECT licence FROM licences").fetchall()]
        return [
            denial.object or denial.licence
            for denial in self.denials
            if (denial.object not in hit if denial.object else not any(matches(n, [denial.licence]) for n in names))
        ]

    def _compare(self) -> None:
        """The steps that look at other rows: listed before, the same bytes, the sample."""
        # Candidates by a 64-bit hash first: a window over all rows would go through the disk.
        self.run("""
            CREATE TABLE repeated AS
            SELECT rowid AS place,
                row_number() OVER (PARTITION BY key ORDER BY sha256, licence, file_type, score, rowid) AS again
            FROM listed WHERE hash(key) IN (SELECT hash(key) AS hashed FROM listed GROUP BY 1 HAVING count(*) > 1)
        """)
        self.run(f"""
            UPDATE listed SET step = CASE WHEN step = 1 THEN 1 ELSE {self.number[ONCE]} END,
                key = sha256(source || chr(0) || identifier || chr(0) || again)[:32]
            FROM repeated WHERE listed.rowid = place AND again > 1
        """)
        own = ", ".join(map(literal, OWN))
        self.run(f"""
            CREATE TABLE copies AS
            WITH candidates AS (SELECT key, sha256, named, rank FROM listed WHERE step = 0 AND source NOT IN ({own}))
            SELECT * FROM (
                SELECT key, first_value(key) OVER (PARTITION BY sha256 ORDER BY NOT named, rank, key) AS duplicate_of
                FROM candidates
                WHERE hash(sha256) IN (SELECT hash(sha256) AS hashed FROM candidates GROUP BY 1 HAVING count(*) > 1)
            ) WHERE key <> duplicate_of
        """)
        limit = "" if self.settings.count is None else f"LIMIT {self.settings.count}"
        self.run(f"""
            CREATE TABLE admitted AS
            SELECT key FROM listed ANTI JOIN copies USING (key) WHERE step = 0 ORDER BY rank, key {limit}
        """)
        self.run(f"""
            CREATE VIEW decided AS
            SELECT listed.*, duplicate_of, CASE WHEN step > 0 THEN step
                WHEN duplicate_of IS NOT NULL THEN {self.number[FIRST]}
                WHEN admitted.key IS NULL THEN {self.number.get(SAMPLE, 0)} ELSE 0 END AS left_at
            FROM listed LEFT JOIN copies USING (key) LEFT JOIN admitted USING (key)
        """)

    def funnel(self) -> list[dict[str, int | str]]:
        """What each step left out, and what remained: from the listed rows to the admitted ones."""
        counts: Mapping[int, int] = dict(self.run("SELECT left_at, count(*) FROM decided GROUP BY 1").fetchall())
        rows = sum(counts.values())
        found: list[dict[str, int | str]] = [{"step": "listed", "left_out": 0, "rows": rows}]
        for number, step in enumerate(self.steps, start=1):
            out = counts.get(number, 0)
            rows -= out
            found.append({"step": step.name, "left_out": out, "rows": rows})
        return found

    def left_out(self) -> dict[int, tuple[str, dict[str, int]]]:
        """(digest, number of rows by status) of the rows left out, by shard; the order of rows counts for nothing."""
        found: dict[int, tuple[int, dict[str, int]]] = {}
        for shard, status, rows, digest in self.run(f"""
            SELECT shard, status, count(*), bit_xor(md5_number(concat_ws(chr(0), {", ".join(LEFT_OUT.names)})))
            FROM ({self._left_out_sql()}) GROUP BY ALL
        """).fetchall():
            whole, counts = found.get(shard, (0, {}))
            found[shard] = (whole ^ digest, {**counts, status: rows})
        return {shard: (f"{digest:032x}", counts) for shard, (digest, counts) in found.items()}

    def write_left_out(self, shards: Sequence[int]) -> dict[int, list[Path]]:
        """Files with the columns of ``schemas.LEFT_OUT``, by shard: the rows that are left out of these shards."""
        folder = self.scratch / "left_out"
        folder.mkdir()
        wanted = ", ".join(map(str, shards))
        if shards:
            self.run(f"""
                COPY (SELECT * FROM ({self._left_out_sql()}) WHERE shard IN ({wanted}))
                TO {literal(str(folder))} (FORMAT parquet, PARTITION_BY (shard), COMPRESSION lz4_raw)
            """)
        return {shard: sorted((folder / f"shard={shard}").glob("*.parquet")) for shard in shards}

    def _left_out_sql(self) -> str:
        status = " ".join(f"WHEN {number} THEN '{step.status}'" for number, step in enumerate(self.steps, start=1))
        reason = " ".join(f"WHEN {number} THEN {step.reason}" for number, step in enumerate(self.steps, start=1))
        return f"""
            SELECT shard, key, CASE left_at {status} END AS status, CASE left_at {reason} END AS reason,
                source, identifier, sha256, licence, file_type, duplicate_of
            FROM decided WHERE left_at > 0
        """

    def admitted(self) -> Iterator[tuple[int, pa.Table]]:
        """(number of a shard, its admitted rows sorted by key), for every shard.

        Columns: key, source, identifier, sha256, licence, file_type, fetch_group, cluster, rank, score, captions as
        they are written in the table.
        """
        admitted = self.connection.sql(f"""
            SELECT shard, key, source, identifier, sha256, licence, file_type, {FETCH_GROUP} AS fetch_group,
                {CLUSTER} AS cluster, rank::BIGINT AS rank, score, captions
            FROM listed SEMI JOIN admitted USING (key) ORDER BY shard, key
        """).to_arrow_table()
        places = admitted.column("shard").to_numpy()
        for number in range(self.settings.shards):
            start, end = places.searchsorted(number), places.searchsorted(number, side="right")
            yield number, admitted.slice(start, end - start)
