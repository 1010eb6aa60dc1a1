"""Files: one format a module, reading and writing side by side. Everything is written beside its place and renamed."""
