"""What the Hub's JSON API says of a repository's commit and of its files."""

import hashlib
import json
import re
from datetime import UTC, datetime

import yaml

from hub_server.store import Commit, lfs_pointer


def describe(kind: str, repo: str, commit: Commit, blobs: bool, gated: bool) -> dict:
    """The answer to .../revision/REVISION; with `blobs`, its files have sizes and hashes."""
    card = _card(commit)
    date = _iso(commit.date)
    info = {
        "_id": hashlib.sha1(f"{kind}/{repo}".encode()).hexdigest()[:24],
        "id": repo,
        "author": repo.split("/")[0],
        "sha": commit.sha,
        "lastModified": date,
        "createdAt": date,
        "private": False,
        "gated": "manual" if gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*card.get("tags", []), f"license:{card.get('license', 'unknown')}"],
        "cardData": card,
        "siblings": [_sibling(path, commit, blobs) for path in sorted(commit.files)],
    }
    if kind == "models":
        config = (
            json.loads(commit.files["config.json"].disk.read_text("utf-8")) if "config.json" in commit.files else {}
        )
        info |= {
            "modelId": repo,
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "config": {key: config[key] for key in ("architectures", "model_type") if key in config},
        }
    return info


def entry(path: str, commit: Commit, expand: bool) -> dict | None:
    """A file or a folder as .../tree and .../paths-info list it; None if there is no such path."""
    if blob := commit.files.get(path):
        row: dict = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
        if blob.lfs:
            row["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": _pointer_size(blob.sha256, blob.size)}
    else:
        inside = sorted(f"{blob.oid} {name}" for name, blob in commit.files.items() if name.startswith(f"{path}/"))
        if not inside:
            return None
        row = {
            "type": "directory",
            "oid": hashlib.sha1("\n".join(inside).encode()).hexdigest(),
            "size": 0,
            "path": path,
        }
    if expand:
        row["lastCommit"] = {"id": commit.sha, "title": "Files on disk", "date": _iso(commit.date)}
    return row


def entries(folder: str, commit: Commit, recursive: bool, expand: bool) -> list[dict]:
    """What is in a folder ("" is the top), or under it."""
    prefix = f"{folder}/" if folder else ""
    paths: set[str] = set()
    for path in commit.files:
        if path.startswith(prefix):
            parts = path.removeprefix(prefix).split("/")
            paths.update(prefix + "/".join(parts[:n]) for n in range(1, len(parts) + 1 if recursive else 2))
    return [row for path in sorted(paths) if (row := entry(path, commit, expand))]


def _sibling(path: str, commit: Commit, blobs: bool) -> dict:
    row: dict = {"rfilename": path}
    blob = commit.files[path]
    if blobs:
        row |= {"size": blob.size, "blobId": blob.oid}
        if blob.lfs:
            pointer = _pointer_size(blob.sha256, blob.size)
            row["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": pointer}
    return row


def _card(commit: Commit) -> dict:
    """The front matter of the README."""
    if "README.md" not in commit.files:
        return {}
    text = commit.files["README.md"].disk.read_text("utf-8")
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}


def _pointer_size(sha256: str, size: int) -> int:
    return len(lfs_pointer(sha256, size))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
