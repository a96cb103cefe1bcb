"""Where memories are kept: one module per kind of store, each loaded when it is first used."""
