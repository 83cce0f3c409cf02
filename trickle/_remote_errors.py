import pickle
from trickle._exceptions import RemoteError


def rebuild_exception(payload: bytes, *, host: str) -> Exception:
    e = RemoteError(str(pickle.loads(payload)))
    e.host = host
    return e
