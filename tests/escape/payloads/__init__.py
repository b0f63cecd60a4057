"""All payloads, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.escape.payload import Payload
from tests.escape.payloads import (
    devices,
    files,
    frames,
    kernel,
    language,
    namespaces,
    network,
    processes,
    published,
    resources,
)

GROUPS: Mapping[str, Sequence[Payload]] = {
    module.__name__.rpartition(".")[2]: module.PAYLOADS
    for module in (files, processes, network, kernel, namespaces, devices, resources, frames, language, published)
}
