"""From events and the broker's answers to the metrics that Prometheus scrapes."""
