"""A plugin of lmms-eval (LMMS_EVAL_PLUGINS=scored): a model that scores over HTTP, and tasks for it."""
