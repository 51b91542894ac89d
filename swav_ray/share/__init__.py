"""Handing a run or a file to someone else, end-to-end encrypted, through a Firefox-Send-compatible server.

`bundle.py` packs, `unpack.py` opens what strangers sent, `send.py` talks to the server, `tokens.py` keeps what revokes.
"""

from swav_ray.share.handover import Shared, hand_over, receive, revoke

__all__ = ["Shared", "hand_over", "receive", "revoke"]
