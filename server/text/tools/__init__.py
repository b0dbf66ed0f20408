"""How a tool call is written: the formats that models learned, and what is told of tools in text.

`formats` is the table, `telling` the text for a model whose template knows no tools. Nobody else
knows how a call is spelled: the grammar (`server.text.grammar.calls`), the parser
(`server.decoding.calls`) and the prompts read a format's row.
"""
