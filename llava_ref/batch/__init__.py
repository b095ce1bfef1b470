"""Answer a file of requests, on this machine or on many: lines, their answers, their order, the file they go to."""
