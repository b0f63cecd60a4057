"""The programs that are measured, each in a process and an interpreter of its own, behind the same few commands."""
