"""Simulators behind one contract: pure MJX suites and host adapters."""
