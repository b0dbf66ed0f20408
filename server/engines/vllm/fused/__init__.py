"""Nudging as speculation: the aligned model is the draft model of the base model's own engine.

All that touches vLLM's insides for it is in this folder (docs/adr/0031): a next vLLM is supported
by changing these files alone. Experimental.

    rule      which token each row of a step becomes; tensors, and no vLLM
    worker    puts the rule in place of vLLM's rejection sampler, inside the engine's process
    wish      what a request tells the rule
    engine    such an engine, seen from the server: it is started, and asked for positions
"""
