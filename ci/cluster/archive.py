"""Writes images of static binaries as archives that containerd imports, with nothing but the standard library."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_static_image(
    archive: Path,
    references: Sequence[str],
    files: Mapping[str, Path | str],
    *,
    entrypoint: Sequence[str] = (),
    user: str = "",
) -> None:
    """Write a one-layer image in the archive format of `docker save`.

    Args:
        archive: the file to write.
        references: the image's names.
        files: where each file lies in the image: the path of its content, or the target of a symbolic link.
        entrypoint: the image's entrypoint, if it has one.
        user: the user it runs as; root by default.
    """
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        for name, source in sorted(files.items()):
            member = tarfile.TarInfo(name.lstrip("/"))
            member.mode = 0o755
            if isinstance(source, str):
                member.type, member.linkname = tarfile.SYMTYPE, source
                tar.addfile(member)
            else:
                member.size = source.stat().st_size
                with source.open("rb") as stream:
                    tar.addfile(member, stream)
    with layer.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/bin"], "Entrypoint": list(entrypoint), "User": user},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "static binary"}],
    }
    encoded = json.dumps(config, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": list(references), "Layers": [f"{digest}.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for name, content in ((config_name, encoded), ("manifest.json", json.dumps(manifest).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo(f"{digest}.tar")
        member.size = layer.stat().st_size
        with layer.open("rb") as stream:
            tar.addfile(member, stream)
    layer.unlink()


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
