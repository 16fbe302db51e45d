"""What a store object is for."""

from typing import Literal

Role = Literal["executor", "client"]
"""`executor` claims the right to execute runs when it is to execute some, `client` never does."""
