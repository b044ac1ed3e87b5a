"""Who is asking, and may they: authentication and access policy."""
