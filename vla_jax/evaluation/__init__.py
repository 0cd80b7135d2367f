"""Rollouts, statistics, tables and reports."""
