"""Option declarations, validation and loading."""
