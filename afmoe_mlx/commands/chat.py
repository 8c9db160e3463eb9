"""`afmoe-mlx chat`: a conversation in the terminal, or one question answered; see `afmoe_mlx.chat`."""

from ..chat import run

__all__ = ["run"]
