"""Hostile and broken input in numbers: mutated files, pickles that run code, names that lead elsewhere, kills, full
disks, NaN. `python -m benchmarks.hostile` runs every part at full size; `tests/hostile` runs a share of the same cases.
"""
