"""String formats of OpenAPI that the real server checks; formats it does not know pass."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable
from datetime import date, datetime
from urllib.parse import urlsplit

__all__ = ["has_format"]

_DATE_TIME = re.compile(r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$")
_UUID = re.compile(r"^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$", re.IGNORECASE)
_HOST = re.compile(
    r"^([a-zA-Z0-9\u00a1-\uffff](-*[a-zA-Z0-9\u00a1-\uffff]+)*)(\.[a-zA-Z0-9\u00a1-\uffff](-*[a-zA-Z0-9\u00a1-\uffff]+)*)*\.?$"
)
_MAIL = re.compile(r"^[^@\s]+@[^@\s]+$")
_DURATION = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))*$|^0$")
_MAC = re.compile(r"^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$")


def _works(function: Callable[[str], object]) -> Callable[[str], bool]:
    def check(value: str) -> bool:
        try:
            function(value)
        except ValueError:
            return False
        return True

    return check


def _is_uri(value: str) -> bool:
    parts = urlsplit(value)
    return bool(parts.scheme or value.startswith("/"))


_CHECKS: dict[str, Callable[[str], bool]] = {
    "date-time": lambda value: bool(_DATE_TIME.match(value)) and _works(datetime.fromisoformat)(value.upper()),
    "date": _works(date.fromisoformat),
    "uuid": lambda value: bool(_UUID.match(value)),
    "ipv4": _works(ipaddress.IPv4Address),
    "ipv6": _works(ipaddress.IPv6Address),
    "cidr": _works(lambda value: ipaddress.ip_network(value, strict=False)),
    "hostname": lambda value: len(value) < 256 and bool(_HOST.match(value)),
    "email": lambda value: bool(_MAIL.match(value)),
    "uri": _is_uri,
    "byte": _works(lambda value: base64.b64decode(value, validate=True)),
    "duration": lambda value: bool(_DURATION.match(value)),
    "mac": lambda value: bool(_MAC.match(value)),
}


def has_format(name: str, value: str) -> bool:
    """Whether *value* has the format *name*; an unknown format is no promise."""
    check = _CHECKS.get(name)
    return True if check is None else check(value)
