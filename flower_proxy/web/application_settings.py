"""Settings of `tornado.web.Application`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tornado.netutil import ssl_options_to_context
from tornado.options import OptionParser

from flower_proxy._flower import flower_settings
from flower_proxy.settings.validators import load_provider
from flower_proxy.web.compression import ResponseCompression
from flower_proxy.web.static import static_handler
from flower_proxy.web.templates import corrected_templates


def application_settings(options: OptionParser) -> dict[str, Any]:
    """Return the settings derived from the options.

    :raises ValueError: ``--auth_provider`` cannot be imported, or the certificate or its key cannot be loaded.
    """
    settings: dict[str, Any] = {
        "debug": options.debug,
        "transforms": [ResponseCompression],
        "static_handler_class": static_handler(Path(flower_settings["static_path"]), options.static_overrides),
        "template_loader": corrected_templates(Path(flower_settings["template_path"])),
    }
    if options.cookie_secret:
        settings["cookie_secret"] = options.cookie_secret
    if options.auth:
        load_provider(options.auth_provider)
        settings["oauth"] = {
            "key": options.oauth2_key,
            "secret": options.oauth2_secret,
            "redirect_uri": options.oauth2_redirect_uri,
        }
    if options.certfile:
        files = {name: os.path.expanduser(getattr(options, name) or "") for name in ("certfile", "keyfile", "ca_certs")}
        try:
            settings["ssl_options"] = ssl_options_to_context(
                {name: file for name, file in files.items() if file}, server_side=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"--certfile and --keyfile: {error}") from None
    return settings
