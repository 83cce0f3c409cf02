"""``python -m benchmarks`` asks all questions quickly; ``python -m benchmarks NAME`` asks one with care."""

from benchmarks import _harness

if __name__ == "__main__":
    _harness.main()
