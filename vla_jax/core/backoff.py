"""Waiting between attempts to reach another machine."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Backoff:
    """How often a lost server is tried again: after `first` seconds, then `factor` times as long, up to `longest`; each
    wait is drawn from its upper half, so that a fleet does not come back in one moment."""

    first: float = 0.1
    factor: float = 2.0
    longest: float = 5.0
    give_up: float = 30.0  # seconds without a connection

    def wait(self, attempt: int, draw: float) -> float:
        """Seconds before attempt 1, 2, ...; `draw` in [0, 1)."""
        return min(self.longest, self.first * self.factor ** (attempt - 1)) * (0.5 + 0.5 * draw)
