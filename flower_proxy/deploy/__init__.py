"""Configuration files for reverse proxies, service managers and Prometheus, as ``flower-proxy config`` prints them."""
