"""Sessions that are killed again and again, and what must be true of them all the same (docs/crash.md).

A session is a script drawn from a seed (`script`). Its host is a process of its own (`life`) that talks to a model
provider which keeps its own bill (`provider`); it is killed, resumed in a new process, killed again (`harness`), and
what it says and leaves is compared with a twin that nobody killed (`truth`).
"""
