"""Code that a model wrote, kept away from this machine: levels of isolation, the strongest that works here by default.

`namespace`: Linux namespaces, a root of its own and a filter of system calls. `landlock`: for places where no
namespaces can be made. `none`: a process with the rights of its user, only where it is asked for by name.
"""
