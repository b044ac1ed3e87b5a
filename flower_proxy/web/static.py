"""Static files: ours and the user's in front of Flower's, and the corrected flower.js."""

from __future__ import annotations

import datetime
import logging
import os
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tornado.web import HTTPError, StaticFileHandler

from flower_proxy._flower import CONTROL_NAME, FLOWER_JS

logger = logging.getLogger(__name__)

_FUNCTION = re.compile(r"^(?P<indent>[ \t]*)function (?P<name>\w+)\(", re.MULTILINE)


def packaged_overrides() -> Path:
    """Return the folder ``static_overrides``: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "static_overrides"
    return inside if inside.is_dir() else package.parent / "static_overrides"


class SpliceError(ValueError):
    """The installed flower.js has no place for a corrected function."""


def splice(original: str, corrected: str) -> str:
    """Put corrected functions into a script in place of those of the same name.

    :param original: the script as Flower ships it.
    :param corrected: a script of function declarations, each beginning and ending at the start of a line.
    :returns: the script with these functions, and with names encoded in the addresses of control actions (P48).
    :raises SpliceError: a function is missing from the original; the message names it.
    """
    for name, function in _functions(corrected).items():
        place = next((match for match in _FUNCTION.finditer(original) if match["name"] == name), None)
        if place is None:
            raise SpliceError(f"it has no function {name}")
        # A function declaration ends with the first brace that stands as far left as its beginning
        end = re.compile(rf"^{place['indent']}\}}[ \t]*$", re.MULTILINE).search(original, place.end())
        if end is None:
            raise SpliceError(f"the end of its function {name} cannot be found")
        indented = "\n".join(place["indent"] + line if line else "" for line in function.splitlines())
        original = original[: place.start()] + indented + original[end.end() :]
    return CONTROL_NAME.sub(r"\1encodeURIComponent(\2)", original)


def _functions(script: str) -> dict[str, str]:
    functions = re.findall(r"^(function (\w+)\(.*?^\})$", script, re.MULTILINE | re.DOTALL)
    return {name: source for source, name in functions}


def prepend(original: str, corrected: str) -> str:
    """Make a script that cannot be corrected work all the same, by telling it on the page what it would get wrong.

    :param original: the script as Flower ships it.
    :param corrected: the script that could not be spliced in.
    :returns: the original behind a piece that runs first.
    """
    first = (
        f"(function () {{\n{corrected}\n"
        "    document.getElementById('url_prefix').value = url_prefix();\n"
        "    $(document).ajaxSend(function (event, xhr) {\n"
        "        xhr.setRequestHeader('X-XSRFToken', getCookie('_xsrf'));\n"
        "    });\n"
        "}());\n"
    )
    return first + original


class OverlaidStaticFiles(StaticFileHandler):
    """Serves a file from the first of several folders that has it, and some from memory.

    :cvar folders: absolute paths of the folders in front of Flower's own.
    :cvar files: what they held at start-up: absolute paths, by the path below the folder.
    :cvar made: content made at start-up, by the absolute path of the file that it stands for.
    :cvar urls: the URL of each file that a page has named, by its path below the folders, with its hash or without.
    """

    folders: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[dict[str, str]] = {}
    made: ClassVar[dict[str, bytes]] = {}
    made_at: ClassVar[datetime.datetime]
    urls: ClassVar[dict[tuple[str, bool], str]] = {}

    @classmethod
    def configure(cls, folders: Sequence[Path], made: dict[Path, bytes]) -> type[OverlaidStaticFiles]:
        """Return a handler class for these folders and this content, for Tornado's ``static_handler_class``."""
        attributes = {
            "folders": tuple(str(folder) for folder in folders),
            "files": {
                file.relative_to(folder).as_posix(): str(file)
                # The first one wins
                for folder in reversed(folders)
                for file in folder.rglob("*")
                if file.is_file()
            },
            "made": {str(path): content for path, content in made.items()},
            "made_at": datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0),
            "urls": {},
        }
        return type(cls.__name__, (cls,), attributes)

    @classmethod
    def make_static_url(cls, settings: dict[str, Any], path: str, include_version: bool = True) -> str:
        # A page names a dozen, always the same: Tornado keeps the hashes, but looks for the files each time
        if (path, include_version) not in cls.urls:
            cls.urls[path, include_version] = super().make_static_url(settings, path, include_version)
        return cls.urls[path, include_version]

    @classmethod
    def reset(cls) -> None:
        super().reset()
        cls.urls.clear()

    @classmethod
    def get_absolute_path(cls, root: str, path: str) -> str:
        if "\0" in path:
            raise HTTPError(404)
        return cls.files.get(path) or super().get_absolute_path(root, path)

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        folders = (folder for folder in self.folders if absolute_path.startswith(folder + os.sep))
        self.allowed_symlink_directory = folder = next(folders, root)
        return super().validate_absolute_path(folder, absolute_path)

    @classmethod
    def get_content(
        cls, abspath: str, start: int | None = None, end: int | None = None
    ) -> Generator[bytes, None, None]:
        made = cls.made.get(abspath)
        if made is None:
            yield from super().get_content(abspath, start, end)
        else:
            yield made[start:end]

    def get_content_size(self) -> int:
        made = self.made.get(self.absolute_path or "")
        return super().get_content_size() if made is None else len(made)

    def get_modified_time(self) -> datetime.datetime | None:
        return self.made_at if self.absolute_path in self.made else super().get_modified_time()


def static_handler(flower: Path, folder: str | None) -> type[StaticFileHandler]:
    """Return the handler class of static files, for Tornado's ``static_handler_class``.

    :param flower: Flower's own folder.
    :param folder: of ``--static_overrides``, in front of it; None or empty for none.
    """
    packaged = packaged_overrides()
    # An empty text is none: as a path it would be the current folder, with everything that lies there
    folders = [Path(folder).expanduser().resolve(), packaged] if folder else [packaged]
    corrected = packaged / FLOWER_JS
    original, corrections = (file.read_text(encoding="utf-8") for file in (flower / FLOWER_JS, corrected))
    try:
        script = splice(original, corrections)
    except SpliceError as error:
        logger.warning("Cannot correct Flower's %s: %s; its pages are served with a substitute", FLOWER_JS, error)
        script = prepend(original, corrections)
    return OverlaidStaticFiles.configure(folders, {corrected: script.encode()})
