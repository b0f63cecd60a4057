"""A seccomp filter out of the table in `syscalls`: a program for the kernel's classic BPF machine.

The kernel runs it before each system call, with a `struct seccomp_data` (linux/seccomp.h): int nr; __u32 arch;
__u64 instruction_pointer; __u64 args[6]. Only x86_64 is supported; another architecture's calls kill the process.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence

from rlm.environments.sandbox.syscalls import NEWEST, REFUSALS, Refusal, Rule

LOAD, JUMP_EQUAL, JUMP_OR_ABOVE, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # linux/bpf_common.h
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64
X32 = 0x40000000  # the bit of the numbers of the x32 calls, which have the same architecture
KILL, ERROR, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000  # SECCOMP_RET_KILL_PROCESS, _ERRNO, _ALLOW
MAX_LENGTH = 4096  # BPF_MAXINSNS


def program(allowed: Mapping[int, str], rules: Sequence[Rule], refusals: Sequence[Refusal] = REFUSALS) -> bytes:
    """The filter as an array of `struct sock_filter`, 8 bytes each, little endian."""
    code: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, X86_64),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (JUMP_OR_ABOVE, 0, 1, X32),
        (RETURN, 0, 0, KILL),
    ]
    for rule in rules:  # first, as the kernel remembers what is allowed without a look at arguments
        body = _body(rule)
        code += [(JUMP_EQUAL, 0, len(body), rule.number), *body]
    for number in sorted(allowed):
        code += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for refusal in refusals:
        code += [(JUMP_EQUAL, 0, 1, refusal.number), (RETURN, 0, 0, ERROR | refusal.error)]
    code += [
        (JUMP_OR_ABOVE, 0, 1, NEWEST + 1),
        (RETURN, 0, 0, ERROR | errno.ENOSYS),
        (RETURN, 0, 0, ERROR | errno.EPERM),
    ]
    if len(code) > MAX_LENGTH:
        raise ValueError(f"{len(code)} instructions are more than a filter can have ({MAX_LENGTH})")
    return b"".join(struct.pack("<HBBI", *entry) for entry in code)


def _body(rule: Rule) -> list[tuple[int, int, int, int]]:
    """What is done with a call that the rule is about: each test passed goes on to the next, the last one allows."""
    code: list[tuple[int, int, int, int]] = []
    for test in rule.tests:
        code += [(LOAD, 0, 0, ARGUMENTS + 8 * test.argument), (AND, 0, 0, test.mask)]  # the lower half, little-endian
        values = sorted(test.values)
        code += [(JUMP_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
        code += [(RETURN, 0, 0, ERROR | rule.refusal)]
    return [*code, (RETURN, 0, 0, ALLOW)]
