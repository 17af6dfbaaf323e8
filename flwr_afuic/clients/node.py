"""What a node's configuration says of its site: the inbox, the server's key, privacy."""

from __future__ import annotations

import tempfile
from logging import WARNING
from pathlib import Path

from flwr.app import ConfigRecord, Context
from flwr.supercore import log

from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.erasure.keys import load_public
from flwr_afuic.errors import ConfigError
from flwr_afuic.unlearning.privacy import DeltaPrivacy

_STATE = "afuic.site"

INBOX = "inbox"
SERVER_KEY = "server-key"
CLIP = "erasure-clip"
NOISE = "erasure-noise"
SMALL = "erasure-small"


def open_inbox(context: Context) -> SiteInbox:
    """Open the inbox a node's configuration names, else a temporary one with a warning.

    The temporary one lies in a private folder of its own, remembered in the node's state:
    neither another run nor another user of the machine can leave tombstones in it.

    ``node_config`` entries: ``inbox``, the path of the hospital's inbox, and ``server-key``,
    the path of the server's public key (PEM), which the operator handed over: with it the site
    believes no other server, without it the first one it meets.
    """
    path = context.node_config.get(INBOX)
    if path is None:
        remembered = context.state.config_records.get(_STATE)
        if remembered is None:
            folder = Path(tempfile.mkdtemp(prefix="flwr-afuic-"))
            remembered = ConfigRecord({INBOX: str(folder / "inbox.sqlite")})
            context.state[_STATE] = remembered
            text = "no 'inbox' in node_config; erasures of this site are kept in %s only"
            log(WARNING, text, remembered[INBOX])
        path = str(remembered[INBOX])
    inbox = SiteInbox(str(path))
    key = context.node_config.get(SERVER_KEY)
    if key is not None:
        inbox.server.pin(load_public(str(key)))
    return inbox


def site_privacy(context: Context) -> DeltaPrivacy:
    """Read how strongly the site protects its deltas, whatever the server asks for.

    ``node_config`` entries, none of which is needed: ``erasure-clip`` (greatest norm of a
    delta), ``erasure-noise`` (norm of the noise as a multiple of that clip, which it needs),
    ``erasure-small`` (requests of fewer samples are protected in any case; 0 leaves that to
    the server).

    Raises
    ------
    ConfigError
        If a value is no number, or out of its range.
    """
    default = DeltaPrivacy()
    clip = _number(context, CLIP)
    noise = _number(context, NOISE)
    small = _number(context, SMALL)
    if small is not None and small != int(small):
        raise ConfigError(f"{SMALL} in node_config is {small}; it must be a number of samples")
    return DeltaPrivacy(
        clip=clip,
        noise=default.noise if noise is None else noise,
        small=default.small if small is None else int(small),
    )


def _number(context: Context, name: str) -> float | None:
    value = context.node_config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e12:
        raise ConfigError(f"{name} in node_config is {value!r}; it must be a number")
    return float(value)
