"""Items of a conversation become the turns that models read."""

from __future__ import annotations

import time

from server.api.responses.turns import Turns, instructed
from server.core import Message, ToolCall

ONE, TWO = ToolCall("1", "look", "{}"), ToolCall("2", "look", "{}")
USER = Message("user", "Hi")


def test_what_was_thought_said_and_called_is_one_turn():
    turns = Turns()
    turns.heard(USER)
    turns.thought("Hm")
    turns.thought("m.")
    turns.said("I look.")
    turns.called(ONE)
    turns.called(TWO)
    assert turns.messages == (
        USER,
        Message("assistant", "I look.", (ONE, TWO), reasoning="Hmm."),
    )


def test_what_comes_in_another_order_is_another_turn():
    turns = Turns()
    turns.called(ONE)
    turns.said("So.")
    turns.said("And so.")
    turns.thought("Hm.")
    turns.heard(USER)
    turns.called(TWO)
    assert turns.messages == (
        Message("assistant", "", (ONE,)),
        Message("assistant", "So."),
        Message("assistant", "And so."),
        Message("assistant", "", reasoning="Hm."),
        USER,
        Message("assistant", "", (TWO,)),
    )


def test_an_empty_saying_is_said():
    turns = Turns()
    turns.said("")
    turns.said("So.")
    assert turns.messages == (Message("assistant", ""), Message("assistant", "So."))


def test_a_conversation_goes_on_behind_what_was_before():
    before = (USER, Message("assistant", "So.", (ONE,)))
    turns = Turns(before)
    assert turns.knows("1")
    assert not turns.knows("2")
    turns.called(TWO)
    assert turns.messages == (*before, Message("assistant", "", (TWO,)))
    assert turns.knows("2")


def test_looking_at_it_changes_nothing():
    turns = Turns()
    turns.thought("Hm.")
    assert turns.messages == turns.messages
    turns.said("So.")
    assert turns.messages == (Message("assistant", "So.", reasoning="Hm."),)


def test_systems_at_the_beginning_are_one_and_later_ones_stay():
    one, two = Message("system", "One."), Message("system", "Two.")
    assert instructed(None, [USER, one]) == [USER, one]
    assert instructed("", [one, USER]) == [one, USER]
    assert instructed("Zero.", [USER]) == [Message("system", "Zero."), USER]
    assert instructed("Zero.", [one, two, USER, one]) == [
        Message("system", "Zero.\n\nOne.\n\nTwo."),
        USER,
        one,
    ]
    assert instructed("Zero.", [one]) == [Message("system", "Zero.\n\nOne.")]


def test_a_turn_of_many_calls_takes_no_longer_than_they_do():
    turns = Turns()
    began = time.process_time()
    for number in range(60_000):
        turns.called(ToolCall(str(number), "look", "{}"))
    assert len(turns.messages[0].calls) == 60_000
    assert time.process_time() - began < 2
