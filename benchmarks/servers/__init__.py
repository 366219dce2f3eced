"""Servers of others and ours under load: while they are reloaded, and when the new code is broken.

`peers` is how each is started and reloaded, `clients` the load and its ledger, `reloads` and `broken` what is measured,
`tables` and `plots` what a reader sees. `../peers.py` runs it all.
"""
