"""The verbs behind `make`: standard library only, since they run before anything is installed."""
