"""The two ways in which a transaction says no."""

from __future__ import annotations


class RefusedError(Exception):
    """Nothing was touched; the sentence says what is wrong and what to do."""


class FailedError(Exception):
    """A step did not do what it should; the host has to be brought back."""
