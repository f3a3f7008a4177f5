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
        for module in (["benchmarks.objects", str(objects)], ["benchmarks.visibility"], ["benchmarks.parts"]):
            print(f"\n== {module[0]}", flush=True)
            subprocess.run([sys.executable, "-m", *module], check=True)
