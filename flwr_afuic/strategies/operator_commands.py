"""What the operator asks of a running server through its state directory."""

from __future__ import annotations

from logging import WARNING

from flwr_afuic.errors import AfuicError, ErasureError
from flwr_afuic.state.rows import Command
from flwr_afuic.strategies.admission import Admission
from flwr_afuic.strategies.erasure_desk import ErasureDesk
from flwr_afuic.strategies.merging import Merging


class OperatorCommands:
    """Commands of one run, each answered once.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    admission : Admission
        Files and cancels.
    merging : Merging
        Releases and rejects.

    Attributes
    ----------
    outcomes : list of (str, str)
        Commands done since the last commit, with their outcome.
    """

    def __init__(self, desk: ErasureDesk, admission: Admission, merging: Merging) -> None:
        self._desk = desk
        self._admission = admission
        self._merging = merging
        self.outcomes: list[tuple[str, str]] = []

    def take_outcomes(self) -> list[tuple[str, str]]:
        """Return what is to be written with the next commit, once."""
        outcomes, self.outcomes = self.outcomes, []
        return outcomes

    def take(self) -> None:
        """Carry out what the operator asked for through the state directory."""
        if self._desk.run.durability is None:
            return
        for command in self._desk.run.durability.store.pending_commands():
            try:
                outcome = self._obey(command)
            except AfuicError as error:
                outcome = f"refused: {error}"
                self._desk.run.note("refused-command", command.site, outcome, level=WARNING)
            if outcome:
                self.outcomes.append((command.id, outcome))
                body = {"id": command.id, "command": command.kind, "outcome": outcome}
                self._desk.book.say("command", {**body, "request": command.request_id})

    def _obey(self, command: Command) -> str:
        if command.kind == "erase":
            return self._obey_erasure(command)
        record = self._desk.book.get(command.request_id)
        if command.kind == "cancel":
            self._admission.cancel_for(record.request_id)
        elif command.kind == "release":
            self._merging.release(record)
        elif command.kind == "reject":
            self._merging.reject(record)
        else:
            raise ErasureError(f"unknown command {command.kind!r}; upgrade the server")
        return f"done: {record.state}"

    def _obey_erasure(self, command: Command) -> str:
        run = self._desk.run
        methods = self._desk.settings.methods
        if command.method not in ("", *methods):
            raise ErasureError(
                f"method {command.method!r} is not what this server runs; it runs "
                f"{', '.join(methods)}"
            )
        known = self._desk.settings.known_sites()
        if (
            run.roster.of_site(command.site) is None
            and command.site not in known
            and not run.has_merged
        ):
            return ""  # the sites may still be on their way: looked at again at the next poll
        self._admission.file_for(
            command.site,
            command.reason or "site-left",
            request_id=command.request_id,
            method=command.method,
            known=known,
        )
        return "filed"
