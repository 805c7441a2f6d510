"""Certificates that the tests sign themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

from citadel_gateway.config import Tls


def made(folder: Path, name: str, days: int = 30, address: str = "127.0.0.1") -> Tls:
    """A pair that the local openssl signs for itself; it has ended if `days` is negative."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}"]
    if days < 0:
        words += ["-not_before", "20200101000000Z", "-not_after", "20200201000000Z"]
    else:
        words += ["-days", str(days)]
    done = subprocess.run([*words, "-keyout", key, "-out", certificate], capture_output=True, text=True, check=False)
    if done.returncode and days < 0:
        _sign_in_the_past(folder, certificate, key)
    return Tls(certificate=str(certificate), key=str(key))


def _sign_in_the_past(folder: Path, certificate: Path, key: Path) -> None:
    """For an openssl whose `req` knows no dates."""
    (folder / "index").write_text("")
    (folder / "serial").write_text("01\n")
    (folder / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index\nserial={folder}/serial\nnew_certs_dir={folder}\n"
        "default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n[req]\ndistinguished_name=n\n[n]\n"
    )
    request = folder / "request.pem"
    config = ["-config", str(folder / "ca.cnf")]
    new = ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=old", "-keyout", str(key)]
    subprocess.run([*new, "-out", str(request), *config], capture_output=True, check=True)
    old = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"]
    sign = ["openssl", "ca", "-batch", "-selfsign", "-keyfile", str(key), "-in", str(request), *old]
    subprocess.run([*sign, "-out", str(certificate), "-notext", *config], capture_output=True, check=True)
