"""Where the scores of a verification come from: messages of their own, or along with training."""

from __future__ import annotations

from statistics import median

import pytest

from flwr_afuic import wire
from flwr_afuic.clients.conversation import Conversation
from flwr_afuic.errors import DataError, WireError
from flwr_afuic.unlearning.level import ForgetScore
from tests.erasure_helpers import FORGOTTEN, REMEMBERED, ScriptedClient, federate
from tests.strategies.lives import LIFE, file_at, three


def of_site(outcome, kind, name="site-0"):
    return [s for s in outcome.strategy.journal.spans if s.site == name and s.kind == kind]


def between(outcome, first, last):
    begin, end = (outcome.events(kind)[0].time for kind in (first, last))
    return [s for s in of_site(outcome, "train") if begin <= s.start < end]


@pytest.mark.parametrize("dialect", ["numpy", "message"])
def test_a_site_that_keeps_data_verifies_along_with_its_training(dialect):
    sites = three()
    outcome = federate(sites, at=file_at(4, sites[0], ["patient-0-1"]), rounds=30, dialect=dialect)
    assert outcome.states() == LIFE
    assert sites[0].verified >= outcome.strategy.verify_rounds
    assert not of_site(outcome, "verify")
    # A training for each verified round: none of its turns is lost.
    assert len(between(outcome, "verifying", "completed")) >= outcome.strategy.verify_rounds
    assert outcome.record.scores[-1][1] == FORGOTTEN


def test_it_trains_again_as_soon_as_its_delta_is_back():
    sites = three()
    outcome = federate(sites, at=file_at(4, sites[0], ["patient-0-1"]), rounds=20)
    back = outcome.events("unlearned")[0].time
    assert min(s.start for s in of_site(outcome, "train") if s.start >= back) == back
    assert all("patient-0-1" not in trained for trained in sites[0].trained_on[5:])


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_it_makes_up_for_the_trainings_it_missed(monkeypatch, mode):
    train, efforts = ScriptedClient.train, []

    def noted(client, parameters, config):
        if client.script.number == 0:
            efforts.append(config.get(wire.EFFORT, 1.0))
        return train(client, parameters, config)

    monkeypatch.setattr(ScriptedClient, "train", noted)
    sites = three()
    outcome = federate(sites, at=file_at(4, sites[0], ["patient-0-1"]), rounds=30, mode=mode)
    assert outcome.states() == LIFE
    if mode == "sync":  # all would wait for it
        assert set(efforts) == {1.0}
        return
    asked, back = (outcome.events(kind)[0].time for kind in ("request", "unlearned"))
    usual = median(s.end - s.start for s in of_site(outcome, "train") if s.end <= asked)
    assert efforts.count(wire.MOST_EFFORT) == 1 + int((back - asked) / usual)
    assert efforts[-1] == 1.0


def test_a_site_that_left_verifies_in_messages_of_their_own():
    sites = three()
    outcome = federate(sites, at=file_at(4, sites[0]), rounds=30)
    assert outcome.states() == LIFE
    assert len(of_site(outcome, "verify")) == outcome.strategy.verify_rounds


def test_a_site_that_has_erased_all_it_held_is_asked_by_itself():
    sites = three()
    outcome = federate(sites, at=file_at(4, sites[0], sites[0].ids), rounds=30)
    assert outcome.states() == LIFE
    assert of_site(outcome, "verify")


def test_a_client_that_cannot_score_while_it_trains_is_asked_by_itself(monkeypatch):
    score, asked = ScriptedClient.score, []

    def fails_in_training(client, parameters, sample_ids):
        if client.training:
            asked.append(sample_ids)
            raise DataError("patient-0-1 is on another disk")
        return score(client, parameters, sample_ids)

    fit = ScriptedClient.fit

    def marked(client, parameters, config):
        client.training = True
        return fit(client, parameters, config)

    monkeypatch.setattr(ScriptedClient, "training", False, raising=False)
    monkeypatch.setattr(ScriptedClient, "fit", marked)
    monkeypatch.setattr(ScriptedClient, "score", fails_in_training)
    sites = three()
    outcome = federate(sites, at=file_at(4, sites[0], ["patient-0-1"]), rounds=30)
    assert outcome.states() == LIFE
    assert len(asked) == 1
    assert of_site(outcome, "verify")
    assert b"another disk" not in outcome.grid.everything()


def test_a_client_of_an_earlier_version_is_asked_by_itself(monkeypatch):
    say = Conversation.say

    def as_before(conversation, config):
        return {key: word for key, word in say(conversation, config).items() if key != wire.SCORES}

    monkeypatch.setattr(Conversation, "say", as_before)
    sites = three()
    outcome = federate(sites, at=file_at(4, sites[0], ["patient-0-1"]), rounds=30)
    assert outcome.states() == LIFE
    assert len(of_site(outcome, "verify")) >= outcome.strategy.verify_rounds


def test_a_site_that_cannot_train_any_more_is_asked_by_itself():
    sites = three()

    def breaks():
        if len(sites[0].unlearned):
            raise RuntimeError("no memory")

    sites[0].on_train = breaks
    outcome = federate(sites, at=file_at(4, sites[0], ["patient-0-1"]), rounds=60)
    assert outcome.states() == LIFE
    assert of_site(outcome, "verify")


def test_what_resurfaces_is_unlearned_again_and_no_training_on_kept_data_is_lost():
    sites, scores = three(), iter([FORGOTTEN, REMEMBERED])
    sites[0].scores = lambda: next(scores, FORGOTTEN)
    outcome = federate(sites, at=file_at(4, sites[0], ["patient-0-1"]), rounds=40)
    assert [s for s in outcome.states() if s == "merged"] == ["merged", "merged"]
    again = [event.time for event in outcome.events("received")]
    refused = [event for event in outcome.events("update-refused") if event.time >= again[-1]]
    assert outcome.states()[-1] == "completed"
    assert not refused


def test_scores_cross_the_wire_as_they_are():
    scores = {"a": ForgetScore(float("inf"), 0.5, 3), "b": ForgetScore(1.25, 0.1, 7, "mean Dice")}
    assert wire.read_scored(wire.encode_scored(scores)) == scores


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"a": 1}',
        '{"a": {"loss": 1, "accuracy": 0.5}}',
        '{"a": {"loss": -1, "accuracy": 0.5, "count": 3}}',
        "{" + ", ".join(f'"{i}": {{"loss": 1, "accuracy": 0, "count": 1}}' for i in range(9)) + "}",
        7,
    ],
)
def test_malformed_scores_are_refused(text):
    with pytest.raises(WireError):
        wire.read_scored(text)
