import subprocess
import sys

SETTLED_TWICE = """
import gc, weakref
from engine.garbage import GARBAGE_EVERY, settle

class Ring:
    def __init__(self):
        self.itself = self

ring = Ring()
seen = weakref.ref(ring)
settle()
assert gc.get_freeze_count() > 1_000
assert gc.get_threshold()[0] == GARBAGE_EVERY
del ring
gc.collect()
assert seen() is not None, "what was there is not looked at"
settle()
assert seen() is None, "who serves anew lets go of what was before"
"""


def test_what_is_there_when_serving_begins_is_not_looked_at_until_it_begins_anew():
    done = subprocess.run([sys.executable, "-c", SETTLED_TWICE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
