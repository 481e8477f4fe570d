"""Where pictures come from, and how they are split. Only the stage prepare and commands import it."""
