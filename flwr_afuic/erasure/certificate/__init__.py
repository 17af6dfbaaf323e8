"""The certificate of an erasure: a JSON document, a detached signature, a readable page.

The signature is Ed25519 over the exact bytes of the file, in lowercase hexadecimal digits, so
that any changed byte shows. The page is made from the document and is not signed.
"""

from flwr_afuic.erasure.certificate.build import build_certificate, reissue, to_bytes
from flwr_afuic.erasure.certificate.checks import problems_of
from flwr_afuic.erasure.certificate.page import render_certificate
from flwr_afuic.erasure.certificate.verdict import Verdict, verify_certificate

__all__ = [
    "Verdict",
    "build_certificate",
    "problems_of",
    "reissue",
    "render_certificate",
    "to_bytes",
    "verify_certificate",
]
