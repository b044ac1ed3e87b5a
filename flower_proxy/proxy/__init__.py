"""Who speaks, and where are we: from a request's peer, headers and path to its public location."""
