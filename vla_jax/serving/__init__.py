"""A trained policy as a network service, and what a robot needs on its side of the wire."""
