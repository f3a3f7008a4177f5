"""Git repositories made for a test, and git's own record of what was asked of them."""

import os
import subprocess
from pathlib import Path

import pytest
from networked import GITHUB

AUTHOR = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *words: str, given: bytes = b"") -> str:
    """Run git in a folder, without the machine's configuration."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {**AUTHOR, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    environment["GIT_INDEX_FILE"] = str(folder / "made")
    done = subprocess.run(["git", *words], cwd=folder, env=environment, input=given, capture_output=True, check=True)
    return done.stdout.decode().strip()


class Origin:
    """Repositories under a folder, as ORG/REPO.git."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where a repository lies."""
        return self.folder / f"{name}.git"

    def commit(self, name: str, files: dict[str, bytes | str], modules: tuple[str, ...] = ()) -> str:
        """Add a commit of exactly these files; a text is where a link leads to. The commit's id."""
        bare = self.path(name)
        if not bare.exists():
            bare.mkdir(parents=True)
            git(bare, "init", "-q", "--bare", "--initial-branch=main", ".")
            for key in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant", "http.receivepack"):
                git(bare, "config", key, "true")
        lines = []
        for path, content in files.items():
            raw = content if isinstance(content, bytes) else content.encode()
            blob = git(bare, "hash-object", "-w", "--stdin", given=raw)
            lines.append(f"{'100644' if isinstance(content, bytes) else '120000'} {blob}\t{path}\0")
        lines += [f"160000 {'1' * 40}\t{path}\0" for path in modules]
        (bare / "made").unlink(missing_ok=True)
        git(bare, "update-index", "-z", "--index-info", given="".join(lines).encode())
        tree = git(bare, "write-tree", "--missing-ok")
        parents = [word for tip in git(bare, "for-each-ref", "--format=%(objectname)").split() for word in ("-p", tip)]
        made = git(bare, "commit-tree", "-m", "made", *parents, tree)
        git(bare, "update-ref", "refs/heads/main", made)
        return made


def configure(patch: pytest.MonkeyPatch, base: str, **more: str) -> None:
    """Have git find github.com at an address, as a user would configure it."""
    pairs = [(f"url.{base}.insteadOf", GITHUB), *more.items()]
    patch.setenv("GIT_CONFIG_COUNT", str(len(pairs)))
    for index, (key, value) in enumerate(pairs):
        patch.setenv(f"GIT_CONFIG_KEY_{index}", key)
        patch.setenv(f"GIT_CONFIG_VALUE_{index}", value)


def fetches(trace: Path) -> list[str]:
    """The fetches in git's trace: the command line of each that was started by this program, not by git."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return [line.partition("built-in: ")[2] for line in lines if "built-in: git fetch " in line]
