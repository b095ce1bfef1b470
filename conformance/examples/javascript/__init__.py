"""An engine in JavaScript that `conform` runs: engine.mjs."""
