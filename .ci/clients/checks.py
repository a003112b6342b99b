"""What the Python clients share: the data set, and one printed line per check."""

import sys
import traceback

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
# Record i carries this timestamp plus i seconds: 2023-11-14, so that nothing depends on the clock of the run.
BASE_MS = 1_700_000_000_000


def lines(state):
    with open(f"{state}/lines.txt", "rb") as f:
        return f.read().split(b"\n")[:-1]


def record(i, line):
    """Record i as both sides know it: key, value, headers. Some have a null key, an empty value, a repeated header name."""
    key = None if i % 5 == 0 else b"" if i % 7 == 0 else b"key-%d" % i
    headers = [] if i % 3 else [("a", b"1"), ("a", b"2"), ("empty", b""), ("\u00fc", bytes(range(256)))]
    return key, line, headers


def same(got, want, what="value"):
    if got != want:
        if isinstance(got, list) and isinstance(want, list):
            for i, (g, w) in enumerate(zip(got, want)):
                if g != w:
                    raise AssertionError(f"{what} {i} of {len(want)} differs: got {g!r:.200}, want {w!r:.200}")
            raise AssertionError(f"{what}: got {len(got)} of {len(want)}")
        raise AssertionError(f"{what}: got {got!r:.300}, want {want!r:.300}")


class Checks:
    def __init__(self, client):
        self.client, self.passed, self.failed = client, 0, 0

    def run(self, name, body, *args):
        """Runs one check; a failed one does not stop those after it."""
        try:
            body(*args)
        except Exception as e:
            self.failed += 1
            print(f"FAIL {self.client}: {name}: {type(e).__name__}: {e}", flush=True)
            traceback.print_exc(file=sys.stderr)
        else:
            self.passed += 1
            print(f"ok   {self.client}: {name}", flush=True)

    def finish(self):
        sys.exit(1 if self.failed or not self.passed else 0)


def arguments():
    if len(sys.argv) != 4 or sys.argv[2] not in ("write", "verify"):
        sys.exit(f"usage: {sys.argv[0]} HOST:PORT write|verify STATE_DIR")
    return sys.argv[1:]
