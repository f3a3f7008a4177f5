"""All tables: ``python -m benchmarks``. Objects are the bundled ones unless a folder is given."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gap3d.samples import write_samples

if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            objects = Path(sys.argv[1])
        else:
            objects = Path(folder)
            write_samples(objects)
        of_objects = ("objects", "persistence", "endurance", "profiles")
        others = (
            "visibility",
            "split",
            "parts",
            "encoder",
            "precision",
            "featurizer",
            "reader",
            "exports",
            "catalog",
            "definitions",
            "atlas",
            "condition",
            "retrieval",
            "distances",
        )
        for name in (*of_objects, *others):
            print(f"\n== {name}", flush=True)
            folders = [str(objects)] if name in of_objects else []
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *folders], check=True)
