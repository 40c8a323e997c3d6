"""The one error of the format, and what no message and no file of ours says."""

import re

# stands for what was left out, also in a record, so that it is known that something was
REDACTED = "***"

# what ends a URI or a value in a text, JSON and HTML too; and a value, which does not end as a sentence goes on
_END = r"\s\"'<>\\"
_VALUE = rf"[^&;#{_END}]{{0,2000}}[^&;#:,.){_END}]"
# lengths are bounded, so that a long text takes time in proportion
_SECRETS = (
    # user and password, which may hold slashes though they should be escaped; no port in front of a path
    re.compile(rf"(?<=://)[^/@:?{_END}]{{1,200}}:(?:[^/{_END}]{{0,800}}@|(?!\d+(?:/|$))[^@{_END}]{{0,800}}@)"),
    # a token alone, as in https://TOKEN@host; in front of other hosts stand containers (abfs://container@account)
    re.compile(rf"(?:(?<=https://)|(?<=http://))[^/@:?{_END}]{{1,800}}@"),
    # signed URIs and other options, by name: X-Amz-Signature, X-Goog-Credential, sig, access_token, secret_key
    re.compile(
        r"(?i)(?<=[?&;])(?:sig|[\w.%-]{0,40}(?:signature|credential|token|secret|passw|pwd|auth|key)[\w.%-]{0,40})="
        + _VALUE
    ),
    # connection strings, headers and settings that clients of stores quote
    re.compile(
        r"(?i)\b(?:AccountKey|SharedAccessKey|(?:aws_)?secret_access_key|aws_session_token|client_secret|password)\s?=\s?"
        + _VALUE
    ),
    re.compile(rf"(?i)\bSharedAccessSignature=[^;{_END}]{{0,2000}}[^;:,.){_END}]"),
    re.compile(rf"(?i)\bAuthorization:\s?(?:\w{{1,20}}\s)?{_VALUE}"),
)


class FormatError(ValueError):
    """A file of a dataset is broken, foreign, unfinished or too new: the message says which, and what to do.

    The message is one line, whatever a library's own message inside it was.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(" ".join(message.splitlines())))


def without_secrets(text: str) -> str:
    """Returns a text, JSON and HTML too, with the passwords, tokens and signatures of its URIs replaced by `REDACTED`; names stay."""
    for secret in _SECRETS:
        text = secret.sub(_redacted, text)
    return text


def is_redacted(uri: str) -> bool:
    """Returns whether something was left out of a URI."""
    return f"://{REDACTED}@" in uri or f"={REDACTED}" in uri


def _redacted(secret: re.Match[str]) -> str:
    found = secret[0]
    if found.endswith("@"):
        return f"{REDACTED}@"
    return re.sub(r"([=:]\s?).*", rf"\g<1>{REDACTED}", found, count=1)
