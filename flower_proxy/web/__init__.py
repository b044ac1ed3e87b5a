"""The HTTP server: routing, handlers, and the mixins of Flower's handlers."""
