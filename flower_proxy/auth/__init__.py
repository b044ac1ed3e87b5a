"""Authentication and access policy."""
