"""All tables, or some: ``python -m benchmarks [NAME ...] [--quick] [--folder FOLDER]``.

A benchmark is a file of this folder; those that begin with an underscore hold what benchmarks share. Each runs in a
process of its own; one that fails is named at the end, and ends no other.
"""

import argparse
import subprocess
import sys
from pathlib import Path

FILES = Path(__file__).parent.glob("[!_]*.py")

if __name__ == "__main__":
    every = sorted(path.stem for path in FILES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all): {', '.join(every)}")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: to see that all of them run")
    parser.add_argument("--folder", type=Path, help="3D files to take instead of the bundled objects")
    known = parser.parse_args()
    if unknown := set(known.names) - set(every):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    options = ["--quick"] * known.quick + (["--folder", str(known.folder)] if known.folder else [])
    failed = []
    for name in known.names or every:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"\nfailed: {', '.join(failed)}; their messages stand below their names")
