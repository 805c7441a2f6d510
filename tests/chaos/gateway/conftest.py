from tests.gateway.conftest import anyio_backend, lab

__all__ = ["anyio_backend", "lab"]
