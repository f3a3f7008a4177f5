"""Options of every benchmark: sizes, each with the value that ``--quick`` takes, and a folder of objects."""

import argparse
from pathlib import Path
from typing import Any


class Arguments(argparse.ArgumentParser):
    """A parser with ``--quick`` and ``--folder``, which ``python -m benchmarks`` passes on to all.

    Args:
        description: of the benchmark, for ``--help``.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.sizes: dict[str, tuple[Any, Any]] = {}
        self.add_argument("--quick", action="store_true", help="sizes that take seconds, to see that all of it runs")
        self.add_argument(
            "--folder", type=Path, help="3D files to take instead of the bundled objects, where objects are rendered"
        )

    def add_size(self, name: str, usual: Any, quick: Any, about: str = "", **options: Any) -> None:
        """An option with a value for either case; a value that is given wins over both."""
        text = f"{about} (default {usual}, with --quick {quick})".strip()
        action = self.add_argument(name, type=type(usual), help=text, **options)
        self.sizes[action.dest] = usual, quick

    def read(self) -> argparse.Namespace:
        """What was asked for on the command line."""
        known = self.parse_args()
        for name, (usual, quick) in self.sizes.items():
            if getattr(known, name) is None:
                setattr(known, name, quick if known.quick else usual)
        if known.quick:
            print("--quick: the smallest sizes, to see that all of it runs; these figures say nothing")
        return known
