"""The inside of the child process that renders chat templates; imports nothing from outside this folder but jinja2.

A template may look at what users said and change it: cut, trim, lower, encode. The result must be what transformers
renders, and what a user typed must still never count as a control token or an image slot. So texts are `marked.Marked`:
each character carries the mark of the text it came from, through every operation that a template can ask for. What
operation gives a string that cannot be followed marks it as of unknown origin; what could slip through by default
(a method, a filter, a printed object) is of unknown origin unless it is known to be followed.
"""
