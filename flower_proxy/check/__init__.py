"""The doctor: what ``flower-proxy check`` asks, and what it makes of the answers."""
