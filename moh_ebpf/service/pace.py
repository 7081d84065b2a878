"""How soon the service looks at what has changed, and what its looking may take of a core."""

# What belongs together (an interface, its address) comes within a moment of each other.
SETTLED_SECONDS = 0.2
# What looking for changes, and reading events, may take of a core, and how late they may be seen
# for that.
LOOKING_SHARE, LONGEST_LAG_SECONDS = 0.05, 5.0
# What looks that nothing has asked for may take of a core: at the calls, for the status, and at
# what runs before our programs.
STATUS_SHARE = 0.005
