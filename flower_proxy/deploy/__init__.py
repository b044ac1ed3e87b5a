"""The configuration of what stands in front of Flower or around it: ``flower-proxy config``."""
