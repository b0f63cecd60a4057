"""Runs a program as a container without rights does: `contained.py PROGRAM ARGUMENT …`, with no new namespaces.

A filter refuses what makes namespaces and mounts, as the default one of Docker and Podman does. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

LOAD, EQUAL, ANY_OF, RETURN = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
ALLOW, REFUSE, MISSING = 0x7FFF0000, 0x00050001, 0x00050026  # SECCOMP_RET_ALLOW, _ERRNO | EPERM, _ERRNO | ENOSYS
CLONE, CLONE3, NEW_NAMESPACES = 56, 435, 0x7E020000
REFUSED = (272, 308, 165, 166, 155, 428, 429, 430, 431, 432, 433, 442)  # unshare, setns, mount and the like


def main() -> None:
    code = [(LOAD, 0, 0, 0)]
    for number in REFUSED:
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    code += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, MISSING), (EQUAL, 0, 3, CLONE), (LOAD, 0, 0, 16)]
    code += [(ANY_OF, 0, 1, NEW_NAMESPACES), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *entry) for entry in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter can be set")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
