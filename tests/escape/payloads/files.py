"""Files of the host's: what is in them, what they are called, what they are."""

from __future__ import annotations

from tests.escape.payload import Payload

LANDLOCK = "Landlock mediates opening, so that what opens nothing needs the filter of calls"


def reads(name: str, tries: str, code: str, source: str = "", none: str = "succeeds") -> Payload:
    return Payload(f"read-{name}", tries, f"with decisive:\n    print({code})", source, none)  # type: ignore[arg-type]


def changes(name: str, tries: str, code: str, source: str = "", none: str = "succeeds") -> Payload:
    return Payload(f"change-{name}", tries, f"with decisive:\n    {code}", source, none)  # type: ignore[arg-type]


PAYLOADS = [
    reads("path", "reads a file by its path", "open(C['secret']).read()"),
    reads("dots", "reads it up from the working directory", "open('../' * 40 + C['secret'].lstrip('/')).read()"),
    reads(
        "openat2",
        "reads it by a call whose arguments lie in memory",
        "os.read(call(437, -100, C['secret'].encode(), struct.pack('QQQ', 0, 0, 0), 24), 100)",
    ),
    reads("root", "reads it below /proc/self/root", "open('/proc/self/root' + C['secret']).read()"),
    reads("host-root", "reads it below the host's own root", "open(f'/proc/{C[\"host\"]}/root' + C['secret']).read()"),
    reads(
        "host-cwd",
        "reads it from the host's working directory on",
        "open(f'/proc/{C[\"host\"]}/cwd/' + '../' * 40 + C['secret'].lstrip('/')).read()",
    ),
    reads(
        "host-fd",
        "reads it from a descriptor of the host's",
        "[open(f'/proc/{C[\"host\"]}/fd/{n}').read(100) for n in os.listdir(f'/proc/{C[\"host\"]}/fd')"
        " if os.readlink(f'/proc/{C[\"host\"]}/fd/{n}') == C['secret']]",
    ),
    reads("symlink", "reads it through a link of its own", "(os.symlink(C['secret'], 'way'), open('way').read())"),
    reads("child", "has it read by another program", "subprocess.run(['cat', C['secret']], capture_output=True)"),
    reads(
        "o-path",
        "opens it without rights, and again through /proc",
        "open(f'/proc/self/fd/{os.open(C[\"secret\"], os.O_PATH)}').read()",
    ),
    reads("folder", "lists a folder", "os.listdir(C['folder'])"),
    reads(
        "glob",
        "lists a folder with a shell",
        "subprocess.run('ls -la ' + C['folder'], shell=True, capture_output=True)",
    ),
    reads("temporary", "lists the host's temporary files", "os.listdir('/tmp'), os.listdir('/var/tmp')"),
    Payload(
        "read-linked",
        "links it to a place of its own by a descriptor without rights (linkat, AT_EMPTY_PATH)",
        """
with decisive:
    file = os.open(C["secret"], os.O_PATH)
    call(265, file, b"", -100, b"linked", 0x1000)
    print(open("linked").read())
    os.unlink("linked")
""",
        "what CAP_DAC_READ_SEARCH gives beside reading",
        none="either",
    ),
    reads(
        "handle",
        "opens it by its handle, around all paths",
        "[(call(303, -100, C['secret'].encode(), h, ctypes.byref(m), 0), os.read(call(304, os.open('/', 0), h, 0), 99))"
        " for h, m in [(ctypes.create_string_buffer(struct.pack('Ii', 128, 0), 136), ctypes.c_int())]]",
        "Shocker, the open_by_handle_at escape from Docker (2014)",
        "either",
    ),
    reads(
        "inherited",
        "reads descriptors that were left open",
        """[os.pread(n, 99, 0) for n in range(3, 200)
        if os.path.exists(f'/dev/fd/{n}') and stat.S_ISREG(os.fstat(n).st_mode)]""",
        none="either",
    ),
    Payload(
        "read-inherited-blindly",
        "reads any descriptor that was left open, without /proc",
        """
with decisive:
    for number in range(3, 1024):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode) and not stat.S_ISFIFO(os.fstat(number).st_mode):
                print(os.pread(number, 99, 0))
        except OSError:
            pass
""",
        none="either",
    ),
    reads("mapped", "maps it into memory", "mmap.mmap(os.open(C['secret'], 0), 0, prot=mmap.PROT_READ)[:99]"),
    Payload(
        "read-notified",
        "is told the names of files as they are made (inotify)",
        """
watch = libc.inotify_init1(os.O_NONBLOCK)
with decisive:
    call(254, watch, C["folder"].encode(), 0xFFF)
    got("a watch on the folder")
""",
        LANDLOCK,
    ),
    changes("write", "writes into a file", "open(C['writable'], 'w').write('changed')"),
    changes(
        "append", "has a shell append to it", "subprocess.run('echo x >> ' + C['writable'], shell=True, check=True)"
    ),
    changes("truncate", "cuts it by its path", "os.truncate(C['writable'], 0)"),
    changes(
        "replace",
        "puts another file in its place",
        "(open('x', 'w').close(), os.rename('x', C['writable']))",
        none="either",
    ),
    changes("rename", "renames it", "os.rename(C['writable'], C['writable'] + '-moved')"),
    changes("delete", "deletes it", "os.unlink(C['writable'])"),
    changes("create", "makes a file beside it", "open(C['folder'] + '/new', 'x').close()"),
    changes("folder", "makes a folder beside it", "os.mkdir(C['folder'] + '/new')"),
    changes("symlink", "plants a link", "os.symlink('/etc/passwd', C['folder'] + '/link')"),
    changes("hard-link", "links it elsewhere", "os.link(C['writable'], C['folder'] + '/link')"),
    changes(
        "exchange",
        "exchanges two files (renameat2)",
        "call(316, -100, C['writable'].encode(), -100, C['meta'].encode(), 2)",
    ),
    changes("fifo", "plants a named pipe", "os.mkfifo(C['folder'] + '/pipe')"),
    changes("chmod", "opens it to everybody", "os.chmod(C['meta'], 0o777)"),
    changes("fchmod", "the same, through a descriptor", "os.fchmod(os.open(C['meta'], 0), 0o777)"),
    changes(
        "chmod-o-path", "the same, through /proc", "os.chmod(f'/proc/self/fd/{os.open(C[\"meta\"], os.O_PATH)}', 0o777)"
    ),
    changes("fchmodat2", "the same, by a newer call", "call(452, -100, C['meta'].encode(), 0o777, 0)", none="either"),
    changes("chown", "takes it over", "os.chown(C['meta'], os.getuid(), 12345)", none="either"),
    changes("times", "sets its times", "os.utime(C['meta'], (1, 1))"),
    changes("times-old", "the same, by an older call", "call(132, C['meta'].encode(), struct.pack('qq', 1, 1))"),
    changes(
        "attribute", "gives it an extended attribute", "os.setxattr(C['meta'], b'user.escape', b'x')", none="either"
    ),
    changes(
        "attributes",
        "sets its flags (file_setattr)",
        "call(469, -100, C['meta'].encode(), bytes(24), 24, 0)",
        none="fails",
    ),
    Payload(
        "change-standard-library",
        "opens a module of the standard library for writing",
        "opens(C['python'], os.O_RDWR)",
        none="either",
    ),
    Payload(
        "change-setuid-left-behind",
        "leaves a setuid program in a folder that it may write to",
        """
with decisive:
    path = shared + "/program"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o4755))
    if os.stat(path).st_mode & stat.S_ISUID:
        got("a setuid file")
""",
        settings={"shared": True},
    ),
    Payload(
        "change-setuid-by-chmod",
        "makes a file in such a folder setuid",
        """
with decisive:
    path = shared + "/other"
    open(path, "w").close()
    os.chmod(path, 0o6755)
    got("a setuid file")
""",
        settings={"shared": True},
    ),
]
