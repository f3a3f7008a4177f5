"""Seccomp: the kernel refuses this process the system calls that it has no use for. Standard library alone.

What Landlock does not see, or not on older kernels, is refused here: sockets, new processes, other processes, and
changes to files by their name alone. What takes a capability is not listed: the process has none.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Sequence

PR_SET_SECCOMP, MODE_FILTER = 22, 2
AUDIT_ARCH_X86_64 = 0xC000003E
X32 = 0x40000000
"""Set in the numbers of the x32 interface, a second way to every system call."""
NEWEST = 462
"""mseal, Linux 6.10: what came later is not known here, and does not exist for this process."""

LOAD, EQUAL, AT_LEAST, MASK, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # BPF instructions
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # where they stand in what the filter is shown
ALLOW, FAIL, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

CLONE_THREAD = 0x10000
PR_SET_PDEATHSIG = 1
F_SETOWN, F_SETOWN_EX, F_SETLEASE, F_NOTIFY = 8, 15, 1024, 1026
FIONREAD, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ = 0x541B, 0x5451, 0x5450, 0x5401, 0x5413

REFUSED = {
    # No network, not even to this machine; a socket is also how descriptors are handed over.
    41: "socket", 53: "socketpair",
    # No new processes.
    57: "fork", 58: "vfork", 59: "execve", 322: "execveat",
    # Not through the kernel's other doors: the filter does not see what io_uring does.
    425: "io_uring_setup", 426: "io_uring_enter", 427: "io_uring_register", 298: "perf_event_open", 321: "bpf",
    323: "userfaultfd", 248: "add_key", 249: "request_key", 250: "keyctl",
    # No other process of this user: its memory, descriptors, signals, limits, priority.
    101: "ptrace", 310: "process_vm_readv", 311: "process_vm_writev", 434: "pidfd_open", 438: "pidfd_getfd",
    424: "pidfd_send_signal", 129: "rt_sigqueueinfo", 297: "rt_tgsigqueueinfo", 200: "tkill", 312: "kcmp",
    141: "setpriority", 142: "sched_setparam", 144: "sched_setscheduler", 203: "sched_setaffinity",
    314: "sched_setattr", 251: "ioprio_set", 256: "migrate_pages", 279: "move_pages",
    # No new namespaces, in which it would have capabilities, and no mounts.
    272: "unshare", 308: "setns", 161: "chroot", 155: "pivot_root", 165: "mount", 166: "umount2", 428: "open_tree",
    429: "move_mount", 430: "fsopen", 432: "fsmount", 433: "fspick", 442: "mount_setattr",
    # Landlock does not know these: they change or watch files of this user anywhere.
    90: "chmod", 91: "fchmod", 268: "fchmodat", 452: "fchmodat2", 92: "chown", 93: "fchown", 94: "lchown",
    260: "fchownat", 132: "utime", 235: "utimes", 261: "futimesat", 280: "utimensat", 188: "setxattr",
    189: "lsetxattr", 190: "fsetxattr", 197: "removexattr", 198: "lremovexattr", 199: "fremovexattr",
    253: "inotify_init", 294: "inotify_init1", 300: "fanotify_init", 304: "open_by_handle_at",
    # Landlock knows these from version 3 on.
    76: "truncate",
    # Memory and queues that outlive the process, that others share, or that its resident size does not show.
    29: "shmget", 30: "shmat", 31: "shmctl", 64: "semget", 65: "semop", 66: "semctl", 220: "semtimedop",
    68: "msgget", 69: "msgsnd", 70: "msgrcv", 71: "msgctl", 240: "mq_open", 241: "mq_unlink", 447: "memfd_secret",
}  # fmt: skip
ABSENT = {435: "clone3", 437: "openat2"}
"""Their arguments stand in memory, which no filter reads: callers fall back to clone and openat."""
ANONYMOUS_FILE = 319
"""memfd_create. Drivers of GPUs may want it."""

Instruction = tuple[int, int, int, int]


def fail(number: int, code: int) -> list[Instruction]:
    """Refuse one system call with an error code."""
    return [(EQUAL, 0, 1, number), (RETURN, 0, 0, FAIL | code)]


def fail_where(
    number: int, argument: int, mask: int, values: Sequence[int], *, unless: bool = False
) -> list[Instruction]:
    """Refuse one system call where the low half of an argument, masked, is one of the values (``unless``: is none)."""
    yes, no = (FAIL | errno.EPERM, ALLOW) if not unless else (ALLOW, FAIL | errno.EPERM)
    count = len(values)
    tests = [(EQUAL, count - index, 0, value & mask) for index, value in enumerate(values)]
    body = [(LOAD, 0, 0, ARGUMENTS + 8 * argument), (MASK, 0, 0, mask), *tests, (RETURN, 0, 0, no), (RETURN, 0, 0, yes)]
    return [(EQUAL, 0, len(body), number), *body]


def blender_filter(own: int, gpu: bool) -> list[Instruction]:
    """The rules for a process that renders what strangers made.

    Args:
        own: its process id, the only one that it may signal (``abort`` does).
        gpu: whether a GPU's driver runs in it.
    """
    everything = 0xFFFFFFFF
    rules = [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, FAIL | errno.EPERM)]
    rules += [(AT_LEAST, 0, 1, NEWEST + 1), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    for number in REFUSED:
        rules += fail(number, errno.EPERM)
    for number in (*ABSENT, *(() if gpu else (ANONYMOUS_FILE,))):
        rules += fail(number, errno.ENOSYS)
    rules += fail_where(56, 0, CLONE_THREAD, [CLONE_THREAD], unless=True)  # clone: threads only
    for number in (62, 234):  # kill, tgkill
        rules += fail_where(number, 0, everything, [own], unless=True)
    rules += fail_where(302, 0, everything, [0, own], unless=True)  # prlimit64
    rules += fail_where(157, 0, everything, [PR_SET_PDEATHSIG])  # prctl: it shall not outlive its parent
    rules += fail_where(72, 1, everything, [F_SETOWN, F_SETOWN_EX, F_SETLEASE, F_NOTIFY])  # fcntl: signals to others
    if not gpu:  # ioctl: a file that it may only read has flags that it could set; drivers need many more
        rules += fail_where(16, 1, everything, [FIONREAD, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ], unless=True)
    # open, openat: emptying a file that is not opened for writing, which Landlock knows from version 3 on.
    reading = [os.O_TRUNC | os.O_RDONLY, os.O_TRUNC | os.O_ACCMODE]
    for number, argument in ((2, 1), (257, 2)):
        rules += fail_where(number, argument, os.O_TRUNC | os.O_ACCMODE, reading)
    return rules


def install(rules: Iterable[Instruction]) -> None:
    """Put a filter on the calling thread and what it starts; what no rule answers is allowed. Raises OSError.

    Needs PR_SET_NO_NEW_PRIVS.
    """
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, f"the table of system calls is for x86_64, not {platform.machine()}")
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
        *rules,
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    head = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(
        ctypes.c_int(PR_SET_SECCOMP), ctypes.c_ulong(MODE_FILTER), head, ctypes.c_ulong(0), ctypes.c_ulong(0)
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
