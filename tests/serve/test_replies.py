"""What strangers are told when something goes wrong inside."""

from __future__ import annotations

import json
import logging

import pytest

from mate_edge.errors import BundleError, EngineError, ImageError, UsageError
from mate_edge.runtime.serve.reply import Refusal, refuse


@pytest.mark.parametrize(
    "error",
    [
        EngineError("segment 1 of /srv/secret.mate failed: out of memory"),
        BundleError("/srv/secret.mate/golden.npz was altered"),
        ZeroDivisionError("/srv/secret.py"),
        KeyError("token"),
    ],
)
def test_what_failed_inside_is_in_the_log_and_not_in_the_answer(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = refuse(error)
    assert answer.status == 500
    told = json.loads(answer.body)["error"]
    assert told == "the server failed at this request: its log says why"
    assert str(error) in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("unknown policy"), 400),
        (ImageError("the image is empty"), 400),
        (Refusal(413, "too large"), 413),
    ],
)
def test_what_the_client_did_is_told(error: Exception, status: int) -> None:
    answer = refuse(error)
    assert answer.status == status
    assert json.loads(answer.body) == {"error": str(error)}
