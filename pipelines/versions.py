"""versions: record that the sources of every stage are as they are meant to be (``make versions``)."""

import re
from pathlib import Path

from gap3d.fingerprints import source_digest, stage_versions
from pipelines.command import say

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "gap3d" / "versions.toml"


def changed() -> dict[str, str]:
    """Digests of the stages whose sources are not what the table says, by stage."""
    found = {}
    for stage, entry in stage_versions().items():
        digest = source_digest(ROOT / source for source in entry["sources"])
        if digest != entry["digest"]:
            found[stage] = digest
    return found


def main() -> None:
    """The program."""
    text = TABLE.read_text()
    for stage, digest in changed().items():
        text = re.sub(rf'(\[{stage}\][^\[]*?sources = \[[^\]]*\]\s*digest = )"[^"]*"', rf'\g<1>"{digest}"', text)
        say(f"{stage}: {digest}")
    TABLE.write_text(text)


if __name__ == "__main__":
    main()
