"""Whether a certificate is valid, and if not, exactly what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from flwr_afuic.erasure.certificate.checks import problems_of
from flwr_afuic.erasure.certificate.shape import KEY_ID
from flwr_afuic.erasure.keys import Rotation, follows, key_id, verify

_SIGNATURE = re.compile(r"[0-9a-f]{128}\n?")
_PUBLIC = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes
    ----------
    valid : bool
        The signature is that of the key over these bytes, and the document is a certificate
        that does not contradict itself.
    problems : list of str
        Everything that is wrong, one a line; empty if valid.
    document : dict or None
        The document as read, of a valid or an invalid certificate; None if it is no JSON object.
    """

    valid: bool
    problems: list[str]
    document: dict[str, Any] | None


def verify_certificate(
    document: bytes,
    signature: str | bytes,
    public_hex: str,
    *,
    rotations: Sequence[Rotation] = (),
) -> Verdict:
    """Say whether a certificate is valid.

    Parameters
    ----------
    document : bytes
        The exact bytes of the ``.json`` file.
    signature : str or bytes
        The content of the ``.json.sig`` file: 128 lowercase hexadecimal digits, and at most a
        newline.
    public_hex : str
        The server's public key that the reader trusts: 64 lowercase hexadecimal digits.
    rotations : sequence of Rotation
        The server's key rotations. A later key is trusted if a chain of them leads to it from
        ``public_hex``.

    Returns
    -------
    Verdict
        It never raises for what is wrong with a certificate, a signature or a key.
    """
    if not _PUBLIC.fullmatch(public_hex):
        return Verdict(False, ["the public key is not 64 lowercase hexadecimal digits"], None)
    text = signature if isinstance(signature, str) else signature.decode("ascii", "replace")
    content, unreadable = _read(document)
    named = content.get("signed_by") if content is not None else None
    key = _trusted(named, public_hex, rotations)
    problems = [*_about_key(named, key), *_about_signature(document, text, key)]
    problems += [unreadable] if content is None else problems_of(content)
    return Verdict(not problems, problems, content)


def _trusted(named: object, public_hex: str, rotations: Sequence[Rotation]) -> str:
    """Return the key that must have signed: the pinned one, or one that followed it."""
    for rotation in rotations:
        new = rotation.new_key
        if key_id(new) == named and follows(public_hex, new, list(rotations)):
            return new
    return public_hex


def _about_key(named: object, key: str) -> list[str]:
    own = key_id(key)
    if not KEY_ID.test(named) or named == own:
        return []
    return [
        f"it names the key {named} as its signer, but the key given is {own}; if the server's key "
        "was changed, give the key of that time, or the list of rotations"
    ]


def _about_signature(document: bytes, signature: str, key: str) -> list[str]:
    if not _SIGNATURE.fullmatch(signature):
        return [f"the signature is malformed: {_malformed(signature)}"]
    if verify(key, document, signature.removesuffix("\n")):
        return []
    return [
        f"the signature does not match these bytes under key {key_id(key)}: the document or the "
        "signature was changed, or another key signed it"
    ]


def _malformed(signature: str) -> str:
    """Say what keeps a text from being 128 lowercase hexadecimal digits."""
    digits = signature.removesuffix("\n")
    if len(digits) != 128:
        return f"it has {len(digits)} characters; it must have 128"
    at = next(i for i, c in enumerate(digits) if c not in "0123456789abcdef")
    case = "an uppercase letter" if digits[at] in "ABCDEF" else "no hexadecimal digit"
    return f"its character {at + 1}, {digits[at]!r}, is {case}; it must be 0-9 or a-f"


def _read(document: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return the JSON object in these bytes, or None and what is wrong."""
    try:
        content = json.loads(
            document.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant
        )
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        return None, f"the document is no text in UTF-8: {error.reason}"
    except (ValueError, RecursionError) as error:
        return None, f"the document is no JSON: {error}"
    if not isinstance(content, dict):
        return None, f"the document is a JSON {type(content).__name__}; it must be an object"
    return content, ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that occurs twice: readers would differ about which one counts."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice in one object")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
