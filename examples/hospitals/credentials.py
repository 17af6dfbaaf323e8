"""Certificates and keys of a federation, made in Python: an authority, a server's, the nodes'.

Nothing here belongs to one machine: the authority is made where it is kept, a node's key at the
hospital, so that no private key ever travels.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
_SKEW = datetime.timedelta(minutes=10)  # clocks of two machines differ


def make_authority(folder: Path, *, days: int = AUTHORITY_DAYS) -> Path:
    """Make ``ca.pem``, which every machine gets, and ``ca.key``, which stays; once.

    Returns
    -------
    Path
        Of ``ca.pem``.
    """
    certificate_file, key_file = folder / "ca.pem", folder / "ca.key"
    if certificate_file.exists() and key_file.exists():
        return certificate_file
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital federation authority")])
    signs_only = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs_only, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_key(key_file, key)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate_file


def make_server_certificate(
    authority: Path, folder: Path, hosts: Sequence[str], *, days: int = SERVER_DAYS
) -> Path:
    """Make ``server.pem`` and ``server.key`` for a SuperLink, signed by the authority.

    Parameters
    ----------
    authority : Path
        Folder with ``ca.pem`` and ``ca.key``.
    folder : Path
        Where the certificate goes. Both files are replaced: this is also how it is renewed.
    hosts : sequence of str
        Every name or address by which it is reached. ``localhost`` and ``127.0.0.1`` are added:
        the SuperLink's own helper process connects there.
    days : int
        How long it is valid.
    """
    ca_key = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{authority / 'ca.key'} is no elliptic-curve key")
    ca = x509.load_pem_x509_certificate((authority / "ca.pem").read_bytes())
    key = ec.generate_private_key(ec.SECP384R1())
    names = dict.fromkeys([*hosts, "localhost", "127.0.0.1"])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, next(iter(names)))])
    certificate = (
        _builder(name, ca.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA384())
    )
    _write_key(folder / "server.key", key)
    _write(folder / "server.pem", certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "server.pem"


def make_node_key(path: Path) -> Path:
    """Make a SuperNode's key ``path`` and ``path.pub`` (P-384, OpenSSH format); once.

    Returns
    -------
    Path
        Of the public key, which the operator registers.
    """
    public_file = path.with_name(path.name + ".pub")
    if path.exists() and public_file.exists():
        return public_file
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write(path, private, mode=0o600)
    _write(public_file, public + b"\n")
    return public_file


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, pem, mode=0o600)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write under a temporary name first: a service that starts meanwhile reads old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    beside.replace(path)
