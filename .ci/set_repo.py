"""`make set-repo URL=…`: writes the repository's address to pyproject.toml, then badges and Setup cells from it.

The address stands in `[project.urls] Repository` alone; everything else here is generated, so running it twice changes
nothing. Without a URL it regenerates from what pyproject.toml says; `--none` takes the address out again.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

ADDRESS = re.compile(r"https://github\.com/[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
BADGES = re.compile(r"(<!-- badges -->).*?(<!-- /badges -->)", re.DOTALL)
# the two lines of a Setup cell that depend on the address and on the version
SETUP = re.compile(r'^REPOSITORY = ".*"$', re.MULTILINE)
TAG = re.compile(r'^TAG = ".*"$', re.MULTILINE)
UNSET = "This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links."


def main(arguments: list[str], root: Path) -> int:
    """Returns the exit status: 0 done, 2 not an address."""
    given = arguments[0].strip().rstrip("/").removesuffix(".git") if arguments else ""
    if given and given != "--none" and not ADDRESS.fullmatch(given):
        print(f"{given!r} is not a repository address; wanted: https://github.com/OWNER/NAME", file=sys.stderr)
        return 2
    manifest = root / "pyproject.toml"
    if given:
        write(manifest, with_address(manifest.read_text(encoding="utf-8"), "" if given == "--none" else given))
    project = tomllib.loads(manifest.read_text(encoding="utf-8"))["project"]
    url, version = project.get("urls", {}).get("Repository", ""), project["version"]
    readme = root / "README.md"
    badges = readme_badges(url, sorted(root.glob("notebooks/*.ipynb")))
    write(readme, with_badges(readme.read_text(encoding="utf-8"), badges))
    for path in sorted([*root.glob("notebooks/*.ipynb"), *root.glob("notebooks/*.py")]):
        write(path, with_setup(path, url, version))
    print(f"repository: {url or 'not set'}")
    if url:
        print(f"in Colab the notebooks install the tag v{version}: git tag v{version} && git push origin v{version}")
    return 0


def with_address(text: str, url: str) -> str:
    """pyproject's text with `[project.urls] Repository = url`; an empty url takes the line out."""
    text = re.sub(r'\n\[project\.urls\]\nRepository = ".*"\n', "", text)
    if not url:
        return text
    return text.replace("\n[project.scripts]\n", f'\n[project.urls]\nRepository = "{url}"\n\n[project.scripts]\n', 1)


def readme_badges(url: str, notebooks: list[Path]) -> str:
    """The badge lines of the README: CI, then one Colab badge per notebook."""
    if not url:
        return UNSET
    ci = f"[![ci]({url}/actions/workflows/ci.yml/badge.svg)]({url}/actions/workflows/ci.yml)"
    return "\n".join([ci, "", *(f"- `{path.stem}` {colab_badge(url, path.name)}" for path in notebooks)])


def colab_badge(url: str, name: str) -> str:
    owner = url.removeprefix("https://github.com/")
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})](https://colab.research.google.com/github/{owner}/blob/main/notebooks/{name})"


def with_badges(text: str, badges: str) -> str:
    """`text` with what stands between the badge marks replaced."""
    return BADGES.sub(lambda found: f"{found[1]}\n{badges}\n{found[2]}", text)


def with_setup(path: Path, url: str, version: str) -> str:
    """A notebook's or its twin's text with its badge and the two generated lines of its Setup cell."""
    badges = colab_badge(url, f"{path.stem}.ipynb") if url else UNSET
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        commented = badges.replace("\n", "\n# ")
        text = BADGES.sub(lambda found: f"{found[1]}\n# {commented}\n# {found[2]}", text)
        return setup_lines(text, url, version)
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        changed = with_badges(source, badges) if cell["cell_type"] == "markdown" else setup_lines(source, url, version)
        cell["source"] = changed.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def setup_lines(text: str, url: str, version: str) -> str:
    text = SETUP.sub(lambda _: f'REPOSITORY = "{url}"', text)
    return TAG.sub(lambda _: f'TAG = "v{version}"', text)


def write(path: Path, text: str) -> None:
    if path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.name}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], Path(__file__).parents[1]))
