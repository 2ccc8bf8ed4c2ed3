"""Store many small leaves in one buffer, so that a step passes few arrays."""

from ._optim.packing import Packed, pack, pack_all_like, pack_like, pack_moments, unpack, unpack_all

__all__ = ["Packed", "pack", "pack_all_like", "pack_like", "pack_moments", "unpack", "unpack_all"]


def __dir__() -> list[str]:
    return __all__
