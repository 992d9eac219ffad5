"""What is in the orders that every side writes: one template, shared with the load generator.

`orders.lua` makes the same bodies; its mode `fixed` and `fixed_order` have to agree to the byte.
"""

import gzip
import json
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
TEMPLATE_FILE = FOLDER / "order.tmpl"
PLAIN_LINE_ITEMS = '[{"sku":"TEA-EARL","title":"Earl Grey","quantity":2,"price":"24.95"}]'
# More different ones than the generator's processor cache would hold, few enough to load at once.
MOST_REAL_LINE_ITEMS = 2_000


def stamp():
    """A number that grows from run to run by more than a run has requests."""
    return time.time_ns() // 1_000


def order(template, n, price, lifetime, line_items):
    """The body of order `n` of customer `n`."""
    return template % (n, price, n, n, n, lifetime, line_items)


def fixed_order(template, n, line_items):
    """The one content that key `n` has in the mode `fixed`."""
    price = f"{100000 + n % 900000}.{n % 100:02}"
    return order(template, n, price, n, line_items[n % len(line_items)])


def read_template():
    return TEMPLATE_FILE.read_text().rstrip()


def read_orders(file):
    """The lines of an NDJSON file of orders, packed or not."""
    opener = gzip.open if str(file).endswith(".gz") else open
    with opener(file, "rb") as lines:
        return lines.read()


def real_line_items(orders):
    """Line items of a shop's own orders, a JSON array a line."""
    lines = orders.splitlines()[:MOST_REAL_LINE_ITEMS]
    return [
        json.dumps(json.loads(line).get("line_items", []), separators=(",", ":")) for line in lines
    ]
