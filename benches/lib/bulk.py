"""The sender of NDJSON streams."""

import dataclasses
import http.client
import itertools
import json
import time
from urllib.parse import urlsplit

from .processes import BenchError

LINES_A_CHUNK = 500
# With the end of the line.
CUSTOMER_LINE_BYTES = 1_000


@dataclasses.dataclass
class Pushed:
    """What the service said at the end of a stream."""

    summary: dict
    seconds: float

    @property
    def rows(self):
        return sum(self.summary.values())


def push(service, store, resource, body):
    """Sends one stream, bytes or an iterable of chunks, and waits for its last line."""
    connection = http.client.HTTPConnection(urlsplit(service.base_url).netloc, timeout=300)
    path = f"/api/v1/stores/{store}/{resource}/bulk?results=failed"
    headers = {
        "Authorization": f"Bearer {service.database.key}",
        "Content-Type": "application/x-ndjson",
    }
    if not isinstance(body, bytes):
        headers["Transfer-Encoding"] = "chunked"
    began = time.monotonic()
    connection.request("POST", path, body, headers, encode_chunked=not isinstance(body, bytes))
    response = connection.getresponse()
    lines = response.read().decode().splitlines()
    seconds = time.monotonic() - began
    connection.close()
    last = json.loads(lines[-1]) if lines else {}
    if response.status != 200 or not last.get("complete") or last["summary"]["failed"]:
        raise BenchError(f"a stream failed with {response.status}: {lines[-3:]}")
    return Pushed(last["summary"], seconds)


def chunks(lines):
    """Lines as chunks of bytes, made while they are sent."""
    lines = iter(lines)
    while group := list(itertools.islice(lines, LINES_A_CHUNK)):
        yield ("\n".join(group) + "\n").encode()


def customers(count):
    """Lines with one new customer each, all of the same length."""
    for n in range(1, count + 1):
        line = (
            f'{{"external_id":"s-{n}","phone":"+336{n:08}","first_name":"Camille","tags":["web"],'
            f'"metadata":{{"note":"'
        )
        yield line.ljust(CUSTOMER_LINE_BYTES - len('"}}\n'), "x") + '"}}'
