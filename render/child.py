"""The program around Blender: confines itself, then reads requests on one descriptor and answers on another.

Started by ``render.worker`` as ``python -m render.child REQUESTS ANSWERS PARENT_PID CELL``; the two descriptors are
inherited, everything Blender prints goes to the log the parent gave as standard output. Whatever brings threads or
opens a stranger's file (numpy, Blender) is imported after the confinement.
"""

import ctypes
import os
import signal
import sys

import gap3d  # noqa: F401 - found now, while the folder that holds it can be listed
from render import sandbox

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """End when the parent ends, and keep standard output and error in the log.

    Blender (C code) holds the interpreter for minutes at a time, so only the kernel can end this process in time when
    its parent is killed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the line above took hold
        os._exit(1)
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())


def main() -> None:
    """Confine this process, then serve on the descriptors named on the command line."""
    requests, answers, parent = map(int, sys.argv[1:4])
    cell = sandbox.Cell.decode(sys.argv[4])
    die_with(parent)
    sandbox.volunteer()
    missing = sandbox.confine(cell)
    unconfined = "; ".join(filter(None, (missing, sandbox.escapes(cell))))

    from render.session import serve

    with os.fdopen(requests, "rb") as source, os.fdopen(answers, "wb") as sink:
        serve(source, sink, unconfined)
    # Blender as a module may crash while the interpreter is torn down; nothing is left to save.
    os._exit(0)


if __name__ == "__main__":
    main()
