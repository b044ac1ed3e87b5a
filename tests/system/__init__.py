"""Tests that need a whole machine: ``make test-system``, as root."""
