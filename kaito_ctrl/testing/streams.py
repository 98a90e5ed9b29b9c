"""What a fault does to the lines of a watch."""

from __future__ import annotations

from kaito_ctrl.runtime.codec import decode_header, decode_watch_line, encode_json

__all__ = ["expired_event", "merged"]


def expired_event() -> bytes:
    """The event by which a server says that it no longer knows what has happened since."""
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "too old resource version",
        "reason": "Expired",
        "code": 410,
    }
    return encode_json({"type": "ERROR", "object": status}) + b"\n"


def merged(chunk: bytes) -> bytes:
    """Of several events of one object only the last: an addition stays one, and whoever is deleted and made again
    has changed."""
    last: dict[tuple[str, str], tuple[str, bytes]] = {}
    others: list[bytes] = []
    for line in chunk.splitlines():
        event = decode_watch_line(line)
        if event.type not in {"ADDED", "MODIFIED", "DELETED"}:
            others.append(line)
            continue
        header = decode_header(event.object)
        key = (header.namespace or "", header.name)
        before = last.pop(key, None)
        kind = event.type
        if before is not None and kind != "DELETED":
            kind = "ADDED" if before[0] == "ADDED" else "MODIFIED"
        last[key] = (kind, bytes(event.object))
    lines = [b'{"type":"%b","object":%b}' % (kind.encode(), body) for kind, body in last.values()]
    return b"".join(line + b"\n" for line in [*lines, *others])
