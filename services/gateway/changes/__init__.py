"""How policy processes over one database learn of one another's changes."""
