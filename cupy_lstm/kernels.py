"""Where the CUDA sources are: inside an installed package, or beside it in a source tree.

A built wheel carries `cuda/` as ``cupy_lstm/cuda``. An editable install has no such copy: there
the sources are next to the package, at the top of the source tree.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

# Other projects install a package called `cuda` too, so in site-packages a folder of that name
# beside this package can be theirs: only a folder with this file in it is ours.
LANDMARK = "cell.cuh"


def source_folder() -> Path:
    """Return the folder that holds the CUDA sources (``*.cu`` and ``*.cuh``).

    Returns
    -------
    pathlib.Path
        ``cupy_lstm/cuda`` of a built install, else ``cuda`` of the source tree.

    Raises
    ------
    FileNotFoundError
        If neither holds them; the message names both places.
    """
    candidates = (PACKAGE / "cuda", PACKAGE.parent / "cuda")
    for folder in candidates:
        if (folder / LANDMARK).is_file():
            return folder
    places = " nor in ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"the CUDA sources of cupy_lstm (a folder with {LANDMARK}) are neither in {places}: "
        "install the package again"
    )


def source(name: str) -> str:
    """Return the text of one CUDA source file.

    Parameters
    ----------
    name : str
        File name, such as ``"cell.cuh"``.

    Raises
    ------
    FileNotFoundError
        If there is no such file (the message lists those there are), or no sources at all.
    """
    folder = source_folder()
    files = sorted(path.name for path in folder.glob("*.cu*"))
    if name not in files:
        raise FileNotFoundError(f"there is no CUDA source {name!r} in {folder}, only {files}")
    return (folder / name).read_text(encoding="utf-8")
