"""Releases: immutable trees on the host, and the transaction that makes one of them live.

A release is a value. `current` points at one, everything that systemd runs follows from it, and deploy,
rollback, return after a failure and recovery after a crash are one operation: make the host run that release,
and prove it.
"""
