"""The package behind the stages and the commands. Importing it prepares the threads of torch, which is loaded later."""

from vlm.config import cores

cores.share()
