"""The specs that come with cortado: ``path("ucn_hn")`` is where one lies."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def path(name: str) -> Path:
    """The file of a spec by its name, with or without ``.yaml``.

    Raises FileNotFoundError that lists the specs there are.
    """
    file = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(found.stem for found in FOLDER.glob("*.yaml")))
        raise FileNotFoundError(f'no spec "{name}" comes with cortado; there are {known}')
    return file
