"""Pure mechanics of an asynchronous federation: layouts, staleness, buffers, screening, roster."""
