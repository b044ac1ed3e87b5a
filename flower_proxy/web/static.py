"""Static files: overrides, Flower's files, and the patched flower.js."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tornado.web import HTTPError, StaticFileHandler

from flower_proxy._flower import CONTROL_NAME, FLOWER_JS, INITIAL_SEARCH, POLLING, TIME_ZONES, TIME_ZONES_HASH
from flower_proxy.web.compression import CODINGS, MAX_COMPRESSED, accepted_codings, is_compressible

logger = logging.getLogger(__name__)

_CACHEABLE = "public, max-age=31536000, immutable"  # a year
# Ends the path of a file whose content is compressed, and precedes the coding; no path contains it
_CODED = "\0"

_FUNCTION = re.compile(r"^(?P<indent>[ \t]*)function (?P<name>\w+)\(", re.MULTILINE)


def packaged_overrides() -> Path:
    """Return the folder ``static_overrides``: in the package if installed, next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "static_overrides"
    return inside if inside.is_dir() else package.parent / "static_overrides"


class SpliceError(ValueError):
    """A flower.js that lacks a function to replace."""


def splice(original: str, corrected: str) -> str:
    """Replace functions of a script by corrected ones of the same name.

    :param original: Flower's script.
    :param corrected: a script of function declarations, each starting and ending in the first column.
    :returns: the script with the corrected functions, with URL-encoded names in the URLs of control actions, with
        the field ``ended`` in links to the tasks page, and with a call of ``pollTable`` in place of the timer that
        reloads a table.
    :raises SpliceError: the original lacks a function; the message names it.
    """
    for name, function in _functions(corrected).items():
        place = next((match for match in _FUNCTION.finditer(original) if match["name"] == name), None)
        if place is None:
            raise SpliceError(f"it has no function {name}")
        # The first closing brace with the indentation of the declaration ends it
        end = re.compile(rf"^{place['indent']}\}}[ \t]*$", re.MULTILINE).search(original, place.end())
        if end is None:
            raise SpliceError(f"the end of the function {name} was not found")
        indented = "\n".join(place["indent"] + line if line else "" for line in function.splitlines())
        original = original[: place.start()] + indented + original[end.end() :]
    original = CONTROL_NAME.sub(r"\1encodeURIComponent(\2)", original)
    return POLLING.sub(r"pollTable(\1, \2)", INITIAL_SEARCH.sub(r"\1, 'ended']", original))


def _functions(script: str) -> dict[str, str]:
    functions = re.findall(r"^(function (\w+)\(.*?^\})$", script, re.MULTILINE | re.DOTALL)
    return {name: source for source, name in functions}


def prepend(original: str, corrected: str) -> str:
    """Prepend a substitute for corrections that could not be spliced: it sets the prefix and token on the page.

    :param original: Flower's script.
    :param corrected: the script that could not be spliced.
    :returns: the original, preceded by a script.
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
    """Handler of static files from several folders, the first match wins, of generated and of compressed files.

    To Tornado, each coding of a file is a file of its own, with an ETag, a length and ranges: its path is that of the
    file, a null character and the coding. Files are compressed once, when a client first accepts the coding.

    :cvar folders: absolute paths of the folders that take precedence over Flower's.
    :cvar files: their files at start-up: absolute paths, by path relative to the folder.
    :cvar generated: generated content, by absolute path of the file that it replaces.
    :cvar generated_at: time of generation.
    :cvar compressed: content of files by path, with the coding.
    :cvar urls: cached URLs, by relative path and whether they include the version.
    """

    folders: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[dict[str, str]] = {}
    generated: ClassVar[dict[str, bytes]] = {}
    generated_at: ClassVar[datetime.datetime]
    compressed: ClassVar[dict[str, bytes]] = {}
    urls: ClassVar[dict[tuple[str, bool], str]] = {}

    @classmethod
    def configure(
        cls, folders: Sequence[Path], generated: Mapping[Path, bytes], substitutes: Mapping[str, Path]
    ) -> type[OverlaidStaticFiles]:
        """Return a handler class, for Tornado's ``static_handler_class``.

        :param folders: the folders that take precedence over Flower's.
        :param generated: generated content, by the file that it replaces.
        :param substitutes: files in these folders that replace one of Flower's, by its relative path.
        """
        substituted = {path: str(file) for path, file in substitutes.items()}
        attributes = {
            "folders": tuple(str(folder) for folder in folders),
            "files": substituted
            | {
                file.relative_to(folder).as_posix(): str(file)
                # The first folder wins
                for folder in reversed(folders)
                for file in folder.rglob("*")
                if file.is_file()
            },
            "generated": {str(path): content for path, content in generated.items()},
            "generated_at": datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0),
            "compressed": {},
            "urls": {},
        }
        return type(cls.__name__, (cls,), attributes)

    @classmethod
    def make_static_url(cls, settings: dict[str, Any], path: str, include_version: bool = True) -> str:
        """Return the URL of a file."""
        # Cached, because Tornado caches the hash but accesses the file each time
        if (path, include_version) not in cls.urls:
            cls.urls[path, include_version] = super().make_static_url(settings, path, include_version)
        return cls.urls[path, include_version]

    @classmethod
    def reset(cls) -> None:
        """Clear the caches."""
        super().reset()
        cls.compressed.clear()
        cls.urls.clear()

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Take the accepted codings from the request: Tornado would compress ranges of files."""
        super().initialize(*args, **kwargs)
        self._codings = accepted_codings(self.request.headers.pop("Accept-Encoding", ""))

    @classmethod
    def get_absolute_path(cls, root: str, path: str) -> str:
        """Return the absolute path of a file: that of an override or of Flower's file."""
        if _CODED in path:
            raise HTTPError(404)
        return cls.files.get(path) or super().get_absolute_path(root, path)

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        """Check that a file is inside its folder; return its path, with the coding if it is sent compressed."""
        folders = (folder for folder in self.folders if absolute_path.startswith(folder + os.sep))
        self.allowed_symlink_directory = folder = next(folders, root)
        self.absolute_path = file = super().validate_absolute_path(folder, absolute_path)
        self._content_type = super().get_content_type()
        if file is None or not is_compressible(self._content_type):
            return file
        if not self._codings or self.get_content_size() > MAX_COMPRESSED:
            return file
        coding = self._codings[0]
        self.set_header("Content-Encoding", coding)
        coded = f"{file}{_CODED}{coding}"
        if coded not in self.compressed:
            self.compressed[coded] = CODINGS[coding](b"".join(self.get_content(file)))
        return coded

    @property
    def _file(self) -> str:
        return (self.absolute_path or "").partition(_CODED)[0]

    @classmethod
    def _content_in_memory(cls, path: str | None) -> bytes | None:
        return cls.compressed.get(path or "", cls.generated.get(path or ""))

    @classmethod
    def get_content(
        cls, abspath: str, start: int | None = None, end: int | None = None
    ) -> Generator[bytes, None, None]:
        """Yield the content of a file, from memory if it is generated or compressed."""
        content = cls._content_in_memory(abspath)
        if content is None:
            yield from super().get_content(abspath, start, end)
        else:
            yield content[start:end]

    def get_content_size(self) -> int:
        """Return the size of the file in bytes."""
        content = self._content_in_memory(self.absolute_path)
        return super().get_content_size() if content is None else len(content)

    def get_content_type(self) -> str:
        """Return the type of the uncompressed content."""
        return self._content_type

    def get_cache_time(self, *_: Any) -> int:
        """Return 0: `set_extra_headers` decides on caching."""
        return 0

    def set_extra_headers(self, path: str) -> None:
        """Set Cache-Control, and ignore a Range whose If-Range does not match."""
        is_version = self.get_argument("v", None) == self.get_version(self.settings, path)
        self.set_header("Cache-Control", _CACHEABLE if is_version else "no-cache")
        condition = self.request.headers.get("If-Range")
        if condition and condition not in (self._headers.get("Etag"), self._headers.get("Last-Modified")):
            self.request.headers.pop("Range", None)

    def get_modified_time(self) -> datetime.datetime | None:
        """Return the modification time of the file, or the time of its generation."""
        return self.generated_at if self._file in self.generated else super().get_modified_time()


def static_handler(flower: Path, folder: str | None) -> type[StaticFileHandler]:
    """Return the handler class of static files, for Tornado's ``static_handler_class``.

    :param flower: Flower's folder.
    :param folder: the folder of ``--static_overrides``, which takes precedence; None or empty for none.
    """
    packaged = packaged_overrides()
    # An empty path would publish the current directory
    folders = [Path(folder).expanduser().resolve(), packaged] if folder else [packaged]
    corrected = packaged / FLOWER_JS
    original, corrections = (file.read_text(encoding="utf-8") for file in (flower / FLOWER_JS, corrected))
    polling = (packaged / "js" / "polling.js").read_text(encoding="utf-8")
    try:
        script = polling + splice(original, corrections)
    except SpliceError as error:
        logger.warning("Cannot correct Flower's %s: %s; serving it with a substitute", FLOWER_JS, error)
        script = prepend(original, corrections)
    return OverlaidStaticFiles.configure(folders, {corrected: script.encode()}, substitutes(flower, packaged))


def substitutes(flower: Path, packaged: Path) -> dict[str, Path]:
    """Return the files that replace one of Flower's under its name, if it is the known one.

    :param flower: Flower's folder.
    :param packaged: the folder of the substitutes.
    """
    time_zones = flower / TIME_ZONES
    if time_zones.is_file() and hashlib.sha256(time_zones.read_bytes()).hexdigest() == TIME_ZONES_HASH:
        return {TIME_ZONES: packaged / "js" / "time_zones.js"}
    return {}
