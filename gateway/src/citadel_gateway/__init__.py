"""An OpenAI-compatible gateway in front of vLLM.

A request walks one way: identity, envelope, reservation, admission, route, relay, settlement, record. Each
station is a file of that name; `walk` leads a request through them.
"""

__version__ = "1.0.0"
