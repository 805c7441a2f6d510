"""The companion of the gateway: takes over its spool of usage, and serves what needs a memory."""

__version__ = "1.0.0"
