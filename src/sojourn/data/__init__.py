"""The care of data: how long it is kept, how much there is, taking it out, erasing it, backups.

Each name is loaded when it is first used: who runs agents needs little of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sojourn.data.backup import Backup, restore_backup
    from sojourn.data.care import DataCare
    from sojourn.data.erasing import Erased
    from sojourn.data.pruning import Pruned, Retention
    from sojourn.data.reporting import SessionStorage, StorageReport

_HOME_OF = {
    "Backup": "backup",
    "DataCare": "care",
    "Erased": "erasing",
    "Pruned": "pruning",
    "Retention": "pruning",
    "SessionStorage": "reporting",
    "StorageReport": "reporting",
    "restore_backup": "backup",
}

__all__ = ["Backup", "DataCare", "Erased", "Pruned", "Retention", "SessionStorage", "StorageReport", "restore_backup"]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
