"""Render chat templates, inside the child process. Imports jinja2 and nothing else from outside this folder.

A template may inspect users' texts and change them: cut, trim, lower, encode. The result must equal the one of
transformers, and text that a user typed must still never count as a control token or an image slot. So texts are
`marked.Marked`: each character carries the mark of the text it came from, through every operation that a template can
ask for. An operation whose result cannot be tracked marks it as of unknown origin. Anything that is not known to keep
marks (a method, a filter, a printed object) gives text of unknown origin too.
"""
