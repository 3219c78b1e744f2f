"""Text for each medium: no credential, no control character, no formula."""

import pytest

from foura.errors import UserError, first_line, traceback_of
from foura.escape import cell, in_figure, names_credential, printable, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:hunter22@host:5000/api", "http://***@host:5000/api"),
        ("postgresql+psycopg://ann:hunter22@db/mlflow", "postgresql+psycopg://***@db/mlflow"),
        ("https://ghp_abc@github.com/x/y.git", "https://***@github.com/x/y.git"),
        ("https://x-access-token:abc@github.com/x", "https://***@github.com/x"),
        ("at postgresql://a:p@ss/w@db:5432/m (refused)", "at postgresql://***@db:5432/m (refused)"),
        ("http://a:b@one and https://c:d@two", "http://***@one and https://***@two"),
        ("'http://a:b@one'", "'http://***@one'"),
        ("redis://:secret@host/0", "redis://***@host/0"),
        (
            "https://b.s3.amazonaws.com/x?X-Amz-Signature=ab12&a=1",
            "https://b.s3.amazonaws.com/x?X-Amz-Signature=***&a=1",
        ),
        ("https://h/x?a=1&access_token=ab12#f", "https://h/x?a=1&access_token=***"),
        ("host=db user=ann password=hunter22 dbname=m", "host=db user=ann password=*** dbname=m"),
        ("Authorization: Bearer abcdefghijklmno1", "Authorization: Bearer ***"),
        ("the token hf_abcdefghijklmnopqrst is wrong", "the token *** is wrong"),
        (
            "basic understanding-and-knowledge of sk-learn-classifiers",
            "basic understanding-and-knowledge of sk-learn-classifiers",
        ),
        ("hf_internal_testing_tiny_random_llama", "hf_internal_testing_tiny_random_llama"),
        ("sqlite:////home/a:b@c/outputs/mlflow.db", "sqlite:////home/a:b@c/outputs/mlflow.db"),
        ("git@github.com:x/y.git and a@b.c", "git@github.com:x/y.git and a@b.c"),
        (
            "adapter.gate_scope=token evaluation.passage_tokens=16",
            "adapter.gate_scope=token evaluation.passage_tokens=16",
        ),
        ("http://127.0.0.1:5000/#/experiments/1/runs/2", "http://127.0.0.1:5000/#/experiments/1/runs/2"),
    ],
)
def test_credentials_are_taken_out_of_any_text(text, shown) -> None:
    assert redact(text) == shown
    assert names_credential(text) == (text != shown)
    assert redact(shown) == shown


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "swordfish", "swordfish"),
        ("MLFLOW_TRACKING_PASSWORD", "swordfish", "swordfish"),
        ("AWS_SECRET_ACCESS_KEY", "/sword+fish", "/sword+fish"),
        ("MLFLOW_TRACKING_URI", "http://ann:sword%2Ffish@host", "sword/fish"),
        ("MLFLOW_TRACKING_URI", "http://ann:sword%2Ffish@host", "sword%2Ffish"),
    ],
)
def test_what_the_environment_holds_is_taken_out_wherever_it_stands(name, value, secret, monkeypatch) -> None:
    monkeypatch.setenv(name, value)
    error = ValueError(f"401 for {secret}\nsecond line")
    assert redact(f"x{secret}y") == "x***y"
    assert str(UserError(f"no: {error}")) == "no: 401 for *** second line"
    assert first_line(error) == "401 for ***"
    assert secret not in traceback_of(error) and "ValueError: 401 for ***" in traceback_of(error)


def test_words_are_not_taken_for_credentials(monkeypatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "test")
    assert redact("test loss 0.5") == "test loss 0.5"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "'\tx"),
        ("-1e-3", "-1e-3"),
        ("+4", "+4"),
        ("lora", "lora"),
        ("a=b", "a=b"),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_a_spreadsheet_computes_no_cell(value, written) -> None:
    assert cell(value) == written


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2Jb\rc\u202ed\x07é") == "a\\x1b[2Jb\\rc\\u202ed\\x07é"
    assert in_figure("_x$y") == " _x$y"
