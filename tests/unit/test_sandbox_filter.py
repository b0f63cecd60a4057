"""The filter of system calls, run by a small machine for the kernel's classic BPF: what answer each call gets."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlm.environments.sandbox import filter as seccomp
from rlm.environments.sandbox import syscalls
from rlm.environments.sandbox.syscalls import Rule

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7  # linux/audit.h
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h
U32, U64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
LEVELS = [
    (level, network, kill) for level in ("namespace", "landlock") for network in (False, True) for kill in (True, False)
]
Run = Callable[..., int]


def run(program: bytes, number: int, arguments: Sequence[int] = (), architecture: int = X86_64) -> int:
    """What the kernel would do with this call: see Documentation/networking/filter.rst and kernel/seccomp.c."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number - (1 << 32) if number >> 31 else number, architecture, 0x7F0000001000, *padded)
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert value % 4 == 0
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += if_true if accumulator == value else if_false
        elif operation == 0x35:  # BPF_JMP | BPF_JGE | BPF_K
            at += if_true if accumulator >= value else if_false
        elif operation == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= value
        elif operation == 0x06:  # BPF_RET | BPF_K
            return int(value)
        else:
            raise AssertionError(f"no such operation: {operation:#x}")


def filters() -> Mapping[tuple[str, bool, bool], tuple[bytes, Mapping[int, str], Sequence[Rule]]]:
    made = {}
    for level, network, kill in LEVELS:
        allowed = syscalls.allowed(level, kill=kill)
        rules = syscalls.rules(level, network=network)
        made[level, network, kill] = (seccomp.program(allowed, rules), allowed, rules)
    return made


FILTERS = filters()
every = pytest.mark.parametrize("which", LEVELS, ids=str)
which_of_all = st.sampled_from(LEVELS)
arguments_of_any = st.lists(st.integers(0, U64), max_size=6)
interesting = [
    *(number for group in syscalls.GROUPS for number in group.calls.values()),
    *(rule.number for rule in syscalls.RULES),
    *(refusal.number for refusal in syscalls.REFUSALS),
    syscalls.NEWEST,
    syscalls.NEWEST + 1,
]
numbers = st.one_of(st.sampled_from(interesting), st.integers(0, 600), st.integers(0, (1 << 30) - 1))


def refused(error: int) -> int:
    return ERRNO | error


def expected(which: tuple[str, bool, bool], number: int, arguments: Sequence[int]) -> int:
    """The same decision, read off the table."""
    _, allowed, rules = FILTERS[which]
    if number in allowed:
        return ALLOW
    for refusal in syscalls.REFUSALS:
        if refusal.number == number:
            return refused(refusal.error)
    for rule in rules:
        if rule.number == number:
            padded = [*arguments, *[0] * 6]
            passed = all(padded[test.argument] & U32 & test.mask in test.values for test in rule.tests)
            return ALLOW if passed else refused(rule.refusal)
    return refused(errno.EPERM if number <= syscalls.NEWEST else errno.ENOSYS)


# -- what is decided by the number -------------------------------------------------------------------------------------


@every
def test_every_number_that_there_is_gets_what_the_table_says(which: tuple[str, bool, bool]) -> None:
    program, allowed, rules = FILTERS[which]
    decided = {number: run(program, number) for number in range(1_000)}
    assert {number for number, answer in decided.items() if answer == ALLOW} == set(allowed) | {
        rule.number for rule in rules if all(0 in test.values for test in rule.tests)
    }
    assert decided == {number: expected(which, number, ()) for number in range(1_000)}


@given(which_of_all, numbers, arguments_of_any)
def test_any_call_with_any_arguments_gets_what_the_table_says(
    which: tuple[str, bool, bool], number: int, arguments: list[int]
) -> None:
    assert run(FILTERS[which][0], number, arguments) == expected(which, number, arguments)


@given(which_of_all, numbers, arguments_of_any, st.integers(0, U32))
@example(LEVELS[0], 0, [], I386)
@example(LEVELS[0], 0, [], AARCH64)
@example(LEVELS[0], 0, [], 0)
def test_calls_of_another_architecture_end_the_process(
    which: tuple[str, bool, bool], number: int, arguments: list[int], architecture: int
) -> None:
    if architecture != X86_64:
        assert run(FILTERS[which][0], number, arguments, architecture) == KILL_PROCESS


@given(which_of_all, st.integers(0x40000000, U32), arguments_of_any)
@example(LEVELS[0], 0x40000000, [])  # read, as x32 calls it
@example(LEVELS[0], 0x40000000 + 520, [])  # execve
@example(LEVELS[0], 0x80000000, [])
@example(LEVELS[0], U32, [])  # what ptrace and tracers use for "no call"
def test_x32_calls_and_numbers_below_zero_end_the_process(
    which: tuple[str, bool, bool], number: int, arguments: list[int]
) -> None:
    assert run(FILTERS[which][0], number, arguments) == KILL_PROCESS


def test_what_later_kernels_bring_does_not_exist() -> None:
    for program, _, _ in FILTERS.values():
        for number in (syscalls.NEWEST + 1, 500, 600, 0x3FFFFFFF):
            assert run(program, number) == refused(errno.ENOSYS)


# -- what the table has to say, by the kernel's own numbers ------------------------------------------------------------

DANGEROUS = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "open_tree_attr": 467,
    "unshare": 272, "setns": 308, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "pidfd_getfd": 438, "process_madvise": 440, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
    "io_uring_enter": 426, "io_uring_register": 427, "add_key": 248, "request_key": 249, "keyctl": 250,
    "open_by_handle_at": 304, "name_to_handle_at": 303, "setuid": 105, "setgid": 106, "setreuid": 113,
    "setresuid": 117, "setresgid": 119, "setgroups": 116, "setfsuid": 122, "capset": 126, "reboot": 169,
    "swapon": 167, "acct": 163, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "sethostname": 170,
    "iopl": 172, "ioperm": 173, "modify_ldt": 154, "quotactl": 179, "syslog": 103, "vhangup": 153,
    "seccomp": 317, "landlock_restrict_self": 446, "mbind": 237, "move_pages": 279, "migrate_pages": 256,
    "fanotify_init": 300, "lookup_dcookie": 212, "memfd_secret": 447, "setxattr": 188, "shmget": 29, "msgget": 68,
    "semget": 64, "mq_open": 240, "vmsplice": 278, "splice": 275, "sched_setscheduler": 144, "ioprio_set": 251,
}  # fmt: skip


@every
def test_calls_that_change_the_machine_are_refused(which: tuple[str, bool, bool]) -> None:
    program, _, _ = FILTERS[which]
    allowed = {name for name, number in DANGEROUS.items() if run(program, number) == ALLOW}
    assert not allowed


def test_what_every_program_needs_is_allowed() -> None:
    needed = {"read": 0, "write": 1, "mmap": 9, "execve": 59, "exit_group": 231, "futex": 202, "getrandom": 318}
    for program, _, _ in FILTERS.values():
        assert [name for name, number in needed.items() if run(program, number) != ALLOW] == []


def test_a_call_stands_in_the_table_once_and_for_the_same_reason() -> None:
    calls = [entry for group in syscalls.GROUPS for entry in group.calls.items()]
    calls += [(rule.call, rule.number) for rule in syscalls.rules("namespace")]
    calls += [(refusal.call, refusal.number) for refusal in syscalls.REFUSALS]
    assert len({name for name, _ in calls}) == len({number for _, number in calls}) == len(calls)
    assert all(0 <= number <= syscalls.NEWEST for _, number in calls)
    assert all(group.why for group in syscalls.GROUPS)


@every
def test_the_program_is_one_that_the_kernel_takes(which: tuple[str, bool, bool]) -> None:
    code = list(struct.iter_unpack("<HBBI", FILTERS[which][0]))
    assert len(code) <= 4096
    for at, (operation, if_true, if_false, _) in enumerate(code):
        if operation in (0x15, 0x35):
            assert at + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 0x06


def test_a_table_that_is_too_long_for_a_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="more than a filter can have"):
        seccomp.program({number: str(number) for number in range(3_000)}, ())


# -- what is decided by an argument ------------------------------------------------------------------------------------

CLONE, PRCTL, IOCTL, PRLIMIT, PERSONALITY, SOCKET, SOCKETPAIR, FCNTL = 56, 157, 16, 302, 135, 41, 53, 72
SETPRIORITY, SCHED_SETAFFINITY, KILL = 141, 203, 62
SIGNALS = (KILL, 234, 200, 129, 297, 424)  # tgkill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal
MODES = {"open": (2, 2), "openat": (257, 3), "creat": (85, 1), "mkdir": (83, 1), "mkdirat": (258, 2), "mknod": (133, 1),
    "mknodat": (259, 2), "chmod": (90, 1), "fchmod": (91, 1), "fchmodat": (268, 2), "fchmodat2": (452, 2)}  # fmt: skip
NAMESPACES = {
    "NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000, "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000, "NEWNET": 0x40000000,
}  # fmt: skip
THREAD = 0x3D0F00  # the flags of pthread_create


def namespace(number: int, *arguments: int) -> int:
    return run(FILTERS["namespace", False, True][0], number, arguments)


def landlock(number: int, *arguments: int) -> int:
    return run(FILTERS["landlock", False, True][0], number, arguments)


def test_threads_and_forks_are_made_and_no_namespaces() -> None:
    for flags in (THREAD, 17, 0x4111, 0x1200011):  # pthread_create, fork, vfork, the C library's fork
        assert namespace(CLONE, flags) == landlock(CLONE, flags) == ALLOW
        for kind, flag in NAMESPACES.items():
            assert namespace(CLONE, flags | flag) == landlock(CLONE, flags | flag) == refused(errno.EPERM), kind


@given(st.integers(0, U64))
def test_no_flags_of_clone_make_a_namespace(flags: int) -> None:
    wanted = any(flags & flag for flag in NAMESPACES.values())
    assert namespace(CLONE, flags) == (refused(errno.EPERM) if wanted else ALLOW)


def test_options_of_a_process_are_those_that_give_no_rights() -> None:
    assert namespace(PRCTL, 15) == ALLOW  # PR_SET_NAME
    for option in (8, 22, 24, 26, 28, 31, 35, 47, 0x59616D61):  # KEEPCAPS, SECCOMP, CAPBSET_DROP, …, PTRACER
        assert namespace(PRCTL, option) == refused(errno.EINVAL), option


def test_ioctl_asks_and_does_not_type() -> None:
    assert namespace(IOCTL, 0, 0x5401) == ALLOW  # TCGETS
    assert namespace(IOCTL, 0, 0x5421) == ALLOW  # FIONBIO
    for request in (0x5412, 0x541C, 0x5402, 0x40086602):  # TIOCSTI, TIOCLINUX, TCSETS, FS_IOC_SETFLAGS
        assert namespace(IOCTL, 0, request) == refused(errno.ENOTTY), request
        assert namespace(IOCTL, 0, request | 1 << 32) == refused(
            errno.ENOTTY
        )  # of which the kernel sees the lower half


def test_limits_are_those_of_ones_own_process() -> None:
    assert namespace(PRLIMIT, 0) == ALLOW
    assert namespace(PRLIMIT, 1) == namespace(PRLIMIT, U32) == refused(errno.EPERM)


def test_the_personality_can_be_asked_and_not_set() -> None:
    assert namespace(PERSONALITY, U32) == ALLOW
    for personality in (0, 0x0040000, 0x0400000, 8):  # ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, PER_LINUX32
        assert namespace(PERSONALITY, personality) == refused(errno.EPERM)


@pytest.mark.parametrize(("number", "at"), [(133, 1), (259, 2)])  # mknod, mknodat
def test_files_and_pipes_are_made_and_no_devices(number: int, at: int) -> None:
    for kind in (0, 0o100000, 0o010000):  # S_IFREG, S_IFIFO
        assert namespace(number, *[0] * at, kind | 0o644) == ALLOW
    for kind in (0o020000, 0o060000, 0o140000):  # devices, sockets
        assert namespace(number, *[0] * at, kind | 0o644) == refused(errno.EPERM)


@given(st.sampled_from(sorted(MODES)), st.integers(0, 0o7777), st.integers(0, U32))
@example("chmod", 0o4755, 0)
@example("openat", 0o2755, 0o102)
@example("openat", 0o1777, 0o102)
def test_no_file_gives_others_the_rights_of_its_owner(call: str, mode: int, before: int) -> None:
    number, at = MODES[call]
    for decide in (namespace, landlock):
        answer = decide(number, *[before] * at, mode)
        if mode & 0o6000 or ("chmod" in call and decide is landlock):  # S_ISUID, S_ISGID
            assert answer == refused(errno.EPERM)
        else:
            assert answer == ALLOW


def test_what_lies_in_memory_is_refused_so_that_another_way_is_tried() -> None:
    for number in (435, 437):  # clone3, openat2
        assert namespace(number) == landlock(number) == refused(errno.ENOSYS)


def test_files_are_locked_and_not_leased() -> None:
    for command in (1, 2, 3, 4, 5, 6, 1030):  # F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_DUPFD_CLOEXEC
        assert namespace(FCNTL, 3, command) == landlock(FCNTL, 3, command) == ALLOW
    for command in (8, 10, 15, 1024, 1026, 1031):  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
        assert namespace(FCNTL, 3, command) == landlock(FCNTL, 3, command) == refused(errno.EPERM)


def test_only_ones_own_priority_and_processors_are_set() -> None:
    assert namespace(SCHED_SETAFFINITY, 0) == namespace(SETPRIORITY, 0, 0, 5) == ALLOW
    for pid in (1, 1234, U32):
        assert landlock(SCHED_SETAFFINITY, pid) == landlock(SETPRIORITY, 0, pid, 5) == refused(errno.EPERM)
    for which in (1, 2):  # PRIO_PGRP, PRIO_USER
        assert landlock(SETPRIORITY, which, 0, 5) == refused(errno.EPERM)


@pytest.mark.parametrize(
    ("level", "network", "families"),
    [
        ("namespace", False, {1}),
        ("landlock", False, set()),
        ("namespace", True, {2, 10, 16}),
        ("landlock", True, {2, 10, 16}),
    ],
)
def test_which_sockets_can_be_made(level: str, network: bool, families: set[int]) -> None:
    program, _, _ = FILTERS[level, network, True]
    answers = {family: run(program, SOCKET, [family, 1, 0]) for family in range(64)}
    assert {family for family, answer in answers.items() if answer == ALLOW} == families
    assert {answer for family, answer in answers.items() if family not in families} == {refused(errno.EACCES)}


@pytest.mark.parametrize(("level", "network"), [("namespace", False), ("namespace", True), ("landlock", False)])
def test_pairs_of_sockets_lead_nowhere_else(level: str, network: bool) -> None:
    program, _, _ = FILTERS[level, network, True]
    flags = 0x80800  # SOCK_CLOEXEC | SOCK_NONBLOCK
    for kind in (1, 5):  # SOCK_STREAM, SOCK_SEQPACKET
        assert run(program, SOCKETPAIR, [1, kind | flags]) == ALLOW
    for kind in (2, 3):  # SOCK_DGRAM, SOCK_RAW (which Unix sockets take for the same): these can send to any name
        alone = level == "namespace" and not network
        assert run(program, SOCKETPAIR, [1, kind | flags]) == (ALLOW if alone else refused(errno.EACCES))
    for family in (2, 10, 16, 30, 40):  # INET, INET6, NETLINK, TIPC, VSOCK
        assert run(program, SOCKETPAIR, [family, 1]) == refused(errno.EACCES)


def test_where_nothing_keeps_signals_in_none_are_sent() -> None:
    program, _, _ = FILTERS["landlock", False, False]
    for number in SIGNALS:
        assert run(program, number) == refused(errno.EPERM)
        assert namespace(number) == landlock(number) == ALLOW


def test_the_landlock_level_leaves_out_what_landlock_does_not_mediate() -> None:
    for number in (90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 280, 109, 112):  # chmod, chown, utime; setpgid, setsid
        assert namespace(number) == ALLOW
        assert landlock(number) == refused(errno.EPERM)


def test_a_rule_holds_where_all_of_its_tests_do() -> None:
    tests = [syscalls.Test(1, frozenset((0, 2)), 0x3), syscalls.Test(4, frozenset((7,)))]
    program = seccomp.program({1: "write"}, [Rule("open", 2, "why", tests, errno.EROFS)], ())
    for flags, fourth, answer in [(0, 7, ALLOW), (0xF2, 7, ALLOW), (1, 7, None), (3, 7, None), (0, 6, None)]:
        assert run(program, 2, [9, flags, 9, 9, fourth]) == (answer or refused(errno.EROFS))
    assert [run(program, number) for number in (0, 1, 3)] == [refused(errno.EPERM), ALLOW, refused(errno.EPERM)]
