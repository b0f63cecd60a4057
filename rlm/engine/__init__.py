"""The engine: one turn as an async function over a Host, and the Host it runs over."""
