"""An app whose model says what was merged into it, and that can be held at any step."""
