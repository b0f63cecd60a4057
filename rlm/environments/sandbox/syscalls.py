"""The system calls that code in a sandbox may make, each with its number on x86_64 and the reason why it is here.

Whatever is not in this table is refused (EPERM), so a call that a later kernel brings is refused before anybody has
thought about it. Numbers: arch/x86/entry/syscalls/syscall_64.tbl of Linux 6.18.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that are allowed for one reason."""

    name: str
    why: str
    text: str

    @property
    def calls(self) -> Mapping[str, int]:
        """Names and numbers, which `text` lists."""
        return {name: int(number) for name, number in (entry.split() for entry in self.text.split(", "))}


@dataclass(frozen=True, slots=True)
class Test:
    """Of the argument with this index: whether `argument & mask` is one of `values`. The kernel reads 32 bits of it."""

    argument: int
    values: frozenset[int]
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Rule:
    """A call that is allowed where its arguments pass all tests. refusal: the error that others get."""

    call: str
    number: int
    why: str
    tests: Sequence[Test]
    refusal: int = errno.EPERM


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that is refused by another error than the rest, because the C library then tries another way."""

    call: str
    number: int
    why: str
    error: int


GROUPS: Sequence[Group] = (
    Group(
        "read",
        "read and write open files, pipes and sockets",
        "read 0, write 1, readv 19, writev 20, pread64 17, pwrite64 18, preadv 295, pwritev 296, preadv2 327, "
        "pwritev2 328, lseek 8, close 3, close_range 436, sendfile 40, copy_file_range 326, fadvise64 221, "
        "readahead 187",
    ),
    Group(
        "look",
        "look at files and folders",
        "stat 4, fstat 5, lstat 6, newfstatat 262, statx 332, access 21, faccessat 269, faccessat2 439, "
        "readlink 89, readlinkat 267, getdents 78, getdents64 217, getcwd 79, chdir 80, fchdir 81, statfs "
        "137, fstatfs 138",
    ),
    Group(
        "change",
        "change files in the session's own folders",
        "truncate 76, ftruncate 77, fallocate 285, fsync 74, fdatasync 75, sync_file_range 277, rename 82, "
        "renameat 264, renameat2 316, rmdir 84, link 86, linkat 265, unlink 87, "
        "unlinkat 263, symlink 88, symlinkat 266, umask 95, flock 73",
    ),
    Group(
        "metadata",
        "modes, times and owners of one's own files (not at the Landlock level: Landlock does not mediate them)",
        "chown 92, fchown 93, lchown 94, fchownat 260, utime 132, utimes 235, futimesat 261, utimensat 280",
    ),
    Group(
        "memory",
        "memory of one's own",
        "mmap 9, mprotect 10, munmap 11, mremap 25, brk 12, madvise 28, msync 26, mincore 27, mlock 149, "
        "munlock 150, mlock2 325, mlockall 151, munlockall 152, pkey_alloc 330, pkey_free 331, pkey_mprotect "
        "329, membarrier 324",
    ),
    Group(
        "threads",
        "threads and their locks",
        "futex 202, futex_waitv 449, futex_wake 454, futex_wait 455, futex_requeue 456, set_robust_list 273, "
        "get_robust_list 274, set_tid_address 218, gettid 186, sched_yield 24, rseq 334, arch_prctl 158",
    ),
    Group(
        "processes",
        "child processes, and waiting for them",
        "fork 57, vfork 58, execve 59, execveat 322, exit 60, exit_group 231, wait4 61, waitid 247, "
        "pidfd_open 434, getpid 39, getppid 110, getpgid 121, getpgrp 111, getsid 124",
    ),
    Group(
        "groups",
        "process groups of one's own (not at the Landlock level, where a session is ended by its group)",
        "setpgid 109, setsid 112",
    ),
    Group(
        "signals",
        "handle signals, and send them to what can be seen",
        "rt_sigaction 13, rt_sigprocmask 14, rt_sigreturn 15, rt_sigpending 127, rt_sigsuspend 130, "
        "rt_sigtimedwait 128, sigaltstack 131, pause 34, restart_syscall 219, signalfd 282, signalfd4 289",
    ),
    Group(
        "kill",
        "send signals",
        "kill 62, tgkill 234, tkill 200, rt_sigqueueinfo 129, rt_tgsigqueueinfo 297, pidfd_send_signal 424",
    ),
    Group(
        "time",
        "clocks and timers, none of which can be set",
        "time 201, gettimeofday 96, clock_gettime 228, clock_getres 229, clock_nanosleep 230, nanosleep 35, "
        "getitimer 36, setitimer 38, alarm 37, timer_create 222, timer_settime 223, timer_gettime 224, "
        "timer_getoverrun 225, timer_delete 226, timerfd_create 283, timerfd_settime 286, timerfd_gettime "
        "287, times 100",
    ),
    Group(
        "wait",
        "wait for several files at once",
        "poll 7, ppoll 271, select 23, pselect6 270, epoll_create 213, epoll_create1 291, epoll_ctl 233, "
        "epoll_wait 232, epoll_pwait 281, epoll_pwait2 441, eventfd 284, eventfd2 290",
    ),
    Group(
        "pipes",
        "pipes and copies of descriptors",
        "pipe 22, pipe2 293, dup 32, dup2 33, dup3 292",
    ),
    Group(
        "sockets",
        "what is done with sockets once they are there; for which can be made, see `rules`",
        "connect 42, accept 43, accept4 288, bind 49, listen 50, sendto 44, recvfrom 45, "
        "sendmsg 46, recvmsg 47, sendmmsg 307, recvmmsg 299, shutdown 48, getsockname 51, getpeername 52, "
        "getsockopt 55",
    ),
    Group(
        "self",
        "who and where one is",
        "getuid 102, geteuid 107, getgid 104, getegid 108, getgroups 115, getresuid 118, getresgid 120, uname "
        "63, sysinfo 99, getrusage 98, getrlimit 97, getcpu 309, getrandom 318, capget 125",
    ),
    Group(
        "scheduling",
        "ask about, and within one's rights set, one's own scheduling and limits",
        "setrlimit 160, sched_getaffinity 204, sched_getparam 143, sched_getscheduler 145, "
        "sched_get_priority_max 146, sched_get_priority_min 147, sched_rr_get_interval 148, sched_getattr "
        "315, getpriority 140",
    ),
)

NEW_NAMESPACES = 0x7E020000  # CLONE_NEW*: include/uapi/linux/sched.h
UNIX, INET, INET6, NETLINK = 1, 2, 10, 16  # address families
STREAM, SEQUENCED = 1, 5  # types of sockets that, once connected, can send nowhere else
KIND_OF_SOCKET = 0xF  # of the bits of a socket's type
S_IFMT, S_IFREG, S_IFIFO = 0o170000, 0o100000, 0o010000
RIGHTS_OF_OTHERS = 0o6000  # the bits of a mode that give a program the rights of its owner
TERMINAL = frozenset((0x5401, 0x5413))  # TCGETS, TIOCGWINSZ: how Python asks whether a file is a terminal
DESCRIPTORS = frozenset((0x5421, 0x541B, 0x5450, 0x5451, 0x5452))  # FIONBIO, FIONREAD, FIONCLEX, FIOCLEX, FIOASYNC
# F_DUPFD, GET/SETFD, GET/SETFL, GETLK, SETLK, SETLKW, GETOWN, OFD locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS:
# no leases, which make others wait; no owner, who is sent signals; no larger pipes, which one user has few of
FILE_COMMANDS = frozenset((0, 1, 2, 3, 4, 5, 6, 7, 9, 36, 37, 38, 1030, 1032, 1034))
# PR_SET/GET_PDEATHSIG, GET_DUMPABLE, SET/GET_NAME, GET_SECCOMP, CAPBSET_READ, SET/GET_TIMERSLACK, SET/GET_CHILD_
# SUBREAPER, SET/GET_NO_NEW_PRIVS, SET/GET_THP_DISABLE, PR_SET_VMA; not SET_DUMPABLE, which hides a process's memory
PROCESS_OPTIONS = frozenset((1, 2, 3, 15, 16, 21, 23, 29, 30, 36, 37, 38, 39, 41, 42, 0x53564D41))

# All but SO_SNDBUF, SO_RCVBUF and their like: a socket buffers in memory that counts as no process's.
SOCKET_OPTIONS = frozenset(range(128)) - {7, 8, 32, 33}

ZERO = frozenset((0,))
OPEN = "open what is mounted, and make files, but none whose program has the rights of its owner"
PLAIN_FILES = frozenset((0, S_IFREG, S_IFIFO))


def _mode(call: str, number: int, argument: int, why: str) -> Rule:
    return Rule(call, number, why, [Test(argument, ZERO, RIGHTS_OF_OTHERS)])


RULES: Sequence[Rule] = (
    Rule("fcntl", 72, "descriptors and locks", [Test(1, FILE_COMMANDS)]),
    _mode("openat", 257, 3, OPEN),
    _mode("open", 2, 2, OPEN),
    _mode("creat", 85, 1, OPEN),
    _mode("mkdir", 83, 1, OPEN),
    _mode("mkdirat", 258, 2, OPEN),
    Rule("ioctl", 16, "ask what a file is; make it wait or not", [Test(1, TERMINAL | DESCRIPTORS)], errno.ENOTTY),
    Rule("clone", 56, "threads and child processes, in no new namespace", [Test(0, ZERO, NEW_NAMESPACES)]),
    Rule("prctl", 157, "options of one's own process that give no rights", [Test(0, PROCESS_OPTIONS)], errno.EINVAL),
    Rule("setsockopt", 54, "options of sockets, but the size of their buffers", [Test(2, SOCKET_OPTIONS)]),
    Rule("prlimit64", 302, "limits of one's own process, which only ever go down", [Test(0, ZERO)]),
    Rule("sched_setaffinity", 203, "the processors of one's own process", [Test(0, ZERO)]),
    Rule("setpriority", 141, "the niceness of one's own process", [Test(0, ZERO), Test(1, ZERO)]),
    Rule("personality", 135, "ask which one is in force", [Test(0, frozenset((0xFFFFFFFF,)))]),
    Rule("mknod", 133, "named pipes", [Test(1, PLAIN_FILES, S_IFMT | RIGHTS_OF_OTHERS)]),
    Rule("mknodat", 259, "named pipes", [Test(2, PLAIN_FILES, S_IFMT | RIGHTS_OF_OTHERS)]),
)
METADATA = "modes of one's own files"
METADATA_RULES: Sequence[Rule] = (
    _mode("chmod", 90, 1, METADATA),
    _mode("fchmod", 91, 1, METADATA),
    _mode("fchmodat", 268, 2, METADATA),
    _mode("fchmodat2", 452, 2, METADATA),
)

REFUSALS: Sequence[Refusal] = (
    Refusal("clone3", 435, "its flags lie in memory, where no filter sees them; clone does the same", errno.ENOSYS),
    Refusal("openat2", 437, "its mode lies in memory; openat does the same", errno.ENOSYS),
    Refusal("io_uring_setup", 425, "does what other calls do without making them", errno.ENOSYS),
    Refusal("getxattr", 191, "shutil copies files without extended attributes then", errno.ENOTSUP),
    Refusal("lgetxattr", 192, "the same", errno.ENOTSUP),
    Refusal("fgetxattr", 193, "the same", errno.ENOTSUP),
    Refusal("listxattr", 194, "the same", errno.ENOTSUP),
    Refusal("llistxattr", 195, "the same", errno.ENOTSUP),
    Refusal("flistxattr", 196, "the same", errno.ENOTSUP),
)
NEWEST = 466  # the last call of the kernel that this table was made for; what is newer does not exist in here


def allowed(level: str, *, kill: bool = True) -> dict[int, str]:
    """Numbers and names of the calls that are allowed whatever their arguments are, at a level of isolation.

    kill: whether the kernel keeps signals within the session, by a process namespace, Landlock or a uid of its own.
    """
    left_out = set() if level == "namespace" else {"metadata", "groups"}
    if not kill:
        left_out.add("kill")
    return {number: call for group in GROUPS if group.name not in left_out for call, number in group.calls.items()}


def rules(level: str, *, network: bool = False) -> Sequence[Rule]:
    """The calls that are allowed for some of their arguments.

    Unix sockets can be made where nobody else's can be reached by a path or by a name. Elsewhere there are pairs of
    them only, and of these only such as cannot send anywhere else.
    """
    alone = level == "namespace" and not network
    families = frozenset((INET, INET6, NETLINK)) if network else frozenset((UNIX,) if alone else ())
    pairs = [Test(0, frozenset((UNIX,)))]
    if not alone:
        pairs.append(Test(1, frozenset((STREAM, SEQUENCED)), KIND_OF_SOCKET))
    return (
        *RULES,
        *(METADATA_RULES if level == "namespace" else ()),
        Rule("socket", 41, "the network, or Unix sockets of one's own", [Test(0, families)], errno.EACCES),
        Rule("socketpair", 53, "sockets to one's own processes", pairs, errno.EACCES),
    )
