"""Mutation testing: small faults put into the pure parts one at a time, and whether their tests notice.

`python -m benchmarks.mutation` runs it. A fault is a change of the syntax tree that exists in memory only; the tests of
the module run in a fork of a process that has imported PyTorch already, which is most of what a test run costs.
"""
