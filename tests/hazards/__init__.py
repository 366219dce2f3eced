"""One test or more for each of the 60 traps of restarting, under its number: `test_h12_...`; storms are in `chaos`.

No test: 25, the least time that a wake-up takes; `benchmarks/primitives.py` measures ours against it.
"""

TRAPS = 60
WITHOUT_A_TEST = {25}
