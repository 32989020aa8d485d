"""A small Python service profiled by the real Pyroscope SDK.

It burns CPU and allocates for SDK_SECONDS while the SDK uploads to
PYROSCOPE_SERVER_ADDRESS, then shuts the SDK down, which sends the last
profile, and leaves with 0. The SDK logs to stderr. Judging the uploads is
the work of whoever listens at the address.
"""

import hashlib
import logging
import os
import sys
import time

import pyroscope

# Whole seconds, and 1 is the least the SDK takes.
UPLOAD_INTERVAL_SECONDS = 1


def main():
    address = os.environ.get("PYROSCOPE_SERVER_ADDRESS")
    if not address:
        refuse("PYROSCOPE_SERVER_ADDRESS is not set")
    seconds = run_seconds()
    # The SDK reads its level from this logger and writes the lines itself.
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="[%(levelname)s] %(name)s %(message)s")
    pyroscope.configure(
        application_name="sdk.python",
        server_address=address,
        tags={"region": "eu", "lang": "python"},
        enable_logging=True,
        upload_interval=UPLOAD_INTERVAL_SECONDS,
        mem_enabled=True,
    )
    work(time.monotonic() + seconds)
    if not pyroscope.shutdown():
        print("[ERROR] the SDK did not shut down", file=sys.stderr)


def work(deadline):
    """Keeps one thread busy and about a megabyte alive until `deadline`."""
    kept = [b""] * 64
    count = 0
    while time.monotonic() < deadline:
        block = bytes(16 << 10)
        kept[count % len(kept)] = hashlib.sha256(block).digest() + block
        count += sum(range(100)) % 7 + 1


def run_seconds():
    text = os.environ.get("SDK_SECONDS", "25")
    if not text.isdecimal() or int(text) < 1:
        refuse(f"SDK_SECONDS={text!r} is not a whole number of seconds from 1")
    return int(text)


def refuse(why):
    print(f"[ERROR] {why}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
