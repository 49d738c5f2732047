"""Notes that the data partition was made anew: `python3 -m image.node.resetdone`. A shell."""

from image.node.slots import ResetDone
from image.node.slotstore import SlotStore

if __name__ == "__main__":
    SlotStore().change(ResetDone())
