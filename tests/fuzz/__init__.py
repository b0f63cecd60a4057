"""Workers that lie: what any of them can send, said to a kernel, and what must hold whatever it was."""
