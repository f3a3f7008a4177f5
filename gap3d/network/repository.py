"""One commit of a git repository, of which only the files come that objects are made of."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from gap3d.network import lfs
from gap3d.network.git import Git, Refused
from gap3d.network.origins import harmless
from gap3d.network.politeness import Turn
from gap3d.records import Failure, Status
from gap3d.references import READERS, Closure, closure
from gap3d.settings import Limits, NetworkSettings

LINK, MODULE = "120000", "160000"
ATTRIBUTES = ".gitattributes"  # they say how a checkout changes line ends


class Repository:
    """A commit, fetched as far as it is needed; what has come stays when a step is tried again.

    Args:
        address: where it is.
        commit: the full id; never another commit in its place.
        folder: a folder of its own.
        network: when a transfer is given up.
        limits: bytes of an object and of a repository.
    """

    def __init__(self, address: str, commit: str, folder: Path, network: NetworkSettings, limits: Limits) -> None:
        self.git = Git(folder, network, limits.repository_bytes)
        self.address, self.commit, self.limits = address, commit, limits
        self.tree = self.git.tree
        self.entries: dict[str, tuple[str, str]] = {}  # mode and blob by path
        self.listed = False
        self.laid = False
        self.blobs: set[str] = set()  # that are here
        self.brought: set[str] = set()  # paths as a checkout gives them
        self.pointers: dict[str, Failure] = {}  # why a path is a git-lfs pointer still

    def begin(self) -> None:
        """An empty repository; the work tree lies apart from it, where no reference of an object reaches it."""
        for folder in (self.git.directory, self.tree):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def asked(self, turn: Turn) -> str:
        """The address that git takes in this one's place, by its configuration."""
        self.begin()
        return self.git.address(self.address, turn)

    def fetch(self, turn: Turn) -> None:
        """Bring the commit and its trees, and of its files none, where the server can do that."""
        if self.listed:
            return
        try:
            self.ask(turn, "--depth=1", "--filter=blob:none", "origin", self.commit)
        except Refused:
            self.ask(turn, "origin", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            here = self.git.run("cat-file", "--batch-check", given=f"{self.commit}\n".encode(), turn=turn)
            if not here.split()[1:2] == [b"commit"]:
                raise Failure(Status.MISSING, "the commit is on no branch of the repository any more") from None
        for line in self.git.run("ls-tree", "-r", "-z", "--full-tree", self.commit, turn=turn).split(b"\0"):
            with contextlib.suppress(UnicodeDecodeError):  # no table and no reference can name it
                facts, _, path = line.decode().partition("\t")
                if path and facts.split()[0] != MODULE and harmless(path):
                    mode, _, blob = facts.split()
                    self.entries[path] = (mode, blob)
        # Not asked for one by one: git would fetch those that are not here.
        form = "--batch-check=%(objecttype) %(objectname)"
        lines = self.git.run("cat-file", "--batch-all-objects", "--unordered", form, turn=turn).decode().splitlines()
        self.blobs = {blob for kind, blob in map(str.split, lines) if kind == "blob"}
        self.listed = True

    def ask(self, turn: Turn, *words: str) -> None:
        """A first fetch into an empty repository."""
        self.begin()
        self.git.run("init", "-q", turn=turn)
        (self.git.directory / "info").mkdir(exist_ok=True)
        (self.git.directory / "info" / "attributes").write_text("* -filter\n")  # over whatever a repository asks for
        self.git.run("config", "remote.origin.url", self.address, turn=turn)
        self.git.run("fetch", "-q", "--no-tags", *words, turn=turn)

    def bring(self, paths: Iterable[str], turn: Turn) -> None:
        """Check files out, all that have to come for it in one fetch."""
        new = {path for path in paths if path in self.entries} - self.brought
        if not new:
            return
        above = {(folder / ATTRIBUTES).as_posix() for path in new for folder in PurePosixPath(path).parents}
        new |= {path for path in above if path in self.entries} - self.brought
        absent = {self.entries[path][1] for path in new} - self.blobs
        if absent:
            self.git.run(
                *("fetch", "-q", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "--stdin", "origin"),
                given="".join(f"{blob}\n" for blob in sorted(absent)).encode(),
                turn=turn,
            )
            self.blobs |= absent
        lines = [f"{mode} {blob}\t{path}\0" for path in sorted(new) for mode, blob in [self.entries[path]]]
        self.git.run("update-index", "-z", "--index-info", given="".join(lines).encode(), turn=turn)
        for some in (new & above, new - above):  # the attributes have to lie there before what they apply to
            names = "".join(f"{path}\0" for path in sorted(some))
            self.git.run("checkout-index", "-f", "-q", "-z", "--stdin", given=names.encode(), turn=turn)
        self.brought |= new
        for path in sorted(new):
            self.resolve(path, turn)

    def resolve(self, path: str, turn: Turn) -> None:
        """Where a file is a git-lfs pointer, bring what it stands for, or note why not."""
        place = self.tree / path
        pointer = None if place.is_symlink() or not place.is_file() else lfs.pointer_in(place)
        if pointer is not None:
            try:
                lfs.resolve(self.git, place, pointer, self.limits.object_bytes, turn)
            except Failure as failure:
                self.pointers[path] = failure

    def lay_out(self) -> None:
        """Empty files in all places, so that references are found, or not, as in a whole checkout."""
        if self.laid:
            return
        for path, (mode, _) in self.entries.items():
            if mode == LINK or path in self.brought:
                continue
            place = self.tree / path
            with contextlib.suppress(OSError):  # a name that the file system doesn't take: no checkout has it either
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        self.laid = True

    def objects(self, mains: Sequence[str], turn: Turn) -> dict[str, Closure | Failure]:
        """Bring main files and what they refer to, round by round: the files of each, or why there are none."""
        self.fetch(turn)
        if any(PurePosixPath(main).suffix.lower() in READERS for main in mains):
            self.lay_out()
        self.bring({path for path, (mode, _) in self.entries.items() if mode == LINK}, turn)
        self.bring({self.real(main) for main in mains}, turn)
        while True:
            found: dict[str, Closure | Failure] = {}
            wanted: set[str] = set()
            for main in mains:
                turn.keep()
                try:
                    made = closure(self.tree, main)
                except Failure as failure:
                    found[main] = failure
                    continue
                found[main] = made
                wanted |= {self.real(path) for path in made.files}
            if not (wanted & self.entries.keys()) - self.brought and not self.drop_pointers(mains):
                return {main: self.judged(made) for main, made in found.items()}
            self.bring(wanted, turn)

    def real(self, path: str) -> str:
        """The path without links."""
        try:
            return Path(os.path.realpath(self.tree / path)).relative_to(os.path.realpath(self.tree)).as_posix()
        except ValueError:
            return path  # it leads out: whoever opens it is refused

    def drop_pointers(self, mains: Sequence[str]) -> bool:
        """Take companions away that git-lfs does not have, as if they were missing; whether there were any."""
        lost = {path for path, failure in self.pointers.items() if failure.status is Status.LFS_POINTER}
        lost = {path for path in lost - {self.real(main) for main in mains} if (self.tree / path).exists()}
        for path in lost:
            (self.tree / path).unlink()
        return bool(lost)

    def judged(self, made: Closure | Failure) -> Closure | Failure:
        """A failure in place of files of which one is a pointer still."""
        if isinstance(made, Failure):
            return made
        return next((self.pointers[path] for path in map(self.real, made.files) if path in self.pointers), made)
