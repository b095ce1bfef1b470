"""Answer a file of requests, on this machine or on many: lines, their answers, their order, the file they go to."""

CASES = "cases.jsonl"
"""The file with the requests of a folder of cases."""
