"""The system calls that code in a sandbox may make, each with its number on x86_64 and the reason why it is here.

Whatever is not in this table is refused (EPERM), so a call that a later kernel brings is refused before anybody has
thought about it. Numbers: arch/x86/entry/syscalls/syscall_64.tbl of Linux 6.18.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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
class Rule:
    """A call that is allowed for some of its arguments: those where `argument & mask` is one of `values`.

    The kernel reads these arguments as 32 bits. refusal: the error of all others.
    """

    call: str
    number: int
    why: str
    argument: int
    values: frozenset[int] = field(default_factory=frozenset)
    mask: int = 0xFFFFFFFF
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
        "open",
        "open what is mounted; which paths that is, the mounts or Landlock decide",
        "open 2, openat 257, openat2 437, creat 85",
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
        "renameat 264, renameat2 316, mkdir 83, mkdirat 258, rmdir 84, link 86, linkat 265, unlink 87, "
        "unlinkat 263, symlink 88, symlinkat 266, umask 95, flock 73, fcntl 72",
    ),
    Group(
        "metadata",
        "modes, times and owners of one's own files (not at the Landlock level: Landlock does not mediate them)",
        "chmod 90, fchmod 91, fchmodat 268, fchmodat2 452, chown 92, fchown 93, lchown 94, fchownat 260, "
        "utime 132, utimes 235, futimesat 261, utimensat 280",
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
        "epoll_wait 232, epoll_pwait 281, epoll_pwait2 441, eventfd 284, eventfd2 290, inotify_init 253, "
        "inotify_init1 294, inotify_add_watch 254, inotify_rm_watch 255",
    ),
    Group(
        "pipes",
        "pipes and copies of descriptors",
        "pipe 22, pipe2 293, dup 32, dup2 33, dup3 292",
    ),
    Group(
        "sockets",
        "pairs of sockets, and what is done with sockets once they are there; which can be made, see RULES",
        "socketpair 53, connect 42, accept 43, accept4 288, bind 49, listen 50, sendto 44, recvfrom 45, "
        "sendmsg 46, recvmsg 47, sendmmsg 307, recvmmsg 299, shutdown 48, getsockname 51, getpeername 52, "
        "setsockopt 54, getsockopt 55",
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
        "setrlimit 160, sched_getaffinity 204, sched_setaffinity 203, sched_getparam 143, sched_getscheduler 145, "
        "sched_get_priority_max 146, sched_get_priority_min 147, sched_rr_get_interval 148, sched_getattr "
        "315, getpriority 140, setpriority 141",
    ),
)

NEW_NAMESPACES = 0x7E020000  # CLONE_NEW*: include/uapi/linux/sched.h
UNIX, INET, INET6, NETLINK = 1, 2, 10, 16  # address families
S_IFMT, S_IFREG, S_IFIFO = 0o170000, 0o100000, 0o010000
TERMINAL = frozenset((0x5401, 0x5413))  # TCGETS, TIOCGWINSZ: how Python asks whether a file is a terminal
DESCRIPTORS = frozenset((0x5421, 0x541B, 0x5450, 0x5451, 0x5452))  # FIONBIO, FIONREAD, FIONCLEX, FIOCLEX, FIOASYNC
# PR_SET/GET_PDEATHSIG, GET/SET_DUMPABLE, SET/GET_NAME, GET_SECCOMP, CAPBSET_READ, GET/SET_TIMERSLACK, SET/GET_CHILD_
# SUBREAPER, SET/GET_NO_NEW_PRIVS, SET/GET_THP_DISABLE, PR_SET_VMA
PROCESS_OPTIONS = frozenset((1, 2, 3, 4, 15, 16, 21, 23, 29, 30, 36, 37, 38, 39, 41, 42, 0x53564D41))

RULES: Sequence[Rule] = (
    Rule("clone", 56, "threads and child processes, in no new namespace", 0, frozenset((0,)), NEW_NAMESPACES),
    Rule("prctl", 157, "options of one's own process that give no rights", 0, PROCESS_OPTIONS, refusal=errno.EINVAL),
    Rule("ioctl", 16, "ask what a file is; set it non-blocking", 1, TERMINAL | DESCRIPTORS, refusal=errno.ENOTTY),
    Rule("prlimit64", 302, "limits of one's own process, which only ever go down", 0, frozenset((0,))),
    Rule("personality", 135, "ask which one is in force", 0, frozenset((0xFFFFFFFF,))),
    Rule("mknod", 133, "named pipes", 1, frozenset((0, S_IFREG, S_IFIFO)), S_IFMT),
    Rule("mknodat", 259, "named pipes", 2, frozenset((0, S_IFREG, S_IFIFO)), S_IFMT),
)
SOCKET = 41

REFUSALS: Sequence[Refusal] = (
    Refusal("clone3", 435, "its flags lie in memory, where no filter sees them; clone does the same", errno.ENOSYS),
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


def rules(level: str, *, network: bool = False, kill: bool = True) -> Sequence[Rule]:
    """The calls that are allowed for some of their arguments.

    Without a namespace of its own for the network, a Unix socket could reach the host's services by an abstract name.
    """
    families = frozenset((INET, INET6, NETLINK)) if network else frozenset((UNIX,) if level == "namespace" else ())
    sockets = Rule("socket", SOCKET, "the network, or Unix sockets of one's own", 0, families, refusal=errno.EACCES)
    # raise(), abort() and faults of a thread's own arrive by tgkill; nobody else's process group is 0
    own = () if kill else (Rule("kill", 62, "signals to one's own process group", 0, frozenset((0,))),)
    return (*RULES, sockets, *own)
