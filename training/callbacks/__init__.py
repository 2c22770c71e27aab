"""The same hooks in the dialect of other trainers; each module needs its trainer, and says so."""
