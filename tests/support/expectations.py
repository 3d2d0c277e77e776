"""What a test in Python counts: expect() as it goes, end() as its last line."""
import sys

failures = expectations = 0


def expect(ok, what):
    """Says what was expected where it was not met, and goes on; returns `ok`."""
    global failures, expectations
    expectations += 1
    if not ok:
        failures += 1
        print(f"FAILED: {what}", flush=True)
    return ok


def end():
    """Ends the program: 1 where an expectation was not met, or where there was none."""
    print(f"{expectations} expectations, {failures} failed")
    sys.exit(1 if failures or not expectations else 0)
