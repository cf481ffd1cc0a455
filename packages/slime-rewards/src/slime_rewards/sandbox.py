"""What the kernel keeps a grader from: memory, large files, processes, signals, the network.

Limits of resources hold everywhere. The filter of system calls (seccomp) needs Linux on x86-64 or
arm64; where it cannot be had, ``confine`` says so and forbids processes by a limit instead, which
binds every user but root. A filter outlives everything that the process does, and its children.
"""

import ctypes
import errno
import os
import platform
import resource
from collections.abc import Iterable
from dataclasses import dataclass

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITIES_V3 = 0x20080522
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_X32 = 0x40000000
_CLONE_THREAD = 0x00010000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OPENED_BY = {"open": 1, "openat": 2}
"""Which argument of a system call has the flags."""

_NEW = {"clone3": 435, "openat2": 437, "pidfd_send_signal": 424, "io_uring_setup": 425}
_X86_64 = _NEW | {
    "open": 2, "socket": 41, "clone": 56, "fork": 57, "vfork": 58, "kill": 62, "truncate": 76,
    "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "chown": 92, "ptrace": 101, "setpgid": 109, "setsid": 112, "mknod": 133,
    "rt_sigqueueinfo": 129, "tkill": 200, "tgkill": 234, "openat": 257, "mkdirat": 258,
    "mknodat": 259, "fchownat": 260, "unlinkat": 263, "renameat": 264, "linkat": 265,
    "symlinkat": 266, "fchmodat": 268, "process_vm_readv": 310, "process_vm_writev": 311,
    "renameat2": 316,
}  # fmt: skip
_AARCH64 = _NEW | {
    "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38,
    "truncate": 45, "fchmodat": 53, "fchownat": 54, "openat": 56, "ptrace": 117, "kill": 129,
    "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpgid": 154, "setsid": 157,
    "socket": 198, "clone": 220, "process_vm_readv": 270,
    "process_vm_writev": 271, "renameat2": 276,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}

_LEAVING = ("setsid", "setpgid")
_SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "pidfd_send_signal")
_MEDDLING = ("ptrace", "process_vm_readv", "process_vm_writev", "io_uring_setup")
_OUTSIDE = (
    "socket", "truncate", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "creat",
    "link", "linkat", "unlink", "unlinkat", "symlink", "symlinkat", "chmod", "fchmodat", "chown",
    "fchownat", "mknod", "mknodat",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one worker may use."""

    memory_bytes: int = 4 << 30
    """Address space."""
    file_bytes: int = 16 << 20
    """Size of one file it writes."""


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Filter)))


Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


def limit(limits: Limits) -> None:
    """Bind this process and its children to ``limits``; there is no way back."""
    _lower(resource.RLIMIT_AS, limits.memory_bytes)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_CORE, 0)


def confine(*, strict: bool = False) -> bool:
    """Forbid processes, signals to others and leaving the process group; whether a filter holds.

    Threads are allowed. ``strict`` also forbids the network and every change to a file.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None or not _install(_program(*machine, strict=strict)):
        _lower(resource.RLIMIT_NPROC, 0)
        return False
    return True


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process ``signal_number`` when its parent is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def hide_memory() -> None:
    """Keep other processes of this user, but those that may trace any, from reading this one's."""
    _prctl(_PR_SET_DUMPABLE, 0)


def drop_rights() -> None:
    """Give up what root may do beyond others, such as reading the memory of any process."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    none = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, none)


def _lower(which: int, wanted: int) -> None:
    _, hard = resource.getrlimit(which)
    bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(which, (bound, bound))


def _program(arch: int, numbers: dict[str, int], *, strict: bool) -> list[Instruction]:
    denied = (*_LEAVING, *_SIGNALS, *_MEDDLING, "fork", "vfork", *(_OUTSIDE if strict else ()))
    rules: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, arch),
        _refuse(errno.EPERM),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        _refuse(errno.EPERM),
    ]
    for name in denied:
        if name in numbers:
            rules += [(_EQUAL, 0, 1, numbers[name]), _refuse(errno.EPERM)]
    # The C library falls back to calls whose arguments a filter can see.
    for name in ("clone3", "openat2") if strict else ("clone3",):
        rules += [(_EQUAL, 0, 1, numbers[name]), _refuse(errno.ENOSYS)]
    rules += _by_bits(numbers["clone"], 0, _CLONE_THREAD, refuse_if_set=False)
    if strict:
        for name, argument in _OPENED_BY.items():
            if name in numbers:
                rules += _by_bits(numbers[name], argument, _WRITES, refuse_if_set=True)
    return [*rules, (_RETURN, 0, 0, _ALLOW)]


def _by_bits(number: int, argument: int, bits: int, *, refuse_if_set: bool) -> list[Instruction]:
    """Refuse a call by bits of one of its arguments."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        (_ANY_BIT, int(not refuse_if_set), int(refuse_if_set), bits),
        _refuse(errno.EPERM),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]


def _refuse(code: int) -> Instruction:
    return (_RETURN, 0, 0, _REFUSE | code)


def _install(instructions: Iterable[Instruction]) -> bool:
    rules = [_Filter(*instruction) for instruction in instructions]
    program = _Program(len(rules), (_Filter * len(rules))(*rules))
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        return False
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program)) == 0


def _prctl(option: int, first: int, second: int = 0) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
    return library.prctl(ctypes.c_int(option), *words)
