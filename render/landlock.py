"""Landlock: the kernel lets this process open only what lies under the paths it was given. Standard library alone.

By ctypes: no maintained Python package wraps the three system calls. Rights that a kernel does not know yet are left
out; ``render.seccomp`` refuses the system calls by which those could be used.
"""

import ctypes
import os
import struct
from collections.abc import Mapping
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
GET_VERSION = 1
PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG = 1 << 7, 1 << 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = READ_FILE | READ_DIR
DEVICE = READ | WRITE_FILE | TRUNCATE | IOCTL_DEV
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
"""No links, pipes, sockets or devices: nothing of ours makes them, and the parent would not read them."""
OF_A_FILE = WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

KNOWN = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of rights on files by version of the interface; executing (the first) is handled and never given."""
LAST = max(KNOWN)
TCP = 0b11
"""Binding and connecting, since version 4."""
SCOPES = 0b11
"""Abstract Unix sockets and signals stay inside, since version 6."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def version() -> int:
    """The version of the interface that the kernel speaks. Raises OSError where it has none."""
    return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(GET_VERSION))


def restrict(rights: Mapping[Path, int], abi: int | None = None) -> None:
    """Give up everything but these rights, for the calling thread and what it starts. Raises OSError.

    Needs PR_SET_NO_NEW_PRIVS. Threads that run already stay free.

    Args:
        rights: what may be done at and below each path; paths that are not there are left out.
        abi: at most this version of the interface; default: the kernel's.
    """
    abi = min(abi or version(), version())
    handled = (1 << KNOWN[min(abi, LAST)]) - 1
    attributes = struct.pack("=Q", handled)
    if abi >= 4:
        attributes += struct.pack("=Q", TCP)
    if abi >= 6:
        attributes += struct.pack("=Q", SCOPES)
    ruleset = _call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for path, access in rights.items():
            _allow(ruleset, path, access & handled)
        _call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    if not path.is_dir():
        access &= OF_A_FILE
    rule = struct.pack("=Qi", access, descriptor)
    _call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(PATH_BENEATH), rule, ctypes.c_uint32(0))
    # A rule holds for the kernel's entry in memory. What lies in /proc gets another one, without the rule, when memory
    # was short and nobody had it open: it stays open.
    if not path.is_relative_to("/proc"):
        os.close(descriptor)
