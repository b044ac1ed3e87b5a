"""History of events in slots of time, for the Monitor page."""
