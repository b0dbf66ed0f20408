"""Answers that must match a JSON schema: from the schema to the tokens that it allows.

`schema` says how a schema is read, `vetting` makes a grammar of it and tries that, `helper` is the
process in which this is done, `compiler` the server's side of that process, and `follow` follows an
answer through its grammar. Only what `compiler` let through reaches an engine.
"""
