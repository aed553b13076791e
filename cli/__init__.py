"""The command line: parses, calls prunec.api, renders. Installed as prunec.cli."""
