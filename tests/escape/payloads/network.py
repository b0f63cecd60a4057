"""Everything that a socket can reach."""

from __future__ import annotations

from tests.escape.payload import AtNone, Payload

UNIX = "Landlock does not mediate Unix sockets that have a path"


def attempt(name: str, tries: str, code: str, source: str = "", none: AtNone = "succeeds", **more: object) -> Payload:
    return Payload(name, tries, f"with decisive:\n    {code}", source, none, **more)  # type: ignore[arg-type]


def makes(name: str, family: int, kind: int, protocol: int = 0, none: AtNone = "either") -> Payload:
    """A socket of that family, which the kernel must not even begin to make."""
    code = f"socket.socket({family}, {kind}, {protocol}).close(); got('made')"
    return Payload(f"make-{name}", f"makes a socket: {name}", f"with decisive:\n    {code}", none=none)


PAYLOADS = [
    attempt("tcp", "connects by TCP", "socket.create_connection(C['tcp'], 2)"),
    attempt("tcp6", "connects by TCP over IPv6", "socket.socket(socket.AF_INET6).connect(C['tcp6'])", none="either"),
    attempt("udp", "sends a datagram", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', C['udp'])"),
    attempt(
        "udp6",
        "the same over IPv6",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', C['udp6'])",
        none="either",
    ),
    attempt(
        "tcp-fast-open", "connects by sending", "socket.socket().sendto(b'x', 0x20000000, C['tcp'])", none="either"
    ),
    attempt(
        "tcp-shell",
        "has bash connect",
        "subprocess.run(['bash', '-c', 'exec 3<>/dev/tcp/%s/%d' % C['tcp']], check=True, capture_output=True)",
    ),
    attempt(
        "tcp-url",
        "asks for a URL",
        "__import__('urllib.request').request.urlopen('http://%s:%d/' % C['tcp'], timeout=0.2)",
    ),
    attempt(
        "tcp-asyncio",
        "connects with asyncio",
        "__import__('asyncio').run(__import__('asyncio').open_connection(*C['tcp']))",
    ),
    attempt("listen", "listens on a port", "(socket.create_server(('127.0.0.1', 0)), got('listens'))"),
    attempt(
        "interfaces",
        "lists the network's interfaces of the machine",
        "if [name for _, name in socket.if_nameindex() if name != 'lo']: got(socket.if_nameindex())",
    ),
    attempt(
        "resolve",
        "has a name resolved by a server",
        "(socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 53)), got('connected'))",
        none="either",
    ),
    attempt("unix", "connects to a Unix socket by its path", "socket.socket(socket.AF_UNIX).connect(C['unix'])", UNIX),
    attempt(
        "unix-datagram",
        "sends a datagram to one",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', C['unix_datagram'])",
        UNIX,
    ),
    attempt(
        "unix-packets",
        "connects to one that keeps packets",
        "socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(C['unix_packets'])",
        UNIX,
    ),
    attempt(
        "abstract",
        "connects to a Unix socket by its abstract name",
        "socket.socket(socket.AF_UNIX).connect(C['abstract'])",
        "CVE-2020-15257 (containerd-shim)",
    ),
    attempt(
        "abstract-datagram",
        "sends a datagram to one",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', C['abstract_datagram'])",
    ),
    attempt(
        "pair-to-path",
        "sends from one of a pair of sockets to a path",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', C['unix_datagram'])",
        UNIX,
    ),
    attempt(
        "pair-to-abstract",
        "sends from one of a pair to an abstract name",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', C['abstract_datagram'])",
    ),
    attempt(
        "pair-connected",
        "connects one of a pair to another address",
        "(lambda s: (s.connect(C['unix_datagram']), s.send(b'x')))(socket.socketpair(type=socket.SOCK_DGRAM)[0])",
    ),
    attempt(
        "pair-many",
        "sends a descriptor along",
        "socket.socketpair(type=socket.SOCK_DGRAM)[0]"
        ".sendmsg([b'x'], [(1, 1, array.array('i', [0]))], 0, C['unix_datagram'])",
    ),
    attempt(
        "pair-raw",
        "makes one of a pair raw, which a datagram socket then is",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)[0].sendto(b'x', C['unix_datagram'])",
    ),
    Payload(
        "pair-families",
        "has the kernel make sockets of every family in pairs",
        """
with decisive:
    for family in range(2, 46):
        for kind in (1, 2, 3, 5):
            try:
                socket.socketpair(family, kind)
                got("a pair of family", family)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:  # after it had made both
                    got("a socket of family", family)
""",
    ),
    makes("netlink-route", 16, 3, 0),
    makes("netlink-audit", 16, 3, 9),
    makes("netlink-uevent", 16, 3, 15),
    makes("netlink-crypto", 16, 3, 21),
    makes("netlink-netfilter", 16, 3, 12),
    makes("raw-icmp", 2, 3, 1),
    makes("ping", 2, 2, 1),
    makes("raw-ipv6", 10, 3, 58),
    makes("packet", 17, 3, 0x300),
    makes("vsock", 40, 1),
    makes("bluetooth", 31, 3, 1),
    makes("crypto", 38, 5),
    makes("can", 29, 3, 1),
    makes("rds", 21, 5),
    makes("tipc", 30, 2),
    makes("xdp", 44, 3),
    makes("kcm", 41, 2),
    makes("smc", 43, 1),
    makes("key", 15, 3, 2),
    makes("ax25", 3, 2),
    makes("mptcp", 2, 1, 262),
    makes("sctp", 2, 1, 132),
    makes("udplite", 2, 2, 136),
    attempt(
        "with-network-abstract",
        "reaches abstract names where it may use the network",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', C['abstract_datagram'])",
        settings={"network": True},
    ),
    attempt(
        "with-network-pair",
        "the same from one of a pair",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', C['abstract_datagram'])",
        settings={"network": True},
    ),
    attempt(
        "with-network-path",
        "reaches paths where it may use the network",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', C['unix_datagram'])",
        settings={"network": True},
    ),
    attempt(
        "with-network-raw",
        "makes raw packets where it may use the network",
        "(socket.socket(2, 3, 1), got('made'))",
        settings={"network": True},
        none="either",
    ),
]
