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
        ("postgresql://ann:sw0rd%2Ffish%40x@db/m", "postgresql://***@db/m"),
        ("postgresql://db/m?sslmode=require&sslpassword=sw0rd", "postgresql://db/m?sslmode=require&sslpassword=***"),
        ("http://h/?password=sw0rd%26fish&a=1", "http://h/?password=***&a=1"),
        ("https://0123456789abcdef@h/x", "https://***@h/x"),
        (
            "mssql+pyodbc:///?odbc_connect=UID%3Dann%3BPWD%3Dsw0rd%3Ba",
            "mssql+pyodbc:///?odbc_connect=UID%3Dann%3BPWD%3D***%3Ba",
        ),
        ("host=db password='sw0rd fish' user=ann", "host=db password=*** user=ann"),
        ('Password = "sw0rd;fish";Server=db', "Password = ***;Server=db"),
        ("AccountKey=c3cwcmQ=;AccountName=a", "AccountKey=***;AccountName=a"),
        ("{'Authorization': 'Basic YWJjZGVmZ2hpamts'}", "{'Authorization': 'Basic ***'}"),
        ("sk-proj-abcdefghij_klmnopqrst and dapi0123456789abcdef0123456789abcdef", "*** and ***"),
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


# of a password with signs in it: percent-encoded by the user, as each of these libraries writes it
SIGNS = "sw0rd@fi/sh x:ü'\\"
ENCODED = "sw0rd%40fi%2fsh%20x%3a%C3%BC%27%5C"


@pytest.mark.parametrize(
    "spelled",
    [
        ENCODED,
        ENCODED.upper()
        .replace("SW", "sw")
        .replace("RD", "rd")
        .replace("FI", "fi")
        .replace("SH", "sh")
        .replace("X%3A", "x%3A"),
        SIGNS,
        "sw0rd%40fi%2Fsh+x%3A%C3%BC%27%5C",  # quote_plus
        "sw0rd%40fi/sh%20x%3A%C3%BC%27%5C",  # quote
        "sw0rd%40fi%2Fsh x%3Aü'\\",  # SQLAlchemy's URL
        "sw0rd%2540fi%252Fsh%2520x%253A%25C3%25BC%2527%255C",  # within the query of another address
        "sw0rd@fi/sh x:\\xfc\\'\\\\",  # in a repr
        "sw0rd@fi/sh x:\\u00fc'\\\\",  # in JSON
        "sw0rd@fi/sh x:ü&#x27;\\",  # on a page
        "YW5uOnN3MHJkQGZpL3NoIHg6w7wnXA==",  # in a header: base64 of ann:PASSWORD
    ],
)
@pytest.mark.parametrize("address", [f"postgresql://ann:{ENCODED}@db/m", f"http://ann:{ENCODED}@host:5000"])
def test_a_password_is_found_in_every_spelling(address, spelled, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert redact(f"a{spelled}b") == "a***b"


@pytest.mark.parametrize(
    ("address", "quoted"),
    [
        ("postgresql://ann:p@ssw0rd@db/m", "failed to resolve host 'ssw0rd@db'"),
        ("http://ann:pa/ssw0rd@host", "Max retries exceeded with url: /ssw0rd@host/api"),
        ("http://ann:pa#ssw0rd@host", "no such part: ssw0rd@host"),
        ("postgresql:/ann:ssw0rd@db/m", "Could not parse 'postgresql:/ann:ssw0rd@db/m'"),
        ("ann:ssw0rd@db/m", "unsupported URI 'ann:ssw0rd@db/m'"),
        ("postgresql://ann@db/m?sslpassword=ssw0rd%26&a=1", "{'sslpassword': 'ssw0rd&'}"),
        ("https://ssw0rd0123456789@host/x", "401 for ssw0rd0123456789"),
        ("https://ssw0rd0123456789:@host/x", "401 for ssw0rd0123456789"),
        ("http://ann:other1@a,http://ann:ssw0rd@b", "401 for ssw0rd"),
    ],
)
def test_a_part_of_an_address_that_a_library_takes_for_another_part_is_taken_out(address, quoted, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert "ssw0rd" not in redact(quoted) and "***" in redact(quoted)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("http://mlflow.example.org:5000/team", "mlflow.example.org"),
        ("postgresql://mlflow_user@database/m", "mlflow_user at database"),
        ("sqlite:////home/a:somebody@c/mlflow.db", "somebody"),
    ],
)
def test_hosts_and_users_of_an_address_are_not_secret(address, text, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert redact(text) == text


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
        ("\nx", "'\nx"),
        ("＝1", "'＝1"),  # of double width, as a spreadsheet in Japanese reads it
        ("－x", "'－x"),
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


def test_a_token_of_the_environment_is_found_in_a_command_and_a_word_is_not(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-no-known-form-0123")
    monkeypatch.setenv("DB_PASSWORD", "postgres")
    monkeypatch.setenv("TEAM_KEY", "a-team-of-long-names")
    assert names_credential("+backbone.options.x=of-no-known-form-0123")
    assert names_credential("x=of%2Dno-known-form-0123")
    assert not names_credential("outputs=/home/postgres/a-team-of-long-names")


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2Jb\rc\u202ed\x07é") == "a\\x1b[2Jb\\rc\\u202ed\\x07é"
    assert in_figure("_x$y") == " _x$y"
