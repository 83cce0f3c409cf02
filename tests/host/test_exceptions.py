"""Errors keep what they know on their way through pickles and copies."""

import copy
import pickle
from typing import Any

import pytest
import trio

import trickle

ERRORS: list[tuple[type[Exception], dict[str, Any]]] = [
    (trickle.ConnectError, {"reason": "refused", "stage": "ssh", "exit_status": 255, "stderr": "no"}),
    (trickle.HostLost, {"stderr": "gone"}),
    (trickle.ProtocolError, {"stderr": "garbage"}),
    (trickle.WorkerDied, {"exit_status": None, "signal": 9}),
    (trickle.NotNeeded, {}),
    (trickle.CallTimeout, {"verdict": "killed", "stage": "running", "remote_stack": "File ..."}),
    (trickle.Unsendable, {"path": "args[0]"}),
    (trickle.UnsafeResult, {}),
]

each_error = pytest.mark.parametrize(("cls", "attributes"), ERRORS, ids=[cls.__name__ for cls, _ in ERRORS])


@each_error
@pytest.mark.parametrize("through", [lambda exc: pickle.loads(pickle.dumps(exc)), copy.copy, copy.deepcopy])
def test_errors_survive_pickle_and_copy(cls: Any, attributes: dict[str, Any], through: Any) -> None:
    error = cls("web1: it went wrong.", host="web1", **attributes)
    error.add_note("a note")

    other = through(error)

    assert type(other) is cls
    assert str(other) == "web1: it went wrong."
    assert vars(other) == vars(error) == {"host": "web1", "__notes__": ["a note"], **attributes}


@each_error
def test_everything_but_the_message_has_a_default(cls: Any, attributes: dict[str, Any]) -> None:
    error = cls("web1: it went wrong.")

    assert error.host == ""
    assert set(attributes) <= set(vars(error))


@each_error
def test_everything_but_the_message_is_named(cls: Any, attributes: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        cls("web1: it went wrong.", "web1")


def test_errors_are_caught_as_what_trio_calls_them() -> None:
    assert issubclass(trickle.HostLost, trio.BrokenResourceError)
    assert issubclass(trickle.ProtocolError, trickle.HostLost)
    assert issubclass(trickle.WorkerDied, trio.BrokenResourceError)
    assert issubclass(trickle.CallTimeout, trio.TooSlowError)
    assert issubclass(trickle.Unsendable, TypeError)


def test_a_remote_error_of_the_programs_own_says_what_it_was_given() -> None:
    error = trickle.RemoteError("by hand")

    assert str(error) == "by hand"
    assert (error.host, error.type_name, error.remote_traceback) == ("", "", "")
