"""The public location of a request, from its peer, forwarded headers and path."""
