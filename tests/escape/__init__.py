"""Code that tries to get out of a sandbox, run in it, and an oracle that sees from outside whether it did.

`python -m tests.escape` runs every payload at every level, as root and as an ordinary user, and writes
bench/results/escape.json. Payloads are data (`payloads/`): the same ones run at "none", where a known part of them must
succeed, or the oracle would be blind.
"""
