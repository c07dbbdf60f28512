"""What can be wrong with a file."""

from __future__ import annotations


class ArtefactError(ValueError):
    """A file is no sparse artefact, is damaged, or holds what cannot be run; the message names the file and the place."""

    exit_code = 1
