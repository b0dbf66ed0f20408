"""The nudging server: any base language model as a chat model, at inference time.

The rooms and what each knows are listed in ``CONTRIBUTING.md``.
"""

__version__ = "0.1.0"
